#!/usr/bin/env bash
# Speed and memory: the masked step of the paper's U-Net, and 50 sampling steps against 1,000 on the digits of quickstart.sh.
# Expect: the table "Speed and memory" of README.md, ratios within noise. About ten minutes on two CPU cores, when the quickstart has run.
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
R=${OUT:-runs/quickstart}/seed1
python train.py --dataset digits --data_dir "$DATA_DIR" --arch unet32 --steps 900 --lr 1e-3 --batch_size 64 --schedule linear --optimizer adamw --ema 0.99 --precision fp32 --seed 1 --save_dir "$R/original" --resume
python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --lr 1e-3 --head_lr_factor 1 --epochs 15 --batch_size 64 --schedule linear --weight_decay 0 --precision fp32 --seed 1 --save_dir "$R/classifier" --resume
python benchmark.py --model_path "$R/original" --classifier "$R/classifier" --cond_scale 2 --num_per_class 20 --batch_size 4 --rounds 5 --folder "${OUT:-runs}/benchmark"
