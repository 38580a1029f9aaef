"""Run every shell script of the three folders from end to end, shrunk to a few images and steps: does the recipe work as it stands?

    python .ci/scripts.py                                         all scripts, two at a time
    python .ci/scripts.py --folders DDPM --only digits_table.sh own_data.sh

Each runs in a copy of its folder below a path with a space in it, started from a third folder, with relative paths. Data sets are made
here, of random images, in the data sets' own formats or as .npz. Nothing is downloaded: stand-ins take the place of Stable Diffusion and
CLIP (tiny ones with random weights), of an ImageNet classifier (a small one of random images) and of NudeNet (it finds nothing). The
paper's DDPM scripts have the smallest U-Net. So the numbers mean nothing here. Prints a line per script, with its seconds. Exit status 1
if one failed.

Most of such a run would be imports. So `python FILE.py` in a script asks a process that has imported the libraries to fork, and the fork
runs the file.
"""

import argparse
import atexit
import contextlib
import gc
import json
import os
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("Classification", "DDPM", "SD")
# What a script is given: variables, then flags. A script that is not named is given its folder's.
PAPER = "LIMIT=30 EPOCHS=1 BATCH_SIZE=32 --lr 1e-3 --fisher_samples 4 --iu_scale 0.1"  # the paper's numbers overflow in so few steps
REPLAY = "--replay 2 --replay_steps 2 --fisher_timesteps 2"
DIGITS = "EPOCHS=1 STEPS=2 SAMPLING_STEPS=2 NUM_SAMPLES=2 LIMIT=60"
MODEL = "STEPS=2 SAMPLING_STEPS=2 NUM_SAMPLES=2 BATCH_SIZE=4 MODEL=stand-ins/sd MEMORY=--gradient_checkpointing"
DRAWN = f"{MODEL} EPOCHS=1 NUM_IMAGES=4 CLIP=stand-ins/clip"
JUDGED = f"{DRAWN} CLASSIFIER=stand-ins/classifier --features classifier"
OWN = 'DATA="own photos" CLASS="golden retriever"'
GPU_CHECK = "DEVICE=cpu ROUNDS=1 BATCH_SIZE=2 DIVIDE=8"
CASES = {
    "Classification": f"NUM_FORGET=6 {PAPER}",
    "Classification/benchmark.sh": "BATCH_SIZE=8 EPOCHS=1 --rounds 1",
    "Classification/cifar10_class.sh": f"CLASS=3 {PAPER}",
    "Classification/evidence.sh": "SEARCH_SEEDS=101 SEEDS='1 2' TRIES=2 LIMIT=100 EPOCHS=1 BATCH_SIZE=32 NUM_IMAGES=3 --fisher_samples 4",
    "Classification/gpu_check.sh": GPU_CHECK,
    "Classification/own_data.sh": f"{OWN} EPOCHS=1 BATCH_SIZE=8 IMAGE_SIZE=32",
    "Classification/many_digits.sh": "NUM_FORGET=20 LIMIT=200 EPOCHS=1 STEPS=2 SEEDS='1 2'",
    "Classification/quickstart.sh": "NUM_FORGET=20 LIMIT=200 EPOCHS=1 STEPS=2",
    "Classification/tune_digits.sh": "NUM_FORGET=20 LIMIT=200 EPOCHS=1 STEPS=2 SEEDS=101",
    "DDPM": f"{DIGITS} BATCH_SIZE=2 --arch unet32 --features classifier --pretrained none {REPLAY} --sample_steps 2",
    "DDPM/benchmark.sh": "EPOCHS=1 STEPS=2 NUM_SAMPLES=1 LIMIT=60 BATCH_SIZE=1 --rounds 1",
    "DDPM/cifar10_cpu.sh": f"{DIGITS} CLASS=0 SEARCH_CLASS=5 CLASSES='0 1 5 6 7 8' NUM_SAMPLES=3 BATCH_SIZE=8 --sample_steps 2",
    "DDPM/digits_table.sh": f"{DIGITS} NUM_IMAGES=2 {REPLAY}",
    "DDPM/fashion_mnist.sh": f"{DIGITS} BATCH_SIZE=8 --sample_steps 2 --num_reference 20",
    "DDPM/gpu_check.sh": GPU_CHECK,
    "DDPM/own_data.sh": f"{OWN} {DIGITS} NUM_SAMPLES=6 BATCH_SIZE=2 IMAGE_SIZE=16 --pretrained none --arch unet32",
    "DDPM/quickstart.sh": DIGITS,
    "DDPM/tune_digits.sh": f"{DIGITS} {REPLAY}",
    "SD": f"{DRAWN} --features none",
    "SD/benchmark.sh": "--divide 8 --rounds 1",
    "SD/digits_table.sh": f"{DIGITS} --vae_steps 2",
    "SD/esd.sh": MODEL,
    "SD/families.sh": f"FAMILIES=flux {DIGITS} --vae_steps 2",
    "SD/gpu_check.sh": GPU_CHECK,
    "SD/imagenette_class.sh": f'CLASS="garbage truck" METHODS="ga ga_retain rl esd fmn salun salun_soft uce ca" {JUDGED}',
    "SD/imagenette_table.sh": f'CLASSES="church garbage_truck" METHODS="salun uce ca" {JUDGED}',
    "SD/nudity.sh": f"{MODEL} EPOCHS=1 --features none",
    "SD/own_concept.sh": DRAWN,
    "SD/quickstart.sh": f"{DIGITS} --vae_steps 2",
    "SD/tune_digits.sh": f"{DIGITS} --vae_steps 2",
}
STAND_INS = {
    "esd.sh": "a tiny Stable Diffusion",
    "imagenette_class.sh": "a tiny Stable Diffusion, a classifier of random images",
    "imagenette_table.sh": "a tiny Stable Diffusion, a classifier of random images",
    "nudity.sh": "a tiny Stable Diffusion, a NudeNet that finds nothing",
    "object.sh": "a tiny Stable Diffusion, a tiny CLIP",
    "own_concept.sh": "a tiny Stable Diffusion",
    "style.sh": "a tiny Stable Diffusion, a tiny CLIP",
}
SETS = {
    "cifar10": (32, 3, 10),
    "cifar100": (32, 3, 100),
    "svhn": (32, 3, 10),
    "stl10": (64, 3, 10),
    "fashion_mnist": (28, 1, 10),
}  # px, channels, classes
IMAGENETTE = "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257"


def write_photos(folder, count, size):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(256, size=(size, size + 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number}.JPEG")


def write_data(home):
    """Random images as cifar10.npz and so on, Tiny-ImageNet and Imagenette as they are unpacked, and a folder of one's own photographs."""
    data, draw = home / "data sets", np.random.default_rng(0)
    data.mkdir()
    for name, (size, channels, classes) in SETS.items():
        counts = {"train": 12 * classes, "test": max(classes, 20)}
        arrays = {f"x_{part}": draw.integers(256, size=(n, size, size, channels), dtype=np.uint8) for part, n in counts.items()}
        arrays |= {f"y_{part}": np.arange(n) % classes for part, n in counts.items()}
        np.savez(data / f"{name}.npz", **arrays)
    tiny = data / "tiny-imagenet-200"
    wnids = IMAGENETTE.split()
    for wnid in wnids:
        write_photos(tiny / "train" / wnid / "images", 12, 64)
        for part in ("train", "val"):
            write_photos(data / "imagenette2" / part / wnid, 3, 32)
    write_photos(tiny / "val" / "images", 20, 64)
    rows = (f"images_{number}.JPEG\t{wnids[number % 10]}\t0\t0\t62\t62\n" for number in range(20))
    (tiny / "val" / "val_annotations.txt").write_text("".join(rows))
    for name in ("golden retriever", "tabby cat", "3"):
        write_photos(home / "own photos" / name, 12, 40)


def write_clip(folder):
    """A CLIP with random weights, letters as tokens and images of 16 px."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(str(folder))).save_pretrained(folder)
    layer = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)
    text = layer | special | dict(vocab_size=len(tokens), max_position_embeddings=8)
    CLIPModel(CLIPConfig(text_config=text, vision_config=layer | dict(image_size=16, patch_size=8), projection_dim=16)).save_pretrained(
        folder
    )


def write_stand_ins(home):
    """stand-ins/: what the scripts of SD would have to download."""
    folder = home / "stand-ins"
    folder.mkdir()
    (folder / "nudenet.py").write_text("class NudeDetector:\n    def detect(self, path):\n        return []\n")
    write_clip(folder / "clip")
    for command in (
        "train.py --from_scratch --dataset digits --vae_steps 2 --steps 2 --save_dir ../stand-ins/sd",
        "train_classifier.py --dataset imagenette --epochs 1 --save_dir ../stand-ins/classifier",
    ):
        if run([sys.executable, *command.split(), "--data_dir", home / "data sets"], home / "SD", {}, folder / "log"):
            sys.exit((folder / "log").read_text(errors="replace"))


ASK = """#!{python} -SE
import json, os, socket, sys
if not sys.argv[1:2] or not sys.argv[1].endswith(".py"):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(8)
sys.exit(int(status) if status else "the process that imported the libraries has ended")
"""


def serve(address):
    """Import the libraries, then run a file in a fork for each request at the socket `address`. Never returns."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.svm  # noqa: F401
    import torchvision  # noqa: F401
    from diffusers import StableDiffusionPipeline  # noqa: F401

    gc.freeze()  # or each fork copies what was imported when it collects garbage
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            client, _ = server.accept()
            if os.fork():  # the server goes on; it collects those that ended
                client.close()
                with contextlib.suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                continue
            _, standard, _, _ = socket.recv_fds(client, 1, 3)
            words, folder, environment = json.load(client.makefile("rb"))
            if child := os.fork():  # waits for the one that runs the file
                client.sendall(b"%d" % (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256))
                os._exit(0)
            client.close()
            break
    for number, opened in enumerate(standard):
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    sys.path[:1] = [str(Path(words[0]).resolve().parent), *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    status = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking down all that was imported would be most of a short command's time


@contextlib.contextmanager
def warm_python(home):
    """home/bin/python for as long as the block lasts."""
    address, python = home / "socket", home / "bin" / "python"
    python.parent.mkdir()
    python.write_text(ASK.format(python=sys.executable, address=address))
    python.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, "--serve", address], env=os.environ | QUIET)
    try:
        while not address.exists():
            if server.poll() is not None:
                sys.exit("error: the libraries cannot be imported, see above")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()


QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def run(command, where, variables, log):
    """Exit status of a command that is cut off from every hub; what it says goes to a file."""
    path = f"{log.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("ab") as file:
        environment = os.environ | QUIET | {"PATH": path, "XDG_CACHE_HOME": str(log.parent / "cache")} | variables
        return subprocess.run(command, cwd=where, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode


def try_script(name, home):
    """Run FOLDER/NAME.sh and print a line. Return whether it ended well."""
    words = shlex.split(CASES.get(name) or CASES[name.split("/")[0]])
    start = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    variables, flags, where = dict(word.split("=", 1) for word in words[:start]), words[start:], home / "a third folder"
    folder, script = name.split("/")
    out, log = Path(f"../runs of {folder}/{script}"), home / f"{folder} {script}.log"
    common = {"SEEDS": "1", "OUT": str(out), "DATA_DIR": "../data sets"}
    moved = {key: f"../{value}" for key, value in variables.items() if (home / value).exists()}
    if script == "nudity.sh":
        moved["PYTHONPATH"] = str(home / "stand-ins")
    began = time.monotonic()
    status = run(["bash", home / folder / "scripts" / script, *flags], where, common | variables | moved, log)
    stand_ins = f"  (with stand-ins: {STAND_INS[script]})" if script in STAND_INS else ""
    print(f"{'failed' if status else 'ok':6s} {time.monotonic() - began:5.0f} s  {name}{stand_ins}", flush=True)
    if status:
        print("\n".join(f"         {line}" for line in log.read_text(errors="replace").splitlines()[-12:]), flush=True)
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=FOLDERS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scripts (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time (default: 2)")
    args = parser.parse_args()
    names = [f"{folder}/{path.name}" for folder in args.folders for path in sorted((ROOT / folder / "scripts").glob("*.sh"))]
    names = [name for name in names if not name.endswith("/common.sh") and (not args.only or name.split("/")[1] in args.only)]
    if not names:
        parser.error(f"there is no script {' or '.join(args.only)} in {', '.join(args.folders)}")
    with tempfile.TemporaryDirectory(prefix="smoke run ") as temporary:
        home = Path(temporary)
        (home / "a third folder").mkdir()
        for folder in args.folders:
            shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("runs", "data", "results", "tests", "__pycache__"))
        write_data(home)
        if "SD" in args.folders:
            write_stand_ins(home)
        with warm_python(home), ThreadPoolExecutor(args.jobs) as pool:
            passed = list(pool.map(lambda name: try_script(name, home), names))
    print(f"{sum(passed)} of {len(names)} scripts ran to their end")
    sys.exit(not all(passed))


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["--serve"] else main()
