#!/usr/bin/env bash
# Your own images: train a class-conditional DDPM on class folders, forget one class with SalUn, and compare with a model retrained without it.
#   DATA=~/photos CLASS="golden retriever" bash scripts/own_data.sh --device cuda
# DATA holds train/<class>/* and test/<class>/* (or val/), or <class>/* alone, a tenth of which is then held out. CLASS is a class's folder
# name or number. Settings are guesses for some thousand images at 64 px, a day on a GPU; this project ran it shrunk only. The classifier
# that judges the samples starts from ImageNet's weights, which are downloaded: --pretrained none does without.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA=${DATA:-data/own}
CLASS=${CLASS:-0}
OUT=${OUT:-runs/own_data}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --forget_class "$CLASS" --batch_size 64 --seed "$seed")
  python train.py --dataset folder --data_dir "$DATA" --image_size 64 --arch unet128 --steps 50000 --lr 1e-4 --batch_size 64 --ema 0.999 --seed "$seed" --save_every 5000 --save_dir "$R/original" --resume
  python train_classifier.py --dataset folder --data_dir "$DATA" --image_size 64 --arch resnet34 --lr 1e-4 --epochs 20 --batch_size 64 --schedule linear --seed "$seed" --save_dir "$R/classifier" --resume
  python generate_mask.py --model_path "$R/original" --forget_class "$CLASS" --mask_ratio 0.5 --seed "$seed" --save_dir "$R/mask" --resume
  python unlearn.py --method retrain "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method salun   "${forget[@]}" --steps 1000 --alpha 1 --lr 1e-4 --mask_path "$R/mask" --save_every 100 --save_dir "$R/salun" --resume
  python sample.py --model_path "$R"/{original,retrain,salun} --num_per_class 100 --steps 100 --cond_scale 2 --seed "$seed" --save_dir "$R/samples"/{original,retrain,salun} --resume
  python evaluate.py --sample_path "$R/samples"/{original,retrain,salun} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
done
python table.py "$OUT"
python draw_pictures.py "$OUT"
