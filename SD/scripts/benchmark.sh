#!/usr/bin/env bash
# Speed and memory: a cached step against one that encodes its images and prompts again, and the U-Net of Stable Diffusion v1 at full size.
# Ten minutes on two CPU cores, up to 20 GiB of memory. Expect: encoding every step costs more than the step itself; a mask file of 107 MB.
set -euo pipefail
source "$(dirname "$0")/common.sh"
OUT=${OUT:-runs/benchmark}
python benchmark.py --folder "$OUT"
