#!/usr/bin/env bash
# Paper, Table 1, left: CIFAR-10, ResNet-18, 10 % random forgetting (4,500 of 45,000). Needs a GPU for hours; not run by this project.
# The paper's rows to expect, UA / RA / TA / MIA / average gap: Retrain 5.24 / 100 / 94.26 / 12.88 / 0, SalUn 2.85 / 99.62 / 93.93 / 14.39 / 1.15,
# SalUn-soft 4.19 / 99.74 / 93.44 / 19.49 / 2.19, RL 7.61 / 99.67 / 92.83 / 37.36 / 7.15. All rows are in README.md.
# Where each setting comes from. Training and SalUn (SGD 0.1, 182 epochs; lr 0.013, 10 epochs, ratio 0.5): README.md and arg_parser.py of the
# official release. RL and SalUn-soft: taken over from SalUn, the release states none; SalUn-soft mixes where its RL_pro.py does, on
# CIFAR-10, CIFAR-100 and Tiny-ImageNet. FT, GA and the rate of l1-sparse: README of Unlearn-Sparse. IU's scale of 10 and l1-sparse's gamma
# of 1e-4: the commands of Scissorhands' authors for the release's code on this setting (sh/main_0.1_cifar10.sh), the release states none.
# BE and BS: boundary_unlearning.py of their authors, for whole classes; Scissorhands' authors run them at 1e-6 here.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/table1_10.sh --data_dir ~/data
# The other scripts of the paper's settings set the lower-case variables and run this one, so a changed setting is one edit here.
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/${folder:-table1_10}}${below:-}
DATA_DIR=${DATA_DIR:-data}
dataset=${dataset:-cifar10}
arch=${arch:-resnet18}
train_lr=${train_lr:-0.1}
forget_set=("${forget_flag:---num_forget}" "${forget_value:-4500}")
mix=${mix:-}  # --mix: forget and retain samples in the same batches, for SalUn and RL as in the release's RL.py

for seed in ${SEEDS:-1 2 3}; do
  R=$OUT/seed$seed
  forget=(--model_path "$R/original" "${forget_set[@]}" --seed "$seed")
  python train.py --dataset $dataset --data_dir "$DATA_DIR" --arch $arch --epochs 182 --lr $train_lr --batch_size 256 --schedule step --momentum 0.9 --weight_decay 5e-4 --val_fraction ${val_fraction:-0.1} --seed "$seed" --split_seed "$seed" --save_dir "$R/original" --resume
  python generate_mask.py --model_path "$R/original" "${forget_set[@]}" --mask_ratio 0.5 --save_dir "$R/mask" --resume
  python unlearn.py --method retrain    "${forget[@]}" --save_dir "$R/retrain" --resume
  python unlearn.py --method ft         "${forget[@]}" --lr 0.01 --epochs 10 --save_dir "$R/ft" --resume
  python unlearn.py --method rl         "${forget[@]}" --lr 0.013 --epochs 10 --alpha 1 $mix --save_dir "$R/rl" --resume
  python unlearn.py --method ga         "${forget[@]}" --lr 1e-4 --epochs 5 --save_dir "$R/ga" --resume
  python unlearn.py --method iu         "${forget[@]}" --iu_scale 10 --fisher_samples 1000 --save_dir "$R/iu" --resume
  python unlearn.py --method be         "${forget[@]}" --lr 1e-5 --epochs 10 --save_dir "$R/be" --resume
  python unlearn.py --method bs         "${forget[@]}" --lr 1e-5 --epochs 10 --fgsm_bound 0.1 --save_dir "$R/bs" --resume
  python unlearn.py --method l1_sparse  "${forget[@]}" --lr 0.01 --epochs 10 --gamma 1e-4 --save_dir "$R/l1_sparse" --resume
  python unlearn.py --method salun      "${forget[@]}" --lr 0.013 --epochs 10 --alpha 1 $mix --mask_path "$R/mask" --save_dir "$R/salun" --resume
  python unlearn.py --method salun_soft "${forget[@]}" --lr 0.013 --epochs 10 --alpha 1 $mix --mask_ratio 0.5 --save_dir "$R/salun_soft" --resume
  python evaluate.py --model_path "$R/original" "${forget_set[@]}" --save_dir "$R/evaluated_original" --resume
  python evaluate.py --model_path "$R"/{retrain,ft,rl,ga,iu,be,bs,l1_sparse,salun,salun_soft} --resume
done
python table.py "$OUT"
