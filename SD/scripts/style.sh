#!/usr/bin/env bash
# Forget a style: van Gogh's, with ESD-x, UCE, concept ablation and SalUn side by side.
#   STYLE="a pencil sketch" LABEL="pencil sketch" TARGET="a photograph" bash scripts/style.sh --device cuda
# ESD-x, UCE and concept ablation have their authors' settings (README.md, "Against the authors' code"), but UCE keeps the prompts named here,
# where its authors keep a list of artists. SalUn's 200 steps are a guess.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help.
# On a GPU of 24 GB: MEMORY=--gradient_checkpointing bash scripts/style.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
STYLE=${STYLE:-a painting in the style of Vincent van Gogh}
LABEL=${LABEL:-Vincent van Gogh}
TARGET=${TARGET:-a painting}
OUT=${OUT:-runs/style}
MODEL=${MODEL:-CompVis/stable-diffusion-v1-4}
CLIP=${CLIP:-openai/clip-vit-large-patch14}
grep -q ",$LABEL$" prompt_lists/styles.csv || { echo "error: prompt_lists/styles.csv has no class $LABEL: add prompts for it" >&2; exit 1; }

for seed in ${SEEDS:-1}; do
  R=$OUT/seed$seed
  forget=(--model_path "$MODEL" --forget_prompt "$STYLE" --target_prompt "$TARGET" --retain_prompts "$TARGET" "a painting by Claude Monet" "a photograph" --num_images 200 --seed "$seed")
  python generate_mask.py "${forget[@]}" --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python unlearn.py --method salun "${forget[@]}" --steps 200 --lr 1e-5 --alpha 0.5 --mask_path "$R/mask" --save_dir "$R/salun" --resume
  python unlearn.py --method esd --train_method xattn "${forget[@]}" --steps 1000 --lr 1e-5 --batch_size 1 --save_dir "$R/esd" --resume
  python unlearn.py --method uce "${forget[@]}" --save_dir "$R/uce" --resume
  python unlearn.py --method ca "${forget[@]}" --steps 100 --lr 1.6e-5 --save_dir "$R/ca" --resume
  python generate_images.py --model_path "$MODEL" "$R"/{salun,esd,uce,ca} --prompts_path prompt_lists/styles.csv --num_samples 5 --save_dir "$R/samples"/{original,salun,esd,uce,ca} --resume
  python evaluate.py --sample_path "$R/samples"/{original,salun,esd,uce,ca} --forget_class "$LABEL" --clip_model "$CLIP" --resume
done
python table.py "$OUT"
python draw_pictures.py "$OUT"
