"""Which of the user's further flags each command of a script takes, asked from the command's own parser. common.sh calls it.

    python scripts/further_flags.py PLAN FROM FLAGS...

PLAN/1, PLAN/2, ... hold the words of the commands, a zero byte after each; PLAN/1.more takes what is added to the first one. Relative paths
count from the folder FROM. This file carries the same text in the three folders.
"""

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path

SIZES = {  # variable: the flags that it stands for
    "LIMIT": ["--limit"],
    "NUM_FORGET": ["--num_forget"],
    "EPOCHS": ["--epochs"],
    "STEPS": ["--steps"],
    "SAMPLING_STEPS": ["--steps", "--sample_steps", "--generation_steps"],
    "NUM_SAMPLES": ["--num_samples", "--num_per_class"],
    "NUM_IMAGES": ["--num_images"],
    "BATCH_SIZE": ["--batch_size"],
    "IMAGE_SIZE": ["--image_size"],
}
SAMPLERS = ("sample.py", "generate_images.py")  # whose --steps are SAMPLING_STEPS


def groups(words):
    """[[flag, value, ...], ...]: the words of a command line, flag by flag."""
    found = []
    for word in words:
        if word.startswith("--"):
            found.append(word.split("=", 1))
            if found[-1][0] == "--overwrite":
                sys.exit("error: a script continues what is there: to begin again, remove the folder or name another OUT")
            if found[-1][0] in ("--save_dir", "--method", "--model_path", "--mask_path"):
                sys.exit(f"error: {word} would be the same for all commands: take the script's variables, as OUT, or edit the script")
        elif found:
            found[-1].append(word)
        else:
            sys.exit(f"error: {word} is not a flag: this script takes variables before `bash` and flags after its name")
    return found


def parse(command, words=()):
    """(namespace, None) of a command with further words, or (None, what its parser says against them)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return importlib.import_module(command[0].removesuffix(".py")).parse([*command[1:], *words]), None
    except SystemExit:
        return None, said.getvalue().rpartition("error: ")[2].strip()


def absolute(words, namespace, start):
    """The words with each path counted from `start`: what the parser took for a path, and what may be a path and is one there."""
    values = [value for entry in vars(namespace).values() for value in (entry if isinstance(entry, list) else [entry])]
    models = importlib.import_module("run_folder").PATHS
    named = [str(getattr(namespace, name, None)) for name in (*models, "offload_saliency")]
    files = {word for word in words if word in named and (start / word).exists()}
    files |= {word for word in words if ".py:" in word and word == getattr(namespace, "arch", None)}  # FILE.py:CLASS
    return [str(start / Path(word).expanduser()) if Path(word) in values or word in files else word for word in words]


def main(plan, start, *words):
    wanted = [(" ".join(group), "", [group]) for group in groups(words)]
    sizes = {name: os.environ[name] for name in SIZES if os.environ.get(name)}
    wanted += [(f"{name}={value}", name, [[flag, value] for flag in SIZES[name]]) for name, value in sizes.items()]
    if not wanted:
        return
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    paths = sorted(Path(plan).iterdir(), key=lambda path: int(path.name))
    commands = [path.read_text().split("\0")[:-1] for path in paths]
    for command in commands:  # imported here, since a relative path below counts from elsewhere
        importlib.import_module(command[0].removesuffix(".py"))
        if refused := parse(command)[1]:
            sys.exit(f"error: {' '.join(command[:3])} ...: {refused}")
    os.chdir(start)
    added = [[] for _ in commands]
    for text, variable, alternatives in wanted:
        takers, refusals = [], []
        for command, more in zip(commands, added, strict=True):
            for group in alternatives:
                if group[0] == "--steps" and variable and (command[0] in SAMPLERS) != (variable == "SAMPLING_STEPS"):
                    continue
                namespace, refused = parse(command, [*more, *group])
                if namespace is None:
                    refusals.append(refused)
                    continue
                more += absolute(group, namespace, Path(start))
                takers.append(command[2] if command[1] == "--method" else command[0].removesuffix(".py"))
        if not takers:
            why = next((refused for refused in refusals if not refused.startswith("unrecognized")), "none of them has it")
            sys.exit(f"error: no command of this script takes {text}: {why}")
        print(f"{text} goes to {', '.join(dict.fromkeys(takers))}", file=sys.stderr)
    for path, more in zip(paths, added, strict=True):
        path.with_name(f"{path.name}.more").write_text("".join(f"{word}\0" for word in more))


if __name__ == "__main__":
    main(*sys.argv[1:])
