#!/usr/bin/env bash
# Every method on a tiny Stable Diffusion of 8x8 digits, three seeds: the table "Digits" of README.md. About a quarter of an hour per seed on
# two CPU cores. Then each model is trained on ten images of the forgotten digit again: its table is in the folder $OUT with _relearned behind
# its name. Losses, weights and optimizers are those of each method's authors, rates are the choice of tune_digits.sh.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3 4 5" bash scripts/digits_table.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/digits_table}
CLASS=${CLASS:-three}

for seed in ${SEEDS:-1 2 3}; do
  R=$OUT/seed$seed
  train=(--from_scratch --dataset digits --data_dir "$DATA_DIR" --vae_steps 250 --steps 800 --lr 1e-3 --batch_size 64 --schedule linear --ema 0.99 --precision fp32 --seed "$seed")
  forget=(--model_path "$R/original" --forget_class "$CLASS" --batch_size 32 --precision fp32 --seed "$seed")
  python train.py "${train[@]}" --save_dir "$R/original" --resume
  python train.py "${train[@]}" --retain_only --forget_class "$CLASS" --save_dir "$R/retrain" --resume
  python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --precision fp32 --seed "$seed" --save_dir "$R/classifier" --resume
  for kind in saliency random layerwise; do
    python generate_mask.py --model_path "$R/original" --forget_class "$CLASS" --mask_ratio 0.5 --mask_kind $kind --epochs 3 --batch_size 32 --seed "$seed" --save_dir "$R/mask_$kind" --resume
  done
  python unlearn.py --method ga         "${forget[@]}" --steps 50 --lr 5e-6 --save_dir "$R/ga" --resume
  python unlearn.py --method ga_retain  "${forget[@]}" --steps 50 --lr 1e-5 --save_dir "$R/ga_retain" --resume
  python unlearn.py --method rl         "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --save_dir "$R/rl" --resume
  python unlearn.py --method esd        "${forget[@]}" --steps 100 --lr 1e-4 --sample_steps 10 --save_dir "$R/esd" --resume
  python unlearn.py --method fmn        "${forget[@]}" --steps 35 --lr 2e-5 --save_dir "$R/fmn" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --mask_path "$R/mask_saliency" --save_dir "$R/salun" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --mask_path "$R/mask_random" --save_dir "$R/salun_random" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 3e-4 --mask_path "$R/mask_layerwise" --save_dir "$R/salun_layerwise" --resume
  python unlearn.py --method salun_soft "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --save_dir "$R/salun_soft" --resume
  python unlearn.py --method uce        "${forget[@]}" --save_dir "$R/uce" --resume
  python unlearn.py --method ca         "${forget[@]}" --steps 100 --lr 2e-4 --alpha 0.2 --generation_steps 25 --generation_guidance_scale 3 --save_dir "$R/ca" --resume
  python generate_images.py --model_path "$R"/{original,retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --num_samples 40 --steps 25 --guidance_scale 3 --batch_size 200 --precision fp32 --seed "$seed" --save_dir "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --resume
  python evaluate.py --sample_path "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
  A=${OUT}_relearned/seed$seed
  for method in retrain ga ga_retain rl esd fmn salun salun_random salun_layerwise salun_soft uce ca; do
    python relearn.py --model_path "$R/$method" --num_images 10 --steps 50 --lr 1e-4 --batch_size 32 --precision fp32 --seed "$seed" --save_dir "$A/$method" --resume
  done
  python generate_images.py --model_path "$A"/{retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --num_samples 40 --steps 25 --guidance_scale 3 --batch_size 200 --precision fp32 --seed "$seed" --save_dir "$A/samples"/{retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --resume
  python evaluate.py --sample_path "$A/samples"/{retrain,ga,ga_retain,rl,esd,fmn,salun,salun_random,salun_layerwise,salun_soft,uce,ca} --forget_class "$CLASS" --classifier "$R/classifier" --features classifier --resume
done
python table.py "${OUT}_relearned"
python table.py "$OUT"
python draw_pictures.py "$OUT"
