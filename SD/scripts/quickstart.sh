#!/usr/bin/env bash
# Forget the digit three of a tiny Stable Diffusion that is built and trained here, on 8x8 digits, which need no download: original, retrain,
# SalUn and one baseline (ESD). A few minutes on two CPU cores. Expect: the original draws what it is asked for in at least 90 % of its
# samples; SalUn's samples of the forgotten digit are recognised in at most 5 % of the cases, those of the other digits in at least 85 %.
# before_after_salun.png and seed1/salun/fading.gif show it.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   CLASS=eight OUT=runs/forget_eight bash scripts/quickstart.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/quickstart}
CLASS=${CLASS:-three}

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  train=(--from_scratch --dataset digits --data_dir "$DATA_DIR" --vae_steps 250 --steps 800 --lr 1e-3 --batch_size 48 --schedule linear --ema 0.99 --precision fp32 --seed "$seed")
  forget=(--model_path "$R/original" --forget_class "$CLASS" --batch_size 32 --precision fp32 --seed "$seed")
  python train.py "${train[@]}" --save_dir "$R/original" --resume
  python train.py "${train[@]}" --retain_only --forget_class "$CLASS" --save_dir "$R/retrain" --resume
  python train_classifier.py --dataset digits --data_dir "$DATA_DIR" --precision fp32 --seed "$seed" --save_dir "$R/classifier" --resume
  python generate_mask.py --model_path "$R/original" --forget_class "$CLASS" --mask_ratio 0.5 --epochs 3 --batch_size 32 --seed "$seed" --save_dir "$R/mask" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --mask_path "$R/mask" --save_every 10 --generation_guidance_scale 3 --save_dir "$R/salun" --resume
  python unlearn.py --method esd "${forget[@]}" --steps 100 --lr 1e-4 --sample_steps 10 --save_dir "$R/esd" --resume
  python generate_images.py --model_path "$R"/{original,retrain,esd,salun} --num_samples 25 --steps 25 --guidance_scale 3 --batch_size 200 --precision fp32 --seed "$seed" --save_dir "$R/samples"/{original,retrain,esd,salun} --resume
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
