#!/usr/bin/env bash
# The search behind the settings of quickstart.sh and digits_table.sh: three settings per method, on a seed that no table uses.
# What is looked for: the highest mean of UA and remaining accuracy, then the lowest feature_distance. About a quarter of an hour on two CPU cores.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/tune_digits}

R=$OUT/seed100
forget=(--model_path "$R/original" --forget_class 3 --batch_size 64 --precision fp32 --seed 100)
python train.py --dataset digits --data_dir "$DATA_DIR" --arch unet32 --steps 900 --lr 1e-3 --batch_size 64 --schedule linear --optimizer adamw --ema 0.99 --precision fp32 --seed 100 --save_dir "$R/original" --resume
python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --lr 1e-3 --head_lr_factor 1 --epochs 15 --batch_size 64 --schedule linear --weight_decay 0 --precision fp32 --seed 100 --save_dir "$R/classifier" --resume
for kind in saliency random layerwise; do
  python generate_mask.py --model_path "$R/original" --forget_class 3 --mask_ratio 0.5 --mask_kind $kind --epochs 10 --seed 100 --save_dir "$R/mask_$kind" --resume
done
for lr in 1e-4 3e-4 1e-3; do
  python unlearn.py --method rl "${forget[@]}" --steps 200 --alpha 1 --lr $lr --save_dir "$R/rl_$lr" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 200 --alpha 1 --lr $lr --mask_path "$R/mask_saliency" --save_dir "$R/salun_$lr" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 200 --alpha 1 --lr $lr --mask_path "$R/mask_random" --save_dir "$R/salun_random_$lr" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 200 --alpha 1 --lr $lr --mask_path "$R/mask_layerwise" --save_dir "$R/salun_layerwise_$lr" --resume
  python unlearn.py --method salun_soft "${forget[@]}" --steps 200 --alpha 1 --lr $lr --save_dir "$R/salun_soft_$lr" --resume
  python unlearn.py --method erasediff "${forget[@]}" --steps 200 --lr $lr --save_dir "$R/erasediff_$lr" --resume
  python unlearn.py --method sfron "${forget[@]}" --steps 100 --lr $lr --save_dir "$R/sfron_$lr" --resume
done
for lr in 1e-6 1e-5 1e-4; do
  python unlearn.py --method ga "${forget[@]}" --steps 50 --lr $lr --save_dir "$R/ga_$lr" --resume
done
for lr in 3e-5 1e-4 3e-4; do
  python unlearn.py --method esd "${forget[@]}" --steps 200 --batch_size 8 --lr $lr --save_dir "$R/esd_$lr" --resume
done
for lr in 1e-5 3e-5 1e-4; do
  python unlearn.py --method ga_retain "${forget[@]}" --steps 50 --lr $lr --save_dir "$R/ga_retain_$lr" --resume
done
for weight in 0.1 0.03 0.01; do
  python unlearn.py --method scissorhands "${forget[@]}" --steps 200 --lr 1e-4 --forget_weight $weight --save_dir "$R/scissorhands_$weight" --resume
done
for ewc in 10 0.1 0.001; do
  python unlearn.py --method sa "${forget[@]}" --steps 200 --replay 50 --replay_steps 50 --fisher_timesteps 50 --lr 1e-3 --ewc $ewc --ema 0.99 --save_dir "$R/sa_$ewc" --resume
done
runs=({rl,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron}_{1e-4,3e-4,1e-3} ga_retain_{1e-5,3e-5,1e-4} scissorhands_{0.1,0.03,0.01} ga_{1e-6,1e-5,1e-4} esd_{3e-5,1e-4,3e-4} sa_{10,0.1,0.001})
python sample.py --model_path "$R/original" "${runs[@]/#/$R/}" --num_per_class 30 --steps 25 --cond_scale 2 --batch_size 300 --seed 100 --save_dir "$R/samples/original" "${runs[@]/#/$R/samples/}" --resume
python evaluate.py --sample_path "$R/samples/original" "${runs[@]/#/$R/samples/}" --forget_class 3 --classifier "$R/classifier" --features classifier --resume
python table.py "$OUT" --by_options
