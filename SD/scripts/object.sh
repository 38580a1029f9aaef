#!/usr/bin/env bash
# Forget an object by its prompt alone; the model draws the images that are forgotten and kept. What happens to related things is counted.
#   CLASS=dog TARGET=cat bash scripts/object.sh --device cuda
# UA and the others' accuracies need a classifier that knows the words of prompt_lists/objects.csv; the CLIP score needs none.
# Settings are the paper's for classes (Adam 1e-5, 600 steps of 8, alpha 0.5, mask ratio 0.5); the 200 images generated per prompt are
# a guess.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
# On a GPU of 24 GB: MEMORY=--gradient_checkpointing bash scripts/object.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
CLASS=${CLASS:-dog}
TARGET=${TARGET:-cat}
OUT=${OUT:-runs/object/$CLASS}
MODEL=${MODEL:-CompVis/stable-diffusion-v1-4}
CLIP=${CLIP:-openai/clip-vit-large-patch14}
KEEP=${KEEP:-a photo of a horse}
grep -q ",$CLASS$" prompt_lists/objects.csv || { echo "error: prompt_lists/objects.csv has no class $CLASS: add prompts for it" >&2; exit 1; }

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$MODEL" --forget_prompt "a photo of a $CLASS" --target_prompt "a photo of a $TARGET" --retain_prompts "a photo of a $TARGET" "$KEEP" --num_images 200 --seed "$seed")
  python generate_mask.py "${forget[@]}" --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 600 --lr 1e-5 --alpha 0.5 --mask_path "$R/mask" --save_every 100 --save_dir "$R/salun" --resume
  python generate_images.py --model_path "$MODEL" "$R/salun" --prompts_path prompt_lists/objects.csv --num_samples 20 --save_dir "$R/samples"/{original,salun} --resume
  python evaluate.py --sample_path "$R/samples"/{original,salun} --forget_class "$CLASS" --clip_model "$CLIP" --resume
done
python table.py "$OUT"
python draw_pictures.py "$OUT"
