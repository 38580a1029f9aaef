#!/usr/bin/env bash
# Paper, appendix: CIFAR-100, ResNet-18, 10 % random forgetting. Forget and retain samples are mixed in each batch, as in the official
# release for this data set.
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, which has their sources.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/cifar100.sh --data_dir ~/data
set -euo pipefail
dataset=cifar100 mix=--mix forget_value=0.1 folder=cifar100
source "$(dirname "$0")/table1_10.sh"
