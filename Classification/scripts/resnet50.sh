#!/usr/bin/env bash
# Paper, appendix: CIFAR-10, ResNet-50, 10 % random forgetting.
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, which has their sources.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/resnet50.sh --data_dir ~/data
set -euo pipefail
arch=resnet50 forget_value=0.1 folder=resnet50
source "$(dirname "$0")/table1_10.sh"
