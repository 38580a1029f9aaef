#!/usr/bin/env bash
# Fashion-MNIST at 28 px, one class forgotten (CLASS=1: trousers): every method but SA and SFRon, whose Fisher information takes long, and SalUn
# with two control masks. About an hour and a half on two CPU cores, or on a GPU.
# The table "Fashion-MNIST" of README.md. Nothing was searched here: the rates are those of digits_table.sh, with half its steps.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   CLASS=8 DATA_DIR=~/data bash scripts/fashion_mnist.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/fashion_mnist}
CLASS=${CLASS:-1}

for seed in ${SEEDS:-1}; do
  O=$OUT/seed$seed
  R=$OUT/class$CLASS/seed$seed
  forget=(--model_path "$O/original" --forget_class "$CLASS" --batch_size 64 --seed "$seed")
  python train.py --dataset fashion_mnist --data_dir "$DATA_DIR" --arch unet48 --steps 2000 --batch_size 64 --lr 8e-4 --schedule linear --ema 0.999 --seed "$seed" --save_every 1000 --save_dir "$O/original" --resume
  python train_classifier.py --dataset fashion_mnist --data_dir "$DATA_DIR" --arch cnn --lr 1e-3 --head_lr_factor 1 --epochs 5 --batch_size 128 --schedule linear --weight_decay 0 --seed "$seed" --save_dir "$O/classifier" --resume
  for kind in saliency random layerwise; do
    python generate_mask.py --model_path "$O/original" --forget_class "$CLASS" --mask_ratio 0.5 --mask_kind $kind --precision auto --seed "$seed" --save_dir "$R/mask_$kind" --resume
  done
  python unlearn.py --method retrain    "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method ga         "${forget[@]}" --steps 50 --lr 1e-5 --save_dir "$R/ga" --resume
  python unlearn.py --method ga_retain  "${forget[@]}" --steps 50 --lr 3e-5 --save_dir "$R/ga_retain" --resume
  python unlearn.py --method rl         "${forget[@]}" --steps 100 --alpha 1 --lr 1e-4 --save_dir "$R/rl" --resume
  python unlearn.py --method esd        "${forget[@]}" --steps 100 --batch_size 8 --lr 1e-4 --save_dir "$R/esd" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 3e-4 --mask_path "$R/mask_saliency" --save_every 10 --save_dir "$R/salun" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 1e-3 --mask_path "$R/mask_random" --save_dir "$R/salun_random" --resume
  python unlearn.py --method salun      "${forget[@]}" --steps 100 --alpha 1 --lr 1e-3 --mask_path "$R/mask_layerwise" --save_dir "$R/salun_layerwise" --resume
  python unlearn.py --method salun_soft "${forget[@]}" --steps 100 --alpha 1 --lr 3e-4 --save_dir "$R/salun_soft" --resume
  python unlearn.py --method erasediff  "${forget[@]}" --steps 100 --lr 1e-3 --save_dir "$R/erasediff" --resume
  python unlearn.py --method scissorhands "${forget[@]}" --steps 100 --lr 1e-4 --forget_weight 0.01 --save_dir "$R/scissorhands" --resume
  python sample.py --model_path "$O/original" "$R"/{retrain,ga,ga_retain,rl,esd,salun,salun_random,salun_layerwise,salun_soft,erasediff,scissorhands} --classes "$CLASS" "x$CLASS" --num_per_class 100 40 --steps 20 --cond_scale 2 --batch_size 230 --precision auto --seed "$seed" --save_dir "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,salun,salun_random,salun_layerwise,salun_soft,erasediff,scissorhands} --resume
  python evaluate.py --sample_path "$R/samples"/{original,retrain,ga,ga_retain,rl,esd,salun,salun_random,salun_layerwise,salun_soft,erasediff,scissorhands} --forget_class "$CLASS" --classifier "$O/classifier" --features classifier --num_reference 5000 --resume
done
python table.py "$OUT/class$CLASS"
python draw_pictures.py "$OUT/class$CLASS"
