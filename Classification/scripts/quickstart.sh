#!/usr/bin/env bash
# The whole of this folder on 8x8 digits, which need no download: original, retrain and every method, 10 % random forgetting.
# A few minutes per seed on two CPU cores. Hyper-parameters are the choice of tune_digits.sh; of two methods there is a second row at their
# authors' settings, and SalUn has one under a random mask. Expect: see "Digits" in README.md.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3 4 5" bash scripts/quickstart.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/quickstart}
DATA_DIR=${DATA_DIR:-data}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --num_forget 0.1 --seed "$seed" --precision fp32)
  python train.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --epochs 15 --lr 0.1 --batch_size 64 --schedule linear --seed "$seed" --split_seed "$seed" --precision fp32 --save_dir "$R/original" --resume
  python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio 0.5 --mask_kind random --seed "$seed" --save_dir "$R/mask_random" --resume
  python unlearn.py --method retrain      "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method ft           "${forget[@]}" --lr 0.2 --epochs 10 --save_dir "$R/ft" --resume
  python unlearn.py --method rl           "${forget[@]}" --lr 3e-4 --epochs 10 --alpha 1 --save_dir "$R/rl" --resume
  python unlearn.py --method ga           "${forget[@]}" --lr 0.03 --epochs 5 --save_dir "$R/ga" --resume
  python unlearn.py --method iu           "${forget[@]}" --iu_scale 0.1 --fisher_samples 1000 --save_dir "$R/iu" --resume
  python unlearn.py --method iu_exact     "${forget[@]}" --iu_scale 0.1 --fisher_samples 1000 --save_dir "$R/iu_exact" --resume
  python unlearn.py --method fisher       "${forget[@]}" --noise_scale 2e-7 --fisher_samples 200 --save_dir "$R/fisher" --resume
  python unlearn.py --method be           "${forget[@]}" --lr 5e-4 --epochs 10 --save_dir "$R/be" --resume
  python unlearn.py --method bs           "${forget[@]}" --lr 2e-4 --epochs 10 --fgsm_bound 0.1 --save_dir "$R/bs" --resume
  python unlearn.py --method l1_sparse    "${forget[@]}" --lr 0.1 --epochs 10 --gamma 3e-5 --save_dir "$R/l1_sparse" --resume
  python unlearn.py --method salun        "${forget[@]}" --lr 3e-4 --epochs 10 --alpha 1 --mask_path "$R/mask" --save_dir "$R/salun" --resume
  python unlearn.py --method salun        "${forget[@]}" --lr 3e-4 --epochs 10 --alpha 1 --mask_path "$R/mask_random" --save_dir "$R/salun_random" --resume
  python unlearn.py --method salun_soft   "${forget[@]}" --lr 3e-4 --epochs 10 --alpha 1 --mask_ratio 0.3 --save_dir "$R/salun_soft" --resume
  python unlearn.py --method neggrad_plus "${forget[@]}" --lr 0.1 --epochs 5 --beta 0.95 --save_dir "$R/neggrad_plus" --resume
  python unlearn.py --method neggrad_plus "${forget[@]}" --setting "authors' settings" --save_dir "$R/neggrad_plus_authors" --resume
  python unlearn.py --method scrub        "${forget[@]}" --lr 0.01 --epochs 10 --ascent_epochs 5 --alpha 1 --gamma 1 --decay_epochs --save_dir "$R/scrub" --resume
  python unlearn.py --method scrub        "${forget[@]}" --setting "authors' settings" --save_dir "$R/scrub_authors" --resume
  python unlearn.py --method ssd          "${forget[@]}" --ssd_alpha auto --ssd_lambda 1 --fisher_samples 0 --save_dir "$R/ssd" --resume
  python unlearn.py --method bad_teacher  "${forget[@]}" --lr 7e-4 --epochs 1 --retain_share 0.3 --save_dir "$R/bad_teacher" --resume
  python unlearn.py --method sfron        "${forget[@]}" --lr 0.05 --steps 200 --forget_alpha 25 --save_dir "$R/sfron" --resume
  python unlearn.py --method scissorhands "${forget[@]}" --lr 0.05 --epochs 10 --trim_layers fc --forget_weight 0.2 --save_dir "$R/scissorhands" --resume
  python unlearn.py --method munba        "${forget[@]}" --lr 0.02 --epochs 10 --save_dir "$R/munba" --resume
  python evaluate.py --model_path "$R/original" --num_forget 0.1 --retrain_path "$R/retrain" --mia_redraws 10 --precision fp32 --save_dir "$R/evaluated_original" --resume
  python evaluate.py --model_path "$R"/{retrain,ft,rl,ga,iu,iu_exact,fisher,be,bs,l1_sparse,salun,salun_random,salun_soft,neggrad_plus,neggrad_plus_authors,scrub,scrub_authors,ssd,bad_teacher,sfron,scissorhands,munba} --retrain_path "$R/retrain" --mia_redraws 10 --precision fp32 --resume
done
python table.py "$OUT"

[[ $OUT == /* ]] || OUT=$PWD/$OUT
echo "Open now: $OUT/table.png (every method against retrain)"
echo "          $OUT/table.md (the numbers and what they mean)"
