#!/usr/bin/env bash
# Paper, appendix: Tiny-ImageNet, ResNet-18, 10 % random forgetting. Unpack tiny-imagenet-200.zip in --data_dir first. Forget and retain
# samples are mixed in each batch and no training image is held out for validation, as in the official release for this data set. There, half
# of the validation folder is the test set. Here, it is all of it.
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for half a day per seed (an estimate). Settings are those of table1_10.sh, which has their sources.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/tiny_imagenet.sh --data_dir ~/data
set -euo pipefail
dataset=tiny_imagenet mix=--mix val_fraction=0 forget_value=0.1 folder=tiny_imagenet
source "$(dirname "$0")/table1_10.sh"
