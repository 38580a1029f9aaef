#!/usr/bin/env bash
# Speed and memory: a cached step against one that encodes its images and prompts again, the U-Nets of Stable Diffusion v1 and XL at full size,
# and what larger models take. About a quarter of an hour on two CPU cores, up to 20 GiB of memory. Expect: a mask file of 107 MB for v1.
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/benchmark}
python benchmark.py --folder "$OUT"
