#!/usr/bin/env bash
# Does SalUn do what its paper's Table 1 claims, and what does its mask do? CIFAR-10, a small wide network that fits its 26,000 training
# images: 10 % or 50 % random images or one class (CLASS=3) are forgotten. The section "CIFAR-10" of README.md.
# PARTS (default: all, in this order):
#   search        10 % forgotten: eight settings for every method, for other kinds of masks and for other shares of weights in them
#   search50      50 % forgotten, search_class: one class forgotten: eight settings for the methods that matter most
#   random10      10 % forgotten, another set in each run, with the settings that the search chose
#   masks10       10 % forgotten: RL and SalUn under five masks, masks_class: one class forgotten: RL and SalUn under two, at six rates each
#   random50      50 % forgotten, the same set in all runs; class: one class forgotten
#   floor         three models retrained without the set that seed 1 of random10 forgets: the noise of a single model
# The search has seeds of its own (SEARCH_SEEDS=), 101 and 102, the other parts 1 to 5 (SEEDS=). A seed has its own original in all
# parts. Training images and validation split are the same for all: validation images stand for data never seen. A method takes one
# epoch, 6 % of the original's training, which is the paper's share. Those that read the forget set alone take five where it is small.
# Masks, IU and SSD are computed in fp32, the rest in bf16, which halves the time on a CPU with AVX512-BF16. For other CPUs, PRECISION=fp32.
# Finished runs are skipped and an interrupted run continues. Seeds can run in parallel: run all of them once more to make
# the tables. For a quick look, TRIES=2 takes two settings of each method.
#   PARTS=search SEARCH_SEEDS=101 METHODS="rl salun" bash scripts/evidence.sh --data_dir ~/data
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/evidence}
DATA_DIR=${DATA_DIR:-data}
CLASS=${CLASS:-3}
PARTS=${PARTS:-search search50 search_class random10 masks10 random50 class masks_class floor}
TRIES=${TRIES:-8}  # 2, 4, 6 or 8
PRECISION=${PRECISION:-bf16}
KNOWN="ft rl bs l1_sparse scrub salun salun_soft ga iu be neggrad_plus ssd bad_teacher sfron scissorhands munba"
for name in ${METHODS:-}; do
  [[ " $KNOWN " == *" $name "* ]] || { echo "error: METHODS=$name is none of $KNOWN" >&2; exit 1; }
done
[[ -z ${METHODS:-} || " $METHODS " =~ \ (ft|rl|bs|l1_sparse|scrub|salun|salun_soft|neggrad_plus)\  ]] || {
  echo "error: METHODS must name one of ft rl bs l1_sparse scrub salun salun_soft neggrad_plus: every part has these" >&2
  exit 1
}
[[ $TRIES =~ ^[2468]$ ]] || { echo "error: TRIES=$TRIES must be 2, 4, 6 or 8" >&2; exit 1; }
FIRST="0.003 0.006 0.013 0.025"
MIXED="0.013 0.025 0.05 0.1"

wanted() { [[ " retrain ${METHODS:-$1} " == *" $1 "* ]]; }
wanted rl || wanted salun || PARTS=$(printf '%s\n' $PARTS | grep -v ^masks || true)  # these parts have no other method
[[ -n $PARTS ]] || { echo "error: the masks parts need rl or salun in METHODS" >&2; exit 1; }

begin() {  # begin SEED FORGET...: the seed's original, which all parts share, and its retrained model
  seed=$1
  R=$OUT/$part/seed$seed
  original=$OUT/originals/seed$seed
  forget=("${@:2}")
  runs=()
  python train.py --dataset cifar10 --data_dir "$DATA_DIR" --arch wide_resnet6 --limit 26000 --crop 0 --epochs 18 --lr 0.1 --batch_size 128 --schedule linear --seed "$seed" --split_seed 1 --precision "$PRECISION" --save_dir "$original" --resume
  run retrain retrain
}

mask() {  # mask NAME FLAGS...
  if wanted salun; then
    python generate_mask.py --model_path "$original" "${forget[@]}" --seed "$seed" --precision fp32 --save_dir "$R/mask_$1" --resume "${@:2}"
  fi
}

run() {  # run NAME METHOD FLAGS...
  if wanted "$2"; then
    python unlearn.py --method "$2" --model_path "$original" "${forget[@]}" --seed "$seed" --precision "$PRECISION" --save_dir "$R/$1" --resume "${@:3}"
    runs+=("$R/$1")
  fi
}

measure() {  # measure FLAGS...: the original and all runs of this part
  python evaluate.py --model_path "$original" "${forget[@]}" --precision "$PRECISION" --save_dir "$R/evaluated_original" --resume "$@"
  python evaluate.py --model_path "${runs[@]}" --precision "$PRECISION" --resume "$@"
}

grid() {  # grid NAME METHOD FLAG "VALUES" FLAGS...: a run for each value
  local value values=($4)
  for value in "${values[@]:0:${#values[@]} * TRIES / 8}"; do run "$1_$value" "$2" "$3" "$value" "${@:5}"; done
}

both() {  # both NAME METHOD "RATES" "MIXED RATES" FLAGS...: the forget images first, as in the release on CIFAR-10, and all images mixed
  grid "$1" "$2" --lr "$3" --epochs 1 "${@:5}"
  grid "$1_mixed" "$2" --lr "$4" --epochs 1 --mix "${@:5}"
}

few() {  # of the methods that every table has. few EPOCHS "FIRST" "512" "128" "BOTH": passes of BS over the forget set, rates of RL and SalUn
  # with the forget images first, of SCRUB with its two sizes of batches, of NegGrad+
  grid ft ft --lr "0.005 0.01 0.02 0.04 0.08 0.16 0.32 0.64" --epochs 1
  both rl rl "$2" "$MIXED"
  grid bs bs --lr "1e-5 3e-5 6e-5 1e-4 2e-4 3e-4 6e-4 1e-3" --epochs "$1"
  grid l1_sparse_1e-4 l1_sparse --lr "0.02 0.05 0.1 0.2" --epochs 1 --gamma 1e-4
  grid l1_sparse_5e-4 l1_sparse --lr "0.02 0.05 0.1 0.2" --epochs 1 --gamma 5e-4
  grid scrub_512 scrub --lr "$3" --epochs 1 --ascent_epochs 1 --forget_batch_size 512
  grid scrub_128 scrub --lr "$4" --epochs 1 --ascent_epochs 1 --forget_batch_size 128
  mask saliency --mask_ratio 0.5
  both salun salun "$2" "$MIXED" --mask_path "$R/mask_saliency"
  grid salun_soft salun_soft --lr "0.003 0.006 0.013 0.025 0.05 0.1 0.2 0.4" --epochs 1
  grid neggrad_plus_0.95 neggrad_plus --lr "$5" --epochs 1 --beta 0.95
  grid neggrad_plus_0.99 neggrad_plus --lr "$5" --epochs 1 --beta 0.99
}

more() {
  grid ga ga --lr "1e-4 3e-4 1e-3 2e-3 4e-3 8e-3 0.016 0.03" --epochs 5
  grid iu iu --iu_scale "0.1 0.3 1 3 10 30 100 300" --precision fp32
  grid be be --lr "1e-5 3e-5 6e-5 1e-4 2e-4 3e-4 6e-4 1e-3" --epochs 5
  grid ssd_1 ssd --ssd_alpha "80% 90% 95% auto" --ssd_lambda 1 --precision fp32
  grid ssd_0.3 ssd --ssd_alpha "80% 90% 95% auto" --ssd_lambda 0.3 --precision fp32
  grid bad_teacher bad_teacher --lr "1e-4 2e-4 5e-4 1e-3 2e-3 4e-3 8e-3 0.016"
  grid sfron_25 sfron --lr "0.01 0.03 0.06 0.12" --steps 200 --forget_alpha 25
  grid sfron_100 sfron --lr "0.01 0.03 0.06 0.12" --steps 200 --forget_alpha 100
  grid scissorhands_0.05 scissorhands --lr "0.005 0.02 0.05 0.1" --epochs 1 --trim_layers blocks.1 fc --forget_weight 0.05
  grid scissorhands_0.2 scissorhands --lr "0.005 0.02 0.05 0.1" --epochs 1 --trim_layers blocks.1 fc --forget_weight 0.2
  grid munba munba --lr "0.001 0.003 0.005 0.01 0.02 0.04 0.08 0.16" --epochs 1
}

masks() {
  for kind in random layerwise magnitude; do
    mask $kind --mask_ratio 0.5 --mask_kind $kind
    both salun_$kind salun "$FIRST" "$MIXED" --mask_path "$R/mask_$kind"
  done
  mask least_salient --mask_ratio 0.5 --mask_kind least_salient
  both salun_least_salient salun "0.025 0.05 0.1 0.2" "0.05 0.1 0.2 0.4" --mask_path "$R/mask_least_salient"
  for ratio in 0.1 0.3 0.7 0.9; do
    mask $ratio --mask_ratio $ratio
    both salun_$ratio salun "$FIRST" "$MIXED" --mask_path "$R/mask_$ratio" --setting "ratio $ratio"
  done
}

seeds_of() {
  case $1 in
    search | search50 | search_class) echo ${SEARCH_SEEDS:-101 102} ;;
    random10 | masks10 | random50 | class | masks_class) echo ${SEEDS:-1 2 3 4 5} ;;
    floor) echo 1 ;;
    *) echo "error: no part $1" >&2; return 1 ;;
  esac
}

for part in $PARTS; do
  seeds=$(seeds_of "$part")
  for s in $seeds; do
    case $part in
      search)
        begin "$s" --num_forget 0.1 --split_seed "$s"
        few 5 "$FIRST" "2e-3 0.008 0.03 0.06" "5e-4 2e-3 0.004 0.008" "0.03 0.06 0.12 0.24"
        masks
        more
        ;;
      search50)
        begin "$s" --num_forget 0.5 --split_seed "$s"
        few 1 "$FIRST" "2e-3 0.003 0.004 0.006" "1e-4 2e-4 3e-4 5e-4" "0.12 0.24 0.48 0.96"  # SCRUB's ascent over more images runs away sooner
        ;;
      search_class)
        begin "$s" --forget_class "$CLASS"
        few 5 "0.006 0.013 0.025 0.05" "2e-3 0.008 0.03 0.06" "5e-4 1e-3 2e-3 0.004" "0.008 0.015 0.03 0.06"
        ;;
      random10)
        begin "$s" --num_forget 0.1 --split_seed "$s"
        run ft ft --lr 0.08 --epochs 1
        run rl rl --lr 0.025 --epochs 1 --mix
        run ga ga --lr 1e-3 --epochs 5
        run iu iu --iu_scale 30 --precision fp32
        run be be --lr 6e-5 --epochs 5
        run bs bs --lr 1e-4 --epochs 5
        run l1_sparse l1_sparse --lr 0.05 --epochs 1 --gamma 1e-4
        mask saliency --mask_ratio 0.5
        run salun salun --lr 0.025 --epochs 1 --mix --mask_path "$R/mask_saliency"
        run salun_soft salun_soft --lr 0.05 --epochs 1
        run neggrad_plus neggrad_plus --lr 0.12 --epochs 1 --beta 0.95
        run scrub scrub --lr 0.03 --epochs 1 --ascent_epochs 1 --forget_batch_size 512
        run ssd ssd --ssd_alpha 90% --ssd_lambda 0.3 --precision fp32
        run bad_teacher bad_teacher --lr 1e-3
        run sfron sfron --lr 0.03 --steps 200 --forget_alpha 100
        run scissorhands scissorhands --lr 0.02 --epochs 1 --trim_layers blocks.1 fc --forget_weight 0.2
        run munba munba --lr 0.08 --epochs 1
        for kind in "random 0.05" "layerwise 0.025" "magnitude 0.05" "least_salient 0.1"; do
          mask ${kind% *} --mask_ratio 0.5 --mask_kind ${kind% *}
          run salun_${kind% *} salun --lr ${kind#* } --epochs 1 --mix --mask_path "$R/mask_${kind% *}"
        done
        for ratio in "0.1 0.1" "0.3 0.05" "0.7 0.025" "0.9 0.025"; do
          mask ${ratio% *} --mask_ratio ${ratio% *}
          run salun_${ratio% *} salun --lr ${ratio#* } --epochs 1 --mix --mask_path "$R/mask_${ratio% *}" --setting "ratio ${ratio% *}"
        done
        ;;
      masks10)
        begin "$s" --num_forget 0.1 --split_seed "$s"
        grid rl rl --lr "0.018 0.025 0.035 0.05 0.07 0.1" --epochs 1 --mix
        for kind in saliency random layerwise magnitude; do
          mask $kind --mask_ratio 0.5 --mask_kind $kind
          grid salun_$kind salun --lr "0.018 0.025 0.035 0.05 0.07 0.1" --epochs 1 --mix --mask_path "$R/mask_$kind"
        done
        mask least_salient --mask_ratio 0.5 --mask_kind least_salient
        grid salun_least_salient salun --lr "0.035 0.05 0.07 0.1 0.14 0.2" --epochs 1 --mix --mask_path "$R/mask_least_salient"
        ;;
      random50)
        begin "$s" --num_forget 0.5 --split_seed 1
        run ft ft --lr 0.08 --epochs 1
        run rl rl --lr 0.025 --epochs 1 --mix
        run bs bs --lr 1e-4 --epochs 1
        run l1_sparse l1_sparse --lr 0.05 --epochs 1 --gamma 1e-4
        mask saliency --mask_ratio 0.5
        run salun salun --lr 0.025 --epochs 1 --mix --mask_path "$R/mask_saliency"
        run salun_soft salun_soft --lr 0.025 --epochs 1
        run neggrad_plus neggrad_plus --lr 0.48 --epochs 1 --beta 0.99
        run scrub scrub --lr 0.003 --epochs 1 --ascent_epochs 1 --forget_batch_size 512
        ;;
      class)
        begin "$s" --forget_class "$CLASS"
        run ft ft --lr 0.08 --epochs 1
        run rl rl --lr 0.013 --epochs 1
        run bs bs --lr 3e-4 --epochs 5
        run l1_sparse l1_sparse --lr 0.05 --epochs 1 --gamma 1e-4
        mask saliency --mask_ratio 0.5
        run salun salun --lr 0.025 --epochs 1 --mask_path "$R/mask_saliency"
        run salun_soft salun_soft --lr 0.013 --epochs 1
        run neggrad_plus neggrad_plus --lr 0.03 --epochs 1 --beta 0.99
        run scrub scrub --lr 0.008 --epochs 1 --ascent_epochs 1 --forget_batch_size 512
        ;;
      masks_class)
        begin "$s" --forget_class "$CLASS"
        grid rl rl --lr "0.006 0.009 0.013 0.018 0.025 0.035" --epochs 1
        for kind in saliency layerwise; do
          mask $kind --mask_ratio 0.5 --mask_kind $kind
          grid salun_$kind salun --lr "0.009 0.013 0.018 0.025 0.035 0.05" --epochs 1 --mask_path "$R/mask_$kind"
        done
        ;;
      floor)
        begin "$s" --num_forget 0.1 --split_seed "$s"
        for again in 2 3; do run retrain_$again retrain --seed $again; done
        ;;
    esac
    if [[ $part == search* ]]; then measure --held_out val --num_retain 2500; else measure --num_retain 5000 --retrain_path "$R/retrain"; fi
  done
done
for part in $PARTS; do
  case $part in
    search* | masks*)
      python table.py "$OUT/$part" --by_options
      python draw_rates.py "$OUT/$part"
      if [[ $part == masks* && $(seeds_of $part) == *\ * ]]; then python table.py "$OUT/$part" --best; fi
      ;;
    *)
      python table.py "$OUT/$part"
      ;;
  esac
  if [[ $part =~ ^(random10|random50|class)$ ]]; then python relearn.py "$OUT/$part" --num_images 100 --epochs 1 5 --lr 0.001 --precision "$PRECISION"; fi
  if [[ $part =~ ^(random50|class)$ && $(seeds_of $part) == *\ * ]]; then python evaluate_many.py "$OUT/$part" --precision "$PRECISION"; fi
done
