#!/usr/bin/env bash
# Many models per method on 8x8 digits: U-LiRA and KLOM (evaluate_many.py), relearning (relearn.py), and SalUn under every kind of mask
# (table.py). All runs forget the same 129 images: one --split_seed. Settings are those of quickstart.sh. About 16 times its time.
# Expect: see "Digits" in README.md. Finished runs are skipped and an interrupted run continues:
#   SEEDS="1 2 3 4" bash scripts/many_digits.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/many_digits}
DATA_DIR=${DATA_DIR:-data}

for seed in ${SEEDS:-$(seq 16)}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --num_forget 0.1 --seed "$seed" --precision fp32)
  python train.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --epochs 15 --lr 0.1 --batch_size 64 --schedule linear --seed "$seed" --split_seed 1 --precision fp32 --save_dir "$R/original" --resume
  runs=()
  python unlearn.py --method retrain "${forget[@]}" --save_dir "$R/retrain" --resume
  for kind in saliency random least_salient magnitude layerwise; do
    python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio 0.5 --mask_kind $kind --seed "$seed" --save_dir "$R/mask_$kind" --resume
    python unlearn.py --method salun "${forget[@]}" --lr 3e-4 --epochs 10 --alpha 1 --mask_path "$R/mask_$kind" --save_dir "$R/salun_$kind" --resume
    runs+=("$R/salun_$kind")
  done
  try() {  # try METHOD FLAGS...
    python unlearn.py --method "$1" "${forget[@]}" --save_dir "$R/$1" --resume "${@:2}"
    runs+=("$R/$1")
  }
  try ft --lr 0.2 --epochs 10
  try rl --lr 3e-4 --epochs 10 --alpha 1
  try ga --lr 0.03 --epochs 5
  try iu --iu_scale 0.1
  try iu_exact --iu_scale 0.1
  try fisher --noise_scale 2e-7 --fisher_samples 200
  try be --lr 5e-4 --epochs 10
  try bs --lr 2e-4 --epochs 10
  try l1_sparse --lr 0.1 --epochs 10 --gamma 3e-5
  try salun_soft --lr 3e-4 --epochs 10 --alpha 1 --mask_ratio 0.3
  try neggrad_plus --lr 0.1 --epochs 5 --beta 0.95
  try scrub --lr 0.01 --epochs 10 --ascent_epochs 5 --alpha 1 --gamma 1 --decay_epochs
  try ssd --ssd_alpha auto --ssd_lambda 1
  try bad_teacher --lr 7e-4
  try sfron --lr 0.05 --steps 200 --forget_alpha 25
  try scissorhands --lr 0.05 --epochs 10 --trim_layers fc --forget_weight 0.2
  try munba --lr 0.02 --epochs 10
  python evaluate.py --model_path "$R/original" --num_forget 0.1 --retrain_path "$R/retrain" --precision fp32 --save_dir "$R/evaluated_original" --resume
  python evaluate.py --model_path "$R/retrain" "${runs[@]}" --retrain_path "$R/retrain" --precision fp32 --resume
done
python table.py "$OUT"
python relearn.py "$OUT" --precision fp32
python evaluate_many.py "$OUT" --precision fp32
