#!/usr/bin/env bash
# The paper's STL-10 experiment at 64 px, CLASS=0 to 9 in turn. Needs a GPU for weeks; not run by this project. Its figures could not be found.
# U-Net, 250,000 steps of training and all 13,000 labelled images are the official release's. All other settings are those of cifar10_table.sh.
# The release has none for SalUn here. It draws from averaged weights, and its SA takes batches of 64. Here the last weights are drawn, and SA takes 128.
# The original is trained and drawn once for all classes. Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   for c in 0 1 2 3 4 5 6 7 8 9; do CLASS=$c DATA_DIR=~/data bash scripts/stl10_table.sh; done
set -euo pipefail
dataset=stl10 arch=unet128_deep train_steps=250000 with_test=--with_test folder=stl10_table
source "$(dirname "$0")/cifar10_table.sh"
