#!/usr/bin/env bash
# Paper, appendix: SVHN, ResNet-18, 10 % random forgetting.
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, guesses for this setting.
# Finished runs are skipped, a cut-off run is continued; further flags go to every command:
#   SEEDS="1 2 3" bash scripts/svhn.sh --data_dir ~/data
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/svhn}

for seed in ${SEEDS:-1 2 3}; do
  R=$OUT/seed$seed
  forget="--model_path $R/original --num_forget 0.1 --seed $seed"
  python train.py --dataset svhn --arch resnet18 --epochs 182 --lr 0.1 --batch_size 256 --schedule step --momentum 0.9 --weight_decay 5e-4 --seed "$seed" --split_seed "$seed" --save_dir $R/original --resume "$@"
  python generate_mask.py --model_path $R/original --num_forget 0.1 --mask_ratio 0.5 --save_dir $R/mask --resume "$@"
  python unlearn.py --method retrain    $forget --save_dir $R/retrain --resume "$@"
  python unlearn.py --method ft         $forget --lr 0.01 --epochs 10 --save_dir $R/ft --resume "$@"
  python unlearn.py --method rl         $forget --lr 0.013 --epochs 10 --alpha 1 --save_dir $R/rl --resume "$@"
  python unlearn.py --method ga         $forget --lr 1e-4 --epochs 5 --save_dir $R/ga --resume "$@"
  python unlearn.py --method iu         $forget --iu_scale 10 --fisher_samples 1000 --save_dir $R/iu --resume "$@"
  python unlearn.py --method be         $forget --lr 1e-5 --epochs 10 --save_dir $R/be --resume "$@"
  python unlearn.py --method bs         $forget --lr 1e-5 --epochs 10 --fgsm_bound 0.1 --save_dir $R/bs --resume "$@"
  python unlearn.py --method l1_sparse  $forget --lr 0.01 --epochs 10 --gamma 5e-5 --save_dir $R/l1_sparse --resume "$@"
  python unlearn.py --method salun      $forget --lr 0.013 --epochs 10 --alpha 1 --mask_path $R/mask --save_dir $R/salun --resume "$@"
  python unlearn.py --method salun_soft $forget --lr 0.013 --epochs 10 --alpha 1 --mask_ratio 0.5 --save_dir $R/salun_soft --resume "$@"
  python evaluate.py --model_path $R/original --num_forget 0.1 --save_dir $R/evaluated_original --resume "$@"
  python evaluate.py --model_path $R/{retrain,ft,rl,ga,iu,be,bs,l1_sparse,salun,salun_soft} --resume "$@"
done
python table.py $OUT
