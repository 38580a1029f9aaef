#!/usr/bin/env bash
# The four variants of ESD on a prompt: cross-attention (x), all else (u), self-attention (self), everything (full).
#   FORGET="Van Gogh" bash scripts/esd.sh --device cuda
# Its authors' settings (train-esd.py of 2023): 1,000 steps of one sample, Adam 1e-5, negative guidance 1, x_t drawn at guidance 3 in 50
# steps. Those of their code of 2025: STEPS=200 bash scripts/esd.sh --draw_from original --lr 5e-5
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
# On a GPU of 24 GB: MEMORY=--gradient_checkpointing bash scripts/esd.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
FORGET=${FORGET:-Van Gogh}
OUT=${OUT:-runs/esd}
MODEL=${MODEL:-CompVis/stable-diffusion-v1-4}
for weights in xattn noxattn selfattn full; do
  python unlearn.py --method esd --train_method $weights --model_path "$MODEL" --forget_prompt "$FORGET" --target_prompt "" --steps 1000 --lr 1e-5 --batch_size 1 --negative_guidance 1 --sample_guidance_scale 3 --sample_steps 50 --seed 1 --save_dir "$OUT/$weights" --resume
done
python generate_images.py --model_path "$MODEL" "$OUT"/{xattn,noxattn,selfattn,full} --prompts_path prompt_lists/styles.csv --save_dir "$OUT/samples"/{original,xattn,noxattn,selfattn,full} --resume
