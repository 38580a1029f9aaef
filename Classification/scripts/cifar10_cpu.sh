#!/usr/bin/env bash
# CIFAR-10, ResNet-20, 10 % random forgetting: every method in about an hour and a half on two CPU cores with bf16.
# Not a table of the paper (that is table1_10.sh). Nothing is searched: SalUn has the official learning rate, which RL and SalUn-soft share,
# at half its epochs, and so have FT and l1-sparse. The other methods have their authors' settings. Not measured since methods were mended.
# Finished runs are skipped; a cut-off run is continued.
#   SEEDS="1 2 3" bash scripts/cifar10_cpu.sh --data_dir ~/data
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/cifar10_cpu}
DATA_DIR=${DATA_DIR:-data}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --num_forget 0.1 --seed "$seed")
  python train.py --dataset cifar10 --data_dir "$DATA_DIR" --arch resnet20 --epochs 20 --lr 0.2 --batch_size 128 --schedule linear --seed "$seed" --split_seed "$seed" --save_dir "$R/original" --resume
  python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio 0.5 --mask_kind random --seed "$seed" --save_dir "$R/mask_random" --resume
  python unlearn.py --method retrain      "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method salun        "${forget[@]}" --lr 0.013 --epochs 5 --alpha 1 --mask_path "$R/mask" --save_dir "$R/salun" --resume
  python unlearn.py --method salun        "${forget[@]}" --lr 0.013 --epochs 5 --alpha 1 --mask_path "$R/mask_random" --save_dir "$R/salun_random" --resume
  python unlearn.py --method rl           "${forget[@]}" --lr 0.013 --epochs 5 --alpha 1 --save_dir "$R/rl" --resume
  python unlearn.py --method ft           "${forget[@]}" --lr 0.01 --epochs 5 --save_dir "$R/ft" --resume
  python unlearn.py --method ga           "${forget[@]}" --lr 1e-4 --epochs 5 --save_dir "$R/ga" --resume
  python unlearn.py --method iu           "${forget[@]}" --iu_scale 10 --fisher_samples 1000 --save_dir "$R/iu" --resume
  python unlearn.py --method be           "${forget[@]}" --lr 1e-5 --epochs 10 --save_dir "$R/be" --resume
  python unlearn.py --method bs           "${forget[@]}" --lr 1e-5 --epochs 10 --fgsm_bound 0.1 --save_dir "$R/bs" --resume
  python unlearn.py --method l1_sparse    "${forget[@]}" --lr 0.01 --epochs 5 --gamma 1e-4 --save_dir "$R/l1_sparse" --resume
  python unlearn.py --method salun_soft   "${forget[@]}" --lr 0.013 --epochs 5 --alpha 1 --mask_ratio 0.5 --save_dir "$R/salun_soft" --resume
  python unlearn.py --method neggrad_plus "${forget[@]}" --lr 0.01 --epochs 10 --beta 0.95 --save_dir "$R/neggrad_plus" --resume
  python unlearn.py --method scrub        "${forget[@]}" --lr 5e-4 --epochs 3 --ascent_epochs 2 --alpha 1e-3 --gamma 0.99 --save_dir "$R/scrub" --resume
  python unlearn.py --method ssd          "${forget[@]}" --ssd_alpha auto --ssd_lambda 1 --fisher_samples 5000 --save_dir "$R/ssd" --resume
  python evaluate.py --model_path "$R/original" --num_forget 0.1 --save_dir "$R/evaluated_original" --resume
  python evaluate.py --model_path "$R"/{retrain,ft,rl,ga,iu,be,bs,l1_sparse,salun,salun_random,salun_soft,neggrad_plus,scrub,ssd} --resume
done
python table.py "$OUT"
