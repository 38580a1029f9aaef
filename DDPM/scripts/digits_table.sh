#!/usr/bin/env bash
# Every method on 8x8 digits, three seeds: the table "Digits" of README.md. About a quarter of an hour per seed on two CPU cores.
# Then each model is trained on ten images of the forgotten digit again: its table is in the folder $OUT with _relearned behind its name.
# Settings are the choice of tune_digits.sh. Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3 4 5" bash scripts/digits_table.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/digits_table}
CLASS=${CLASS:-3}

for seed in ${SEEDS:-1 2 3}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" --forget_class "$CLASS" --batch_size 64 --precision fp32 --seed "$seed")
  python train.py --dataset digits --data_dir "$DATA_DIR" --arch unet32 --steps 900 --lr 1e-3 --batch_size 64 --schedule linear --optimizer adamw --ema 0.99 --precision fp32 --seed "$seed" --save_dir "$R/original" --resume
  python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --lr 1e-3 --head_lr_factor 1 --epochs 15 --batch_size 64 --schedule linear --weight_decay 0 --precision fp32 --seed "$seed" --save_dir "$R/classifier" --resume
  for kind in saliency random layerwise; do
    python generate_mask.py --model_path "$R/original" --forget_class "$CLASS" --mask_ratio 0.5 --mask_kind $kind --epochs 10 --seed "$seed" --save_dir "$R/mask_$kind" --resume
  done
  python unlearn.py --method retrain    "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method ga         "${forget[@]}" --steps 50 --lr 1e-5 --save_dir "$R/ga" --resume
  python unlearn.py --method ga_retain  "${forget[@]}" --steps 50 --lr 3e-5 --save_dir "$R/ga_retain" --resume
  python unlearn.py --method rl         "${forget[@]}" --steps 200 --alpha 1 --lr 1e-4 --save_dir "$R/rl" --resume
  python unlearn.py --method esd        "${forget[@]}" --steps 200 --batch_size 8 --lr 1e-4 --save_dir "$R/esd" --resume
  python unlearn.py --method sa         "${forget[@]}" --steps 200 --replay 50 --replay_steps 50 --fisher_timesteps 50 --lr 1e-3 --ewc 0.1 --ema 0.99 --save_dir "$R/sa" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 200 --alpha 1 --lr 3e-4 --mask_path "$R/mask_saliency" --save_dir "$R/salun" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 200 --alpha 1 --lr 1e-3 --mask_path "$R/mask_random" --save_dir "$R/salun_random" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 200 --alpha 1 --lr 1e-3 --mask_path "$R/mask_layerwise" --save_dir "$R/salun_layerwise" --resume
  python unlearn.py --method salun_soft "${forget[@]}" --steps 200 --alpha 1 --lr 3e-4 --save_dir "$R/salun_soft" --resume
  python unlearn.py --method erasediff  "${forget[@]}" --steps 200 --lr 1e-3 --save_dir "$R/erasediff" --resume
  python unlearn.py --method sfron      "${forget[@]}" --steps 100 --lr 1e-4 --save_dir "$R/sfron" --resume
  python unlearn.py --method scissorhands "${forget[@]}" --steps 200 --lr 1e-4 --forget_weight 0.01 --save_dir "$R/scissorhands" --resume
  python sample.py --model_path "$R"/{original,retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --num_per_class 50 --steps 25 --cond_scale 2 --batch_size 500 --seed "$seed" --save_dir "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --resume
  python evaluate.py --sample_path "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
  A=${OUT}_relearned/seed$seed
  for method in retrain ga ga_retain rl esd sa salun salun_random salun_layerwise salun_soft erasediff sfron scissorhands; do
    python relearn.py --model_path "$R/$method" --num_images 10 --steps 50 --lr 1e-4 --batch_size 64 --precision fp32 --seed "$seed" --save_dir "$A/$method" --resume
  done
  python sample.py --model_path "$A"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --num_per_class 50 --steps 25 --cond_scale 2 --batch_size 500 --seed "$seed" --save_dir "$A/samples"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --resume
  python evaluate.py --sample_path "$A/samples"/{retrain,ga,ga_retain,rl,esd,sa,salun,salun_random,salun_layerwise,salun_soft,erasediff,sfron,scissorhands} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
done
python table.py "${OUT}_relearned"
python table.py "$OUT"
python draw_pictures.py "$OUT"
