#!/usr/bin/env bash
# Choose the hyper-parameters of quickstart.sh: six settings for every method, on validation images, with seeds that no table uses.
# For the methods of the first search the six lie around the best of a first round (results/tune_digits/first_round.md).
# Each method's best row (the first) of the printed table stands in quickstart.sh. About 40 minutes on one CPU core.
#   SEEDS="101 102" bash scripts/tune_digits.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/tune_digits}
DATA_DIR=${DATA_DIR:-data}

for seed in ${SEEDS:-101 102}; do
  R=$OUT/seed$seed
  python train.py --dataset digits --data_dir "$DATA_DIR" --arch cnn --epochs 15 --lr 0.1 --batch_size 64 --schedule linear --seed "$seed" --split_seed "$seed" --precision fp32 --save_dir "$R/original" --resume
  for ratio in 0.3 0.5; do
    python generate_mask.py --model_path "$R/original" --num_forget 0.1 --mask_ratio $ratio --save_dir "$R/mask_$ratio" --resume
  done
  runs=()
  try() {  # try METHOD NUMBER FLAGS...
    local run=$R/$1_$2
    python unlearn.py --method "$1" --model_path "$R/original" --num_forget 0.1 --seed "$seed" --precision fp32 --save_dir "$run" --resume "${@:3}"
    runs+=("$run")
  }
  try retrain 1
  n=0; for lr in 0.05 0.1 0.15 0.2 0.25 0.3;        do n=$((n + 1)); try ft $n --lr $lr --epochs 10; done
  n=0; for lr in 3e-5 1e-4 2e-4 3e-4 5e-4 1e-3;     do n=$((n + 1)); try rl $n --lr $lr --epochs 10; done
  n=0; for lr in 0.003 0.005 0.01 0.015 0.02 0.03;  do n=$((n + 1)); try ga $n --lr $lr --epochs 5; done
  n=0; for scale in 0.1 0.2 0.5 1 1.5 2;            do n=$((n + 1)); try iu $n --iu_scale $scale; done
  n=0; for scale in 0.1 0.2 0.5 1 1.5 2;            do n=$((n + 1)); try iu_exact $n --iu_scale $scale; done
  n=0; for scale in 1e-8 1e-7 2e-7 3e-7 5e-7 1e-6;  do n=$((n + 1)); try fisher $n --noise_scale $scale --fisher_samples 200; done
  n=0; for lr in 3e-5 1e-4 2e-4 3e-4 4e-4 5e-4;     do n=$((n + 1)); try be $n --lr $lr --epochs 10; done
  n=0; for lr in 1e-4 2e-4 3e-4 4e-4 5e-4 7e-4;     do n=$((n + 1)); try bs $n --lr $lr --epochs 10; done
  n=0; for lr in 0.1 0.2; do for gamma in 1e-5 3e-5 1e-4; do n=$((n + 1)); try l1_sparse $n --lr $lr --gamma $gamma --epochs 10; done; done
  n=0; for lr in 1e-4 3e-4 1e-3; do for ratio in 0.3 0.5; do n=$((n + 1)); try salun $n --lr $lr --epochs 10 --mask_path "$R/mask_$ratio"; done; done
  n=0; for lr in 1e-4 3e-4 1e-3; do for ratio in 0.3 0.5; do n=$((n + 1)); try salun_soft $n --lr $lr --epochs 10 --mask_ratio $ratio; done; done
  n=0; for lr in 0.1 0.2 0.3; do for beta in 0.9 0.95; do n=$((n + 1)); try neggrad_plus $n --lr $lr --beta $beta --epochs 5; done; done
  n=0; for lr in 0.01 0.03 0.1; do for ascent in 2 5; do n=$((n + 1)); try scrub $n --lr $lr --ascent_epochs $ascent --epochs 10 --alpha 1 --gamma 1 --decay_epochs; done; done
  n=0; for alpha in auto 95% 99%; do for lambda in 1 5; do n=$((n + 1)); try ssd $n --ssd_alpha $alpha --ssd_lambda $lambda; done; done
  n=0; for lr in 2e-4 3e-4 5e-4 7e-4 1e-3 2e-3;     do n=$((n + 1)); try bad_teacher $n --lr $lr; done
  n=0; for lr in 0.01 0.05 0.1; do for alpha in 25 100; do n=$((n + 1)); try sfron $n --lr $lr --forget_alpha $alpha --steps 200; done; done
  n=0; for lr in 0.005 0.02 0.05; do for weight in 0.05 0.2; do n=$((n + 1)); try scissorhands $n --lr $lr --trim_layers fc --forget_weight $weight; done; done
  n=0; for lr in 0.003 0.005 0.01 0.02 0.03 0.05;   do n=$((n + 1)); try munba $n --lr $lr; done
  python evaluate.py --model_path "${runs[@]}" --held_out val --precision fp32 --resume
done
python table.py "$OUT" --by_options
