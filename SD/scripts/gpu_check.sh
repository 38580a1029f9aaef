#!/usr/bin/env bash
# Does a GPU give what the CPU gives, and how fast is it? One JSON line per check, meant for a few minutes on one GPU, where it has not
# run yet. Without a GPU it says so and ends. Exit status 1 if a command fails.
#   bash scripts/gpu_check.sh > gpu_check.jsonl        DEVICE=cpu compares the CPU with itself
# In under a minute: DIVIDE=8
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda}
found=$(python -c 'import torch; print(torch.cuda.is_available())')
if [[ $DEVICE == cuda && $found == False ]]; then
  echo '{"check": "gpu", "found": false}'
  exit 0
fi
R=$(mktemp -d)
trap 'rm -rf "$R"' EXIT
python train.py --from_scratch --dataset digits --arch tiny --vae_steps 50 --steps 50 --lr 1e-3 --batch_size 32 --data_dir "$R/data" --precision fp32 --device cpu --save_dir "$R/original" >&2
for device in cpu "$DEVICE"; do
  on=$([[ -e $R/mask_cpu ]] && echo device || echo cpu)
  python generate_mask.py --model_path "$R/original" --forget_class three --device "$device" --save_dir "$R/mask_$on" >&2
  python unlearn.py --model_path "$R/original" --mask_path "$R/mask_cpu" --forget_class three --steps 1 --batch_size 32 --precision fp32 --device "$device" --save_dir "$R/step_$on" >&2
done
for precision in bf16 $([[ $DEVICE == cuda ]] && echo fp16); do
  python unlearn.py --model_path "$R/original" --mask_path "$R/mask_cpu" --forget_class three --steps 1 --batch_size 32 --precision "$precision" --device "$DEVICE" --save_dir "$R/step_$precision" >&2
done
python - "$R" "$DEVICE" <<'END'
import csv
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

root, device = Path(sys.argv[1]), sys.argv[2]
weights = {name: load_file(root / f"step_{name}" / "model/unet/diffusion_pytorch_model.safetensors") for name in ("cpu", "device")}
logs = {path.name[5:]: list(csv.DictReader((path / "log.csv").open())) for path in root.glob("step_*") if (path / "done.json").is_file()}


def losses(name):
    return {term: float(row[term]) for row in logs[name] for term in ("forget", "retain") if row[term]}


name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
print(json.dumps({"check": "gpu", "found": device == "cuda", "name": name, "torch": torch.__version__}))
cpu, gpu = (load_file(root / f"mask_{on}" / "mask.safetensors") for on in ("cpu", "device"))
differing = sum(torch.bitwise_xor(cpu[key], gpu[key]).int().apply_(lambda byte: byte.bit_count()).sum().item() for key in cpu)
print(json.dumps({"check": "mask", "differing bits": differing, "of": 8 * sum(part.numel() for part in cpu.values())}))
print(json.dumps({"check": "losses of one step", "cpu": losses("cpu"), **{on: losses(on) for on in logs if on != "cpu"}}))
apart = max((weights["cpu"][key].double() - weights["device"][key].double()).abs().max().item() for key in weights["cpu"])
print(json.dumps({"check": "weights after one step", "largest difference": apart}))
for on in logs:
    print(json.dumps({"check": f"peak memory, {on}", "MB": json.loads((root / f"step_{on}" / "done.json").read_text())["peak_memory_mb"]}))
END
for precision in fp32 bf16; do
  for part in sd-mask sd-masked sd-dense; do
    figures=$(python benchmark.py --part $part --folder "$R/benchmark" --device "$DEVICE" --precision "$precision" --divide "${DIVIDE:-1}" | tail -n 1)
    printf '{"check": "Stable Diffusion v1'"'"'s U-Net, %s, %s", "figures": %s}\n' "$part" "$precision" "$figures"
  done
done
