#!/usr/bin/env bash
# Speed and memory of the mask and the loop, as ratios and sizes: the figures of "Speed and memory" in README.md.
# About ten minutes on two CPU cores; needs CIFAR-10 (downloaded, or cifar10.npz in --data_dir) and 6 GB of memory.
#   bash scripts/benchmark.sh --data_dir ~/data
set -euo pipefail
source "$(dirname "$0")/common.sh"
python benchmark.py --data_dir "${DATA_DIR:-data}" --folder "${OUT:-runs/benchmark}" --rounds 7 --epochs 2
