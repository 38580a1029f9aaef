#!/usr/bin/env bash
# Paper, Table 1, right: CIFAR-10, ResNet-18, 50 % random forgetting (22,500 of 45,000). Needs a GPU for hours; not run by this project.
# The paper's rows to expect, UA / RA / TA / MIA / average gap: Retrain 7.91 / 100 / 91.72 / 19.29 / 0, SalUn 7.75 / 94.28 / 89.29 / 16.99 / 2.65,
# SalUn-soft 3.41 / 99.62 / 91.82 / 31.50 / 4.30, RL 4.80 / 99.55 / 91.31 / 41.95 / 6.65. All rows are in README.md.
# An independent ten-seed re-run of the fixed release found average gaps of 4.57 for SalUn and 1.71 for SalUn-soft.
# Settings are those of table1_10.sh. SalUn's official ones are known for 10 % only and taken over here.
# Finished runs are skipped and an interrupted run continues. Further flags go to the commands that take them, see --help:
#   SEEDS="1 2 3" bash scripts/table1_50.sh --data_dir ~/data
set -euo pipefail
forget_value=22500 folder=table1_50
source "$(dirname "$0")/table1_10.sh"
