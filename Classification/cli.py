"""Flags, their types and errors: the command line conventions that every script of the three folders follows.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts), so that each folder can be
copied away alone.
"""

import argparse
import contextlib
import inspect
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path


class RunError(Exception):
    """A mistake in a flag or a file. Its message is one sentence that says what is wrong and what to do about it."""


class AlreadyDone(Exception):
    """--resume found a finished run. The script has nothing left to do and exits with status 0."""


CLOSED_AT_END = contextlib.ExitStack()  # locks of run folders: they end with run()


def run(main, argv=None):
    """Call main(argv). Whatever goes wrong becomes one sentence, of the first process only, and exit status 1.

    For an error that nobody foresaw the sentence names a file with the traceback. With SALUN_DEBUG=1 the traceback is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # for terminals that cannot show ±
    try:
        with CLOSED_AT_END:
            main(argv)
    except AlreadyDone as done:
        print(done)
    except KeyboardInterrupt:
        sys.exit("interrupted: to continue, repeat the command with --resume, where the script has it")
    except Exception as error:
        text, rank = f"error: {sentence(error)}", os.environ.get("RANK", "0")
        if rank != "0" and not isinstance(error, RunError):  # a RunError is the same on all
            print(f"process {rank}: {text}", file=sys.stderr)
        sys.exit(text if rank == "0" else 1)


def for_each(items, measure, last=lambda: None):
    """Call measure(item) for each, and then last(). An error of one item does not keep the others from it: all are raised at the end."""
    failures = []
    for item in items:
        try:
            measure(item)
        except AlreadyDone as done:
            print(done)
        except Exception as error:  # out of memory, or what nobody foresaw
            failures.append(sentence(error))
    last()
    if failures:
        raise RunError("\nerror: ".join(failures))


def interrupted(kind, error, trace):
    """sys.excepthook: no traceback for Ctrl-C while the libraries are still being imported."""
    print("interrupted", file=sys.stderr) if issubclass(kind, KeyboardInterrupt) else sys.__excepthook__(kind, error, trace)


sys.excepthook = interrupted


def sentence(error):
    """What an error says to a user. The traceback of one that nobody foresaw goes into a file."""
    if isinstance(error, (RunError, OSError)):
        return str(error)
    what = " ".join(str(error).split())[:200]
    memory = "out of memory" in what or "can't allocate memory" in what
    if memory or type(error).__name__ in ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError"):
        lower = "if the script has them, else lower --batch_size or --eval_batch_size"
        return f"out of memory ({what}): pass --micro_batch 1 and --gradient_checkpointing {lower}"
    if type(error).__name__ in ("InductorError", "BackendCompilerFailed"):
        return f"torch.compile failed ({what}): leave out --compile, or install a C++ compiler"
    if os.environ.get("SALUN_DEBUG"):
        raise error
    unexpected = f"unexpected {type(error).__name__}: {what}"
    try:
        handle, path = tempfile.mkstemp(prefix="salun-", suffix=".log")
        with open(handle, "w", errors="replace") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # the disk may be full
        return f"{unexpected}; SALUN_DEBUG=1 shows where"
    if os.environ.get("RANK", "0") != "0":  # often since process 0 has stopped, which says why
        return f"{unexpected}; its traceback is in {path}"
    return f"{unexpected}; please report it and attach {path}"


def check_launch(mixed_precision):
    """Raise RunError for what `accelerate launch` was told to do and this code does not do: it would be ignored silently."""
    told = {name: os.environ.get(f"ACCELERATE_{name}", "").lower() for name in ("USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM")}
    told["GRADIENT_ACCUMULATION_STEPS"] = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    ignored = [name for name, value in told.items() if value not in ("", "false", "1")]
    if ignored:
        raise RunError(f"{' and '.join(ignored)} of accelerate's configuration is not supported: every process holds the whole model")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("", "no"):
        raise RunError("DYNAMO_BACKEND of accelerate's configuration is not read: set it to no, and pass --compile")
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("", "no", mixed_precision):
        advice = f"pass --precision {precision} to the script, or --mixed_precision no to accelerate launch"
        raise RunError(f"accelerate is told {precision} and the script {mixed_precision}: {advice}")


# ---------------------------------------------------------------------------------------------------------------- types
def number(kind, holds, rule):
    """An argparse type: a number of `kind` for which `holds` is true. Otherwise the message says that it must be `rule`."""

    def parse(text):
        value = kind(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


COUNT, FLOAT = 10**9, 1e35  # the largest that mean something: 32-bit floats end at 3e38
positive_int = number(int, lambda value: 1 <= value <= COUNT, "at least 1 and at most 10^9")
non_negative_int = number(int, lambda value: 0 <= value <= COUNT, "at least 0 and at most 10^9")
positive_float = number(float, lambda value: 0 < value < FLOAT, "a positive number below 1e35")
non_negative_float = number(float, lambda value: 0 <= value < FLOAT, "a number of at least 0 and below 1e35")
seed = number(int, lambda value: 0 <= value < 2**63, "at least 0 and below 2^63")
ratio = number(float, lambda value: 0 < value <= 1, "in (0, 1]")
share = number(float, lambda value: 0 <= value < 1, "in [0, 1)")


def word(text):
    """A value of --setting. It becomes a part of a Markdown table."""
    if not re.fullmatch(r"[\w'. -]{1,40}", text):
        raise argparse.ArgumentTypeError("must be up to 40 letters, digits, spaces, dots, - or '")
    return text


def device(text):
    """An argparse type of --device: 0 and cuda:0 are cuda too. Of another GPU's number it says how to choose that one."""
    if text == "mps":
        raise argparse.ArgumentTypeError("Apple's GPU is not supported: leave --device out to compute on the CPU")
    number = text.removeprefix("cuda:")
    if set(number.split(",")) == {"0"}:
        return "cuda"
    if number.replace(",", "").isdigit():
        raise argparse.ArgumentTypeError(f"choose the GPU with CUDA_VISIBLE_DEVICES={number} before the command, and write --device cuda")
    return text


# ---------------------------------------------------------------------------------------------------------------- flags
DATA, FORGET, METHOD, SINGLE, RUN = "model and data", "what to forget", "method", "flags of single methods", "run"

# fmt: off
FLAGS = {  # name: (group, other spellings, options of add_argument)
    "model_path": (DATA, [], dict(type=Path, metavar="RUN", help="run folder of the model to start from")),
    "data_dir": (DATA, ["--data"], dict(type=Path, metavar="DIR", help="folder of the data sets")),
    "cache_dir": (DATA, [], dict(type=Path, metavar="DIR", help="folder of what is decoded or encoded once "
                                 "(default: --data_dir; for your own images ~/.cache/salun: nothing is written among them)")),
    "limit": (DATA, [], dict(type=positive_int, metavar="N", help="use only N training samples, for a quick look")),
    "forget_class": (FORGET, ["--class_to_replace", "--label_to_forget", "--class_to_forget", "--classes"],
                     dict(nargs="+", metavar="CLASS", help="forget these classes, by name or number")),
    "mask_path": (METHOD, [], dict(type=Path, metavar="RUN", help="run of generate_mask.py: train only its salient weights")),
    "mask_ratio": (METHOD, [], dict(type=ratio, help="share of all weights in the mask")),
    "alpha": (METHOD, [], dict(type=non_negative_float, help="weight of the retain term: forget + alpha * retain")),
    "lr": (METHOD, [], dict(type=positive_float, help="learning rate")),
    "epochs": (METHOD, [], dict(type=non_negative_int, help="passes over the data that the method reads")),
    "steps": (METHOD, [], dict(type=non_negative_int, help="optimizer steps")),
    "batch_size": (METHOD, [], dict(type=positive_int, help="samples per step, over all processes")),
    "forget_batch_size": (METHOD, [], dict(type=positive_int, help="forget samples per step (default: --batch_size)")),
    "optimizer": (METHOD, [], dict(help="optimizer")),
    "momentum": (METHOD, [], dict(type=share, help="momentum of sgd")),
    "weight_decay": (METHOD, [], dict(type=non_negative_float, help="weight decay")),
    "schedule": (METHOD, [], dict(help="learning-rate schedule")),
    "grad_clip": (METHOD, [], dict(type=non_negative_float, help="clip the gradient to this norm (0: no clipping)")),
    "ema": (METHOD, [], dict(type=share, help="EMA decay; the averaged weights are saved (0: the last weights)")),
    "save_dir": (RUN, [], dict(type=Path, metavar="RUN", help="run folder to write")),
    "seed": (RUN, [], dict(type=seed, help="seed of initialisation, order, augmentation and noise")),
    "device": (RUN, [], dict(type=device, choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")),
    "precision": (RUN, [], dict(choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                               help="autocast; auto: bf16 where it is native, else fp32; fp16: GPUs only")),
    "compile": (RUN, [], dict(action="store_true", help="torch.compile the model: some minutes to start, then faster steps on a GPU")),
    "setting": (RUN, [], dict(type=word, metavar="NAME",
                              help="name of a second setting of a method, which gets a row of its own in the tables: METHOD (NAME)")),
    "resume": (RUN, [], dict(action="store_true", help="continue this run where it stopped; a finished run is left alone")),
    "overwrite": (RUN, [], dict(action="store_true", help="replace the run in --save_dir")),
}
# fmt: on


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help is the script's docstring, in groups, with every default."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.groups = {title: self.add_argument_group(title) for title in (DATA, FORGET, METHOD, SINGLE, RUN)}
        self.refused = {}

    def add(self, group, *spellings, **options):
        """add_argument, in one of the groups."""
        self.groups[group].add_argument(*spellings, **options)

    def add_shared(self, *names, required=(), options=None, spellings=None, **defaults):
        """Add flags of FLAGS: plain names, required ones, then those with a default. options: {name: changed options of add_argument},
        spellings: {name: [another spelling]}."""
        for name in (*names, *required, *defaults):
            group, aliases, own = FLAGS[name]
            default = {"default": defaults[name]} if name in defaults else {}
            aliases = [*aliases, *(spellings or {}).get(name, [])]
            self.add(group, f"--{name}", *aliases, required=name in required, **own | (options or {}).get(name, {}) | default)

    def refuse(self, flags):
        """Answer flags of other programs with a sentence, {flag: what to do instead}, unless this one has them."""
        self.refused |= flags

    def parse_known_args(self, args=None, namespace=None):
        for flag in [flag for flag in self.refused if f"--{flag}" not in self._option_string_actions]:
            self.add_argument(f"--{flag}", nargs="*", action=Refuse, help=argparse.SUPPRESS, const=self.refused[flag])
        return super().parse_known_args(args, namespace)


class Refuse(argparse.Action):
    def __init__(self, const, **options):
        super().__init__(default=argparse.SUPPRESS, **options)
        self.instead = const

    def __call__(self, parser, namespace, values, spelling=None):
        parser.error(f"there is no {spelling} here: {self.instead}")


# -------------------------------------------------------------------------------------------------------------- methods
# methods/__init__.py says what a method is. FLAGS and TRAINING stand in the file of a method, if it has any.
def method_inputs(method):
    """Names of what a method is handed: its positional parameters."""
    return inspect.getfullargspec(inspect.unwrap(method)).args


def method_flags(method):
    """{flag: default} of a method: its keyword-only parameters."""
    return inspect.getfullargspec(inspect.unwrap(method)).kwonlydefaults or {}


def handed(method, inputs):
    """{name: value} of what a method asks for. Raises RunError for what is not among the inputs."""
    asked = method_inputs(method)
    if unknown := [name for name in asked if name not in inputs]:
        raise RunError(f"{method.__name__} asks for {', '.join(unknown)}: there are {', '.join(inputs)}, and flags stand after a *")
    return {name: inputs[name] for name in asked}


def declared(method, name):
    """The dict FLAGS or TRAINING of the file a method stands in."""
    return getattr(sys.modules[method.__module__], name, {})


def training_of(method):
    """TRAINING of a method that trains."""
    return declared(method, "TRAINING") if "trainer" in method_inputs(method) else {}


def written(flag, value):
    """A flag and its value as on a command line."""
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def training_settings(args, method, trained, defaults):
    """{flag: value} of the training settings named by `defaults`.

    The flag if it is given, else what the method's authors use (TRAINING in its file), else the default. None stands for the value in
    `trained`, the settings of the original's training.
    """
    given, authors = {name: value for name in defaults if (value := getattr(args, name)) is not None}, declared(method, "TRAINING")
    if unknown := authors.keys() & {"lr", "epochs", "steps"}:
        raise RunError(f"TRAINING of {method.__name__} has {', '.join(sorted(unknown))}: these are defaults in its signature")
    settings = defaults | authors | given
    return {name: trained.get(name) if value is None else value for name, value in settings.items()}


def add_method_flags(parser, methods, shared):
    """Add the flags of all `methods` {name: function}, and list the methods in the help.

    shared: {flag: options of add_argument} of flags that several methods have, and what differs in them from FLAGS. Raises RunError
    for a flag without a declaration or with two of them.
    """
    declarations, spellings = dict(shared), {"lr": ["--unlearn_lr"], "epochs": ["--unlearn_epochs"]}  # which train.py has not
    for name, method in methods.items():
        for flag, options in declared(method, "FLAGS").items():
            if flag in FLAGS or declarations.setdefault(flag, options) is not options:
                raise RunError(f"method {name} declares --{flag}, which is declared already: give its flag another name")
    for flag in dict.fromkeys(flag for method in methods.values() for flag in method_flags(method)):
        names = [name for name, method in methods.items() if flag in method_flags(method)]
        if flag not in FLAGS and flag not in declarations:
            raise RunError(f"method {names[0]} has --{flag} in its signature but not in FLAGS of its file: declare it there")
        try:
            if flag in FLAGS:
                parser.add_shared(flag, options=shared, spellings=spellings)
            else:
                options = declarations[flag] | {"default": None, "help": f"{', '.join(names)}: {declarations[flag].get('help', '')}"}
                parser.add(METHOD if flag in shared else SINGLE, f"--{flag}", **options)
        except argparse.ArgumentError as error:  # a flag that the script has already
            raise RunError(f"method {names[0]}: {error}") from error
    parser.epilog = "methods, the data they read, and the defaults of their flags (None: the original's value, or unused):\n" + "\n".join(
        f"  {name:13s}{' and '.join(part for part in ('forget', 'retain') if part in method_inputs(method)) or 'no images':18s} "
        + " ".join(written(flag, value) for flag, value in (method_flags(method) | training_of(method)).items())
        for name, method in methods.items()
    )


def method_options(parser, args, methods, unread=()):
    """{flag: value} of the method that args names. parser.error for a flag of another method, and for the further flags `unread`."""
    own = method_flags(methods[args.method])
    foreign = sorted({flag for method in methods.values() for flag in method_flags(method)} - set(own)) + list(unread)
    ignored = [flag for flag in foreign if getattr(args, flag) is not None]
    if ignored:
        parser.error(f"--method {args.method} does not read --{', --'.join(ignored)}")
    return {flag: default if getattr(args, flag) is None else getattr(args, flag) for flag, default in own.items()}
