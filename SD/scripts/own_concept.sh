#!/usr/bin/env bash
# Your own concept, with flags only: name what to forget, what to draw in its place and what to keep.
#   FORGET="a photo of a grumpy cat" TARGET="a photo of a cat" KEEP="a photo of a dog" bash scripts/own_concept.sh --device cuda
# With your own images add FORGET_DIR=folder. The result is a diffusers folder, and next to it model.safetensors for web UIs.
# Settings: Adam 1e-5, batches of 8, alpha 0.5, mask ratio 0.5 as in the paper; 200 steps on 100 generated images per prompt are a guess.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
# On a GPU of 24 GB: MEMORY=--gradient_checkpointing bash scripts/own_concept.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
FORGET=${FORGET:-a photo of a church}
TARGET=${TARGET:-a photo of a house}
KEEP=${KEEP:-a photo of a castle}
OUT=${OUT:-runs/own_concept}
MODEL=${MODEL:-CompVis/stable-diffusion-v1-4}

forget=(--model_path "$MODEL" --forget_prompt "$FORGET" --target_prompt "$TARGET" --retain_prompts "$TARGET" "$KEEP" ${FORGET_DIR:+--forget_dir "$FORGET_DIR"} --num_images 100 --seed 1)
python generate_mask.py "${forget[@]}" --mask_ratio 0.5 --save_dir "$OUT/mask" --resume
python unlearn.py --method salun "${forget[@]}" --steps 200 --lr 1e-5 --alpha 0.5 --mask_path "$OUT/mask" --save_every 20 --single_file --save_dir "$OUT/salun" --resume
python generate_images.py --model_path "$MODEL" "$OUT/salun" --prompt "$FORGET" "$TARGET" "$KEEP" --num_samples 8 --save_dir "$OUT/samples"/{original,salun} --resume
