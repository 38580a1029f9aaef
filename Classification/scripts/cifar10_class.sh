#!/usr/bin/env bash
# Paper, appendix: CIFAR-10, ResNet-18, class-wise forgetting. CLASS=3 forgets another class than airplane (0).
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, which has their sources.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/cifar10_class.sh --data_dir ~/data
set -euo pipefail
CLASS=${CLASS:-0}
forget_flag=--forget_class forget_value="$CLASS" folder=cifar10_class below="/class$CLASS"
source "$(dirname "$0")/table1_10.sh"
