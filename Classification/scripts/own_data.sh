#!/usr/bin/env bash
# Your own images: train a ResNet-18 on class folders, forget one class with SalUn, and compare with a model retrained without it.
#   DATA=~/photos CLASS=dog bash scripts/own_data.sh
# DATA holds train/<class>/* and test/<class>/* (or val/), or <class>/* alone, a tenth of which is then held out. CLASS is a class's folder
# name or number. To forget single images, replace --forget_class below by --forget_indices FILE, which lists their paths in DATA, one per
# line: train/dog/7.jpg, or dog/7.jpg. Finished runs are skipped and an interrupted run continues.
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA=${DATA:-data/own}
CLASS=${CLASS:-0}
OUT=${OUT:-runs/own_data}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --forget_class "$CLASS")
  python train.py --dataset folder --data_dir "$DATA" --image_size 64 --arch resnet18 --epochs 60 --lr 0.05 --batch_size 64 --schedule linear --seed "$seed" --split_seed "$seed" --save_dir "$R/original" --resume
  python generate_mask.py "${forget[@]}" --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python unlearn.py --method retrain "${forget[@]}" --seed "$seed" --save_dir "$R/retrain" --resume
  python unlearn.py --method salun   "${forget[@]}" --seed "$seed" --lr 0.013 --epochs 10 --alpha 1 --mask_path "$R/mask" --save_dir "$R/salun" --resume
  python unlearn.py --method ft      "${forget[@]}" --seed "$seed" --lr 0.01 --epochs 10 --save_dir "$R/ft" --resume
  python evaluate.py "${forget[@]}" --save_dir "$R/evaluated_original" --resume
  python evaluate.py --model_path "$R"/{retrain,salun,ft} --resume
done
python table.py "$OUT"
