#!/usr/bin/env bash
# Paper, appendix: CIFAR-10, VGG-16 with BatchNorm, 10 % random forgetting.
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, which has their sources.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/vgg16.sh --data_dir ~/data
set -euo pipefail
arch=vgg16_bn forget_value=0.1 folder=vgg16
source "$(dirname "$0")/table1_10.sh"
