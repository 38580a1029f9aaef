#!/usr/bin/env bash
# The paper's CIFAR-10 experiment: a class of the DDPM forgotten, CLASS=0 to 9 in turn. Needs a GPU for days; not run by this project.
# Drawing takes most: 45,500 images per method, about a day at 15 TFLOP/s (1.1e18 operations, counted and not measured), and as many
# files. Each of the two trainings of 800,000 steps is three times that. METHODS="retrain salun" runs those alone.
# The paper's figures, UA / FID (from memory, unverified): Retrain 100 / 11.7, ESD 100 / 17.4, SalUn 99.2 / 11.2. An independent re-run
# of class 0 found FID 7.94 (Retrain, at guidance 0), 12.68 (ESD) and 11.25 (SalUn, both at guidance 2).
# Training, mask, SalUn, RL, Retrain, classifier and sampling have the official release's settings: last weights, summed losses whose
# gradients are clipped, guided mask, eta 1, x0 not clipped, images stretched. SalUn-soft shares SalUn's. ESD has the steps, rate and
# guidance of the release before April 2024. SA, EraseDiff and SFRon have their authors', Scissorhands its authors' for Stable Diffusion.
# GA's rate is a guess. Samples of SA and EraseDiff are drawn from averaged weights, as by their authors.
# The original is trained and drawn once for all classes. Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   for c in 0 1 2 3 4 5 6 7 8 9; do CLASS=$c DATA_DIR=~/data bash scripts/cifar10_table.sh; done
# stl10_table.sh sets the lower-case variables and runs this script, so a changed setting is one edit here.
set -euo pipefail
source "$(dirname "$0")/common.sh"
DATA_DIR=${DATA_DIR:-data}
OUT=${OUT:-runs/${folder:-cifar10_table}}
CLASS=${CLASS:-0}
METHODS=${METHODS:-retrain salun salun_soft rl ga ga_retain esd sa erasediff sfron scissorhands}
dataset=${dataset:-cifar10}
arch=${arch:-unet128}
train_steps=${train_steps:-800000}
sum_alpha=${sum_alpha:-1e-3}
with_test=${with_test:-}

for seed in ${SEEDS:-1}; do
  O=$OUT/seed$seed
  R=$OUT/class$CLASS/seed$seed
  forget=(--model_path "$O/original" --weights last --forget_class "$CLASS" --batch_size 128 --seed "$seed")
  sampling=(--steps 1000 --cond_scale 2.0 --eta 1 --no_clip --stretch --seed "$seed")
  python train.py --dataset $dataset --data_dir "$DATA_DIR" --arch $arch --steps $train_steps --lr 2e-4 --batch_size 128 --class_dropout 0.1 --loss sum $with_test --ema 0.9999 --grad_clip 1.0 --seed "$seed" --save_every 10000 --save_dir "$O/original" --resume
  python train_classifier.py --dataset $dataset --data_dir "$DATA_DIR" --arch resnet34 --lr 1e-5 --epochs 10 --weight_decay 5e-4 --schedule constant $with_test --seed "$seed" --save_dir "$O/classifier" --resume
  python sample.py --model_path "$O/original" --classes all --num_per_class 5000 --weights last "${sampling[@]}" --save_dir "$O/original_samples" --resume
  samples=()
  for method in $METHODS; do
    weights=last
    case $method in
      retrain)      flags=() ;;
      salun)        flags=(--steps 1000 --lr 1e-4 --sum_alpha $sum_alpha --mask_path "$R/mask")
                    python generate_mask.py --model_path "$O/original" --forget_class "$CLASS" --mask_ratio 0.5 --weights last --cond_scale 2 --clip_batches --seed "$seed" --save_dir "$R/mask" --resume ;;
      salun_soft)   flags=(--steps 1000 --lr 1e-4 --sum_alpha $sum_alpha --mask_ratio 0.5) ;;
      rl)           flags=(--steps 1000 --lr 1e-4 --sum_alpha $sum_alpha) ;;
      ga)           flags=(--steps 1000 --lr 1e-6) ;;
      ga_retain)    flags=(--steps 1000 --lr 1e-4 --alpha 1) ;;
      esd)          flags=(--batch_size 1 --steps 10000 --lr 1e-4 --negative_guidance 7.5) ;;
      sa)           flags=(--steps 20000 --lr 1e-4 --ewc 10 --replay 500 --replay_steps 1000 --fisher_timesteps 1000 --ema 0.9999) weights=ema ;;
      erasediff)    flags=(--steps 288 --lr 1e-4 --forget_weight 0.1 --ema 0.99) weights=ema ;;
      sfron)        flags=(--steps 150 --lr 1e-4) ;;
      scissorhands) flags=(--steps 360 --lr 2e-5) ;;
      *)            echo "error: there is no method $method" >&2; exit 1 ;;
    esac
    python unlearn.py --method "$method" "${forget[@]}" ${flags[@]+"${flags[@]}"} --save_dir "$R/$method" --resume
    python sample.py --model_path "$R/$method" --classes "$CLASS" "x$CLASS" --num_per_class 500 5000 --weights $weights "${sampling[@]}" --save_dir "$R/samples/$method" --resume
    samples+=("$R/samples/$method")
  done
  python evaluate.py --sample_path "$O/original_samples" --forget_class "$CLASS" --classifier "$O/classifier" --save_dir "$R/evaluated_original" --resume
  python evaluate.py --sample_path "${samples[@]}" --classifier "$O/classifier" --resume
done
python table.py "$OUT/class$CLASS"
python draw_pictures.py "$OUT/class$CLASS"
