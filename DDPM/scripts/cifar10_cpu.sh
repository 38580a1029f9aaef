#!/usr/bin/env bash
# CIFAR-10 in colour on a CPU: a small U-Net learns six of the ten classes (CLASSES=) and forgets one (CLASS=airplane). About
# four hours of two cores.
# PARTS (default: all, in this order):
#   original, retrain   the two models. They can be trained side by side, with OMP_NUM_THREADS=1
#   search              six settings for every method, on another class of the same original (SEARCH_CLASS=ship). The best has the highest
#                       mean of UA and remaining accuracy, as no model is retrained without ships
#   table               all methods on CLASS, with the settings that the search chose
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   DATA_DIR=~/data bash scripts/cifar10_cpu.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/cifar10_cpu}
CLASS=${CLASS:-airplane}
SEARCH_CLASS=${SEARCH_CLASS:-ship}
images=(--dataset cifar10 --data_dir "$DATA_DIR" --only_class ${CLASSES:-airplane automobile frog horse ship truck})
training=(--arch unet32_deep --steps 3000 --batch_size 32 --lr 8e-4 --schedule linear --ema 0.999 --seed 1 --save_every 500)

masks() {  # masks FOLDER CLASS: the masks of a class, and what the runs of this part share
  R=$1
  forget=(--model_path "$OUT/original" --forget_class "$2" --batch_size 32 --steps 50 --seed 1)
  runs=()
  for kind in saliency layerwise; do
    python generate_mask.py --model_path "$OUT/original" --forget_class "$2" --mask_ratio 0.5 --mask_kind $kind --precision auto --seed 1 --save_dir "$R/mask_$kind" --resume
  done
}

run() {  # run NAME METHOD FLAGS...
  python unlearn.py --method "$2" "${forget[@]}" --save_dir "$R/$1" --resume "${@:3}"
  runs+=("$R/$1")
}

relabel() {  # relabel NAME FLAGS...: the methods that teach the forgotten class another one's look
  run rl_$1 rl "${@:2}"
  run salun_$1 salun "${@:2}" --mask_path "$R/mask_saliency"
  run salun_layerwise_$1 salun "${@:2}" --mask_path "$R/mask_layerwise"
  run salun_soft_$1 salun_soft "${@:2}"
}

measure() {  # measure CLASS NUM OTHERS: samples of that class and of each other, from the original and from all runs of this part
  local names=(original "${runs[@]##*/}")
  python sample.py --model_path "$OUT/original" "${runs[@]}" --classes "$1" "x$1" --num_per_class "$2" "$3" --steps 20 --cond_scale 4 --batch_size 100 --precision auto --seed 1 --save_dir "${names[@]/#/$R/samples/}" --resume
  python evaluate.py --sample_path "${names[@]/#/$R/samples/}" --forget_class "$1" --classifier "$OUT/classifier" --features classifier --resume
}

for part in ${PARTS:-original retrain search table}; do
  case $part in
    original)
      python train.py "${images[@]}" "${training[@]}" --save_dir "$OUT/original" --resume
      python train_classifier.py "${images[@]}" --arch wide_resnet6 --lr 1e-3 --head_lr_factor 1 --epochs 12 --batch_size 128 --schedule linear --seed 1 --save_dir "$OUT/classifier" --resume
      ;;
    retrain)
      python train.py "${images[@]}" "${training[@]}" --retain_only --forget_class "$CLASS" --save_dir "$OUT/$CLASS/retrain" --resume
      ;;
    search)
      masks "$OUT/search_$SEARCH_CLASS" "$SEARCH_CLASS"
      for lr in 3e-5 1e-4 3e-4 1e-3; do
        relabel $lr --alpha 1 --lr $lr
        run esd_$lr esd --batch_size 8 --lr $lr
      done
      relabel 1e-4_alpha0.1 --alpha 0.1 --lr 1e-4
      relabel 1e-4_200steps --alpha 1 --lr 1e-4 --steps 200
      for lr in 1e-4 3e-4; do run esd_${lr}_200steps esd --batch_size 8 --lr $lr --steps 200; done
      measure "$SEARCH_CLASS" 40 20
      python table.py "$R" --by_options
      ;;
    table)
      masks "$OUT/$CLASS" "$CLASS"
      run esd esd --batch_size 8 --lr 1e-4 --steps 200
      run rl rl --alpha 1 --lr 1e-4
      run rl_200steps rl --alpha 1 --lr 1e-4 --steps 200 --setting "200 steps"  # as many as the others
      run salun salun --alpha 1 --lr 1e-4 --steps 200 --mask_path "$R/mask_saliency" --save_every 20
      run salun_layerwise salun --alpha 1 --lr 1e-4 --steps 200 --mask_path "$R/mask_layerwise"
      run salun_soft salun_soft --alpha 1 --lr 1e-4 --steps 200
      runs+=("$R/retrain")
      measure "$CLASS" 100 60
      python table.py "$R"
      python draw_pictures.py "$R"
      ;;
    *)
      echo "error: no part $part" >&2
      exit 1
      ;;
  esac
done
