#!/usr/bin/env bash
# Relearning: every model of digits_table.sh trained on ten images of the forgotten digit again, 50 steps, beside Retrain in the same way.
# A UA that falls faster than Retrain's says that the digit was hidden, not forgotten. Run digits_table.sh first. About two minutes per seed
# on two CPU cores; not run by this project yet. Finished runs are skipped, a cut-off run is continued. Further flags go to the commands that
# take them, see --help:
#   SEEDS="1 2 3" bash scripts/relearn_digits.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
FROM=${FROM:-runs/digits_table}
OUT=${OUT:-runs/relearn_digits}
CLASS=${CLASS:-3}

for seed in ${SEEDS:-1 2 3}; do
  R=$OUT/seed$seed
  for method in retrain ga ga_retain rl esd sa salun salun_soft erasediff sfron scissorhands; do
    python relearn.py --model_path "$FROM/seed$seed/$method" --num_images 10 --steps 50 --lr 1e-4 --batch_size 64 --precision fp32 --seed "$seed" --save_dir "$R/$method" --resume
  done
  python sample.py --model_path "$R"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_soft,erasediff,sfron,scissorhands} --num_per_class 50 --steps 25 --cond_scale 2 --batch_size 500 --seed "$seed" --save_dir "$R/samples"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_soft,erasediff,sfron,scissorhands} --resume
  python evaluate.py --sample_path "$R/samples"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_soft,erasediff,sfron,scissorhands} --forget_class "$CLASS" --classifier "$FROM/seed$seed/classifier" --features classifier --resume
done
python table.py "$OUT"
