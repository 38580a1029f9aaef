#!/usr/bin/env bash
# Forget the digit 3 of a DDPM trained on 8x8 digits, which need no download: original, retrain, SalUn and one baseline (ESD).
# A few minutes on two CPU cores. Expect: SalUn's samples of the forgotten digit are recognised in at most 5 % of the cases, those of the
# other digits in at least 90 %. before_after_salun.png and seed1/salun/fading.gif show it.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   CLASS=8 OUT=runs/forget_8 bash scripts/quickstart.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/quickstart}
CLASS=${CLASS:-3}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --forget_class "$CLASS" --batch_size 64 --precision fp32 --seed "$seed")
  python train.py --dataset digits --data_dir "$DATA_DIR" --arch unet32 --steps 900 --lr 1e-3 --batch_size 64 --schedule linear --optimizer adamw --ema 0.99 --precision fp32 --seed "$seed" --save_dir "$R/original" --resume
  python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --lr 1e-3 --head_lr_factor 1 --epochs 15 --batch_size 64 --schedule linear --weight_decay 0 --precision fp32 --seed "$seed" --save_dir "$R/classifier" --resume
  python generate_mask.py --model_path "$R/original" --forget_class "$CLASS" --mask_ratio 0.5 --epochs 10 --seed "$seed" --save_dir "$R/mask" --resume
  python unlearn.py --method retrain "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method esd "${forget[@]}" --steps 200 --batch_size 8 --lr 1e-4 --save_dir "$R/esd" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 200 --alpha 1 --lr 3e-4 --mask_path "$R/mask" --save_every 10 --save_dir "$R/salun" --resume
  python sample.py --model_path "$R"/{original,retrain,esd,salun} --num_per_class 50 --steps 25 --cond_scale 2 --batch_size 500 --seed "$seed" --save_dir "$R/samples"/{original,retrain,esd,salun} --resume
  python evaluate.py --sample_path "$R/samples"/{original,retrain,esd,salun} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
done
python table.py "$OUT"
python draw_pictures.py "$OUT"

[[ $OUT == /* ]] || OUT=$PWD/$OUT
SEEDS=${SEEDS:-1}
echo "Open now: $OUT/before_after_salun.png (the same seeds before and after SalUn)"
echo "          $OUT/seed${SEEDS%% *}/salun/fading.gif (the forgotten class, step by step)"
echo "          $OUT/methods.png (all methods side by side)"
echo "          $OUT/table.md (the numbers and what they mean)"
