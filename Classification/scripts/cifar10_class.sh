#!/usr/bin/env bash
# Paper, appendix: CIFAR-10, ResNet-18, class-wise forgetting. CLASS=3 forgets another class than airplane (0).
# The paper reports this setting in its appendix; no figure of it is repeated here because none could be checked. Not run by this
# project: it needs a GPU for hours. Settings are those of table1_10.sh, guesses for this setting.
# Finished runs are skipped, a cut-off run is continued; further flags go to every command:
#   SEEDS="1 2 3" bash scripts/cifar10_class.sh --data_dir ~/data
set -euo pipefail
CLASS=${CLASS:-0}
export forget_set="--forget_class $CLASS" OUT="${OUT:-runs/cifar10_class}/class$CLASS"
exec bash "$(dirname "$0")/table1_10.sh" "$@"
