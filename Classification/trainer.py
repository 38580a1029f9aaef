"""Everything around a training loop. The loop itself stands in the method, or in train.py."""

import argparse
import contextlib
import datetime
import math
import time

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import cli
import data
from cli import RunError
from masking import SalientParameters, apply_where

CHECKPOINT_SECONDS = 15  # an epoch that ends this long after the last checkpoint is followed by one
LOG_STEPS = 20  # steps per row of log.csv
BUCKET = 1 << 25  # gradient entries that processes exchange in one message

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = {  # factor of the learning rate at progress 0 <= p < 1 through the run
    "constant": lambda p: 1.0,
    "step": lambda p: 0.1 ** ((p >= 91 / 182) + (p >= 136 / 182)),
    "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
    "linear": lambda p: max(p, 0.01) / 0.15 if p < 0.15 else (1 - p) / 0.85,  # a warm-up, then down to 0
}
SETTINGS = dict(batch_size=256, forget_batch_size=None, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="constant")


def make_accelerator(device, precision):
    """An Accelerator on the device asked for, with autocast in bf16 or fp16 where `precision` says so, or auto and bf16 is native."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: no CUDA device is available")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and precision == "fp16":
        raise RunError("--precision fp16 needs a GPU: take bf16 or fp32")
    if on_cpu:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = torch.backends.mkldnn.is_available()  # macOS has bf16 and not the library that makes it fast
        native = fast and bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    else:
        native = torch.cuda.get_device_capability()[0] >= 8
    half = {"auto": "bf16" if native else "no", "fp32": "no"}.get(precision, precision)
    cli.check_launch(half)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, beside autocast too: convolutions would round to 10 bits
    torch.set_float32_matmul_precision("highest")  # an environment variable may have lowered it
    torch.backends.cudnn.benchmark = True  # shapes stay the same from step to step
    patient = InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12))  # one process may decode, draw or measure for hours
    return Accelerator(cpu=on_cpu, mixed_precision=half, kwargs_handlers=[patient])


def prepare(model, accelerator):
    """Move a model to this process's device and autocast its forward pass; its outputs stay float32.

    On several GPUs, BatchNorm takes its statistics over all of them (PyTorch cannot on CPUs).
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        norms = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        if other := norms - {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}:
            names = ", ".join(sorted(kind.__name__ for kind in other))
            raise RunError(f"the network has {names}, which PyTorch would replace by a plain BatchNorm on several GPUs: use one")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    # Autocast begins and ends with each forward pass. In a region around several passes, PyTorch before 2.11 reuses a weight's cast that
    # was made under no_grad for the pass that trains, and the weight gets no gradient.
    accelerator.prepare_model(model, evaluation_mode=True)  # in place; nothing is wrapped around it
    accelerator.free_memory()  # accelerate would keep every model that it has prepared
    return model


@contextlib.contextmanager
def batches_large_enough(cure):
    """Turns what BatchNorm says of a batch of one image, where that has shrunk to one pixel, into a RunError that ends with `cure`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RunError(f"a batch of one image is too small for this network's BatchNorm: {cure}") from error


def cross_entropy(model, batch, labels=None):
    """This process's share of the mean cross-entropy over the global batch, with the true labels unless others are given."""
    return batch.mean(F.cross_entropy(model(batch.images), batch.labels if labels is None else labels, reduction="none"))


class Trainer:
    """What stands around a method's loop: optimizer over the salient weights, schedule, checks, masked step, log, checkpoints.

        for epoch in trainer.epochs(epochs, lr, forget, retain):
            for batch in trainer.batches(forget):
                trainer.step(forget=cross_entropy(model, batch))

    model is trained in place, at the salient positions of `mask` only if there is one. settings: flags of the same names, SETTINGS
    has their defaults. augment: the imagesets.Source whose crops and flips are drawn, or None. A method may set before_step, a function
    (salient parameters) that edits their gradients, averaged over the processes, and after_step, a function (salient parameters, progress
    in (0, 1]) that edits them in place after each step of the optimizer. It may set lr for the steps that follow.
    """

    def __init__(self, model, run_folder, accelerator, *, seed, mask=None, augment=None, **settings):
        self.model, self.run_folder, self.accelerator, self.seed, self.mask = model, run_folder, accelerator, seed, mask
        self.augment, self.before_step, self.after_step = augment, None, None
        self.scaler = accelerator.scaler or torch.amp.GradScaler(enabled=False)  # fp16 alone has one, against underflow of gradients
        if unknown := settings.keys() - SETTINGS.keys():
            raise TypeError(f"Trainer has no setting {', '.join(sorted(unknown))}")
        self.settings = argparse.Namespace(**SETTINGS | settings)

    def epochs(self, epochs, lr, *splits, total=None, extra=None):
        """Yield the number of each epoch; what follows the last yield of an epoch is logged and checkpointed here.

        An epoch is one pass over each of `splits`. Where it is something else, `total` gives the steps of the whole run.
        extra: a module that is trained as well, outside the mask. With --resume the loop continues after the last checkpoint and ends
        in the same bytes.
        """
        self.total = sum(self.count_steps(split) for split in splits) * epochs if total is None else total
        self.extra, self.lr = extra, lr
        with SalientParameters(dict(self.model.named_parameters()), self.mask) as self.salient:
            self.trained = self.salient.tensors | ({} if extra is None else {f"extra.{name}": p for name, p in extra.named_parameters()})
            self.optimizer = self._make_optimizer()
            first, self.steps_done = self._load_checkpoint()
            self.log, self.stepped, saved = Log(self.run_folder, self.accelerator), False, time.monotonic()
            hidden = None if self.accelerator.is_main_process else True
            self.bar = tqdm(total=self.total, initial=self.steps_done, desc="train", disable=hidden, mininterval=1)
            for self.epoch in range(first, epochs):
                torch.manual_seed(data.derive_seed("dropout", self.seed, self.epoch, self.accelerator.process_index))
                self.noise = data.make_generator("batches", self.seed, self.epoch)
                self.model.train()
                yield self.epoch
                self.log.flush()
                if time.monotonic() - saved > CHECKPOINT_SECONDS and self.epoch + 1 < epochs:
                    self._save_checkpoint()
                    saved = time.monotonic()
            self.bar.close()
            if self.steps_done != self.total:  # the schedule would have ended elsewhere
                raise RunError(f"the method took {self.steps_done} steps and announced {self.total} to trainer.epochs(): say `total` there")
        self.model.eval()

    def _make_optimizer(self):
        options = {"momentum": self.settings.momentum} if self.settings.optimizer == "sgd" else {}
        fused = True if self.accelerator.device.type == "cuda" and not self.scaler.is_enabled() else None
        settings, parameters = self.settings, self.trained.values()
        return OPTIMIZERS[settings.optimizer](parameters, self.lr, weight_decay=settings.weight_decay, fused=fused, **options)

    def count_steps(self, *splits):
        """Steps of one pass over splits that are walked through together, the longest once."""
        return max(math.ceil(len(split) / self._size(split)) for split in splits)

    def _size(self, split):
        return (split.name == "forget" and self.settings.forget_batch_size) or self.settings.batch_size

    def mixes(self):
        """RunError for --forget_batch_size: said by methods whose batches hold forget and retain images together."""
        if self.settings.forget_batch_size:
            raise RunError("--forget_batch_size has no effect where forget and retain images are mixed: leave it out")

    def batches(self, *splits):
        """Yield the Batches of one pass over a split in random order.

        Of several splits, yield a tuple with a Batch of each: the longest is walked through once, a shorter one again and again.
        """

        def endless(split):
            here = self.accelerator.process_index, self.accelerator.num_processes
            while True:
                yield from data.epoch_batches(split, self._size(split), self.noise, self.augment, *here)

        streams = [endless(split) for split in splits]
        for _ in range(self.count_steps(*splits)):
            batches = tuple(next(stream) for stream in streams)
            self.run_folder.images_seen += sum(batch.size for batch in batches)
            yield batches if len(splits) > 1 else batches[0]

    def step(self, **terms):
        """One step of the optimizer down the sum of the loss terms, which are logged by their names."""
        if not terms:
            raise RunError("trainer.step() was called without a loss term: pass at least one, by name")
        if self.steps_done == self.total:  # a schedule that goes on has a negative rate
            raise RunError(f"the method takes more steps than the {self.total} that it announced to trainer.epochs(): say `total` there")
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * SCHEDULES[self.settings.schedule](self.steps_done / self.total)
        self.scaler.scale(sum(terms.values())).backward()
        if not self.stepped:
            check_gradients(self.trained)
            self.stepped = True
        average_gradients(self.trained.values(), self.accelerator)
        if self.before_step is not None:
            self.scaler.unscale_(self.optimizer)
            self.before_step(self.salient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        if self.after_step is not None:
            self.after_step(self.salient, self.steps_done / self.total)
        self.salient.scatter()
        self.log.add(terms, step=self.steps_done, epoch=self.epoch, lr=self.optimizer.param_groups[0]["lr"])
        self.bar.update()

    def update(self, new):
        """Write {name: tensor} into the model, at the salient positions only if there is a mask: for closed-form methods."""
        apply_where(dict(self.model.named_parameters()), new, self.mask)

    def count(self, split):
        """The split, its images counted as seen: for passes that do not train."""
        self.run_folder.images_seen += len(split)
        return split

    def _save_checkpoint(self):
        """Keep model, extra module, optimizer state and counters. All noise follows from seed and epoch."""
        state = self.optimizer.state_dict()["state"]
        optimizer = {f"{i}.{key}": value for i, values in state.items() for key, value in values.items() if value is not None}
        groups = {"model": self.model.state_dict(), "optimizer": optimizer}
        groups |= {} if self.extra is None else {"extra": self.extra.state_dict()}
        self.run_folder.checkpoint(groups, epoch=self.epoch + 1, step=self.steps_done, scaler=self.scaler.state_dict())

    def _load_checkpoint(self):
        """Return the epoch and step to continue at: those of the last checkpoint on --resume, else (0, 0)."""
        checkpoint = self.run_folder.last_checkpoint()
        if checkpoint is None:
            return 0, 0
        groups, state = checkpoint
        self.model.load_state_dict(groups["model"])
        if self.extra is not None:
            self.extra.load_state_dict(groups["extra"])
        self.salient.gather(dict(self.model.named_parameters()))
        load_optimizer(self.optimizer, groups.get("optimizer", {}))
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.run_folder.continue_from(state)
        return state["epoch"], state["step"]


def load_optimizer(optimizer, tensors):
    """Load {"<parameter number>.<key>": tensor} into an optimizer's state, in the parameters' memory format, which fused ones count on."""
    parameters, values = [leaf for group in optimizer.param_groups for leaf in group["params"]], {}
    for name, tensor in tensors.items():
        i, key = name.split(".", 1)
        like = parameters[int(i)]
        values.setdefault(int(i), {})[key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})


def check_gradients(trained):
    """Raise RunError if a trained tensor {name: leaf} has no gradient: the optimizer would silently skip it. Zeros are a gradient."""
    for name, leaf in trained.items():
        if leaf.requires_grad and leaf.grad is None:
            raise RunError(f"the loss gives {name} no gradient, so it would never be trained: let the model use it, or freeze it")


def average_gradients(leaves, accelerator):
    """Average gradients over processes, in few messages. Only what the optimizer holds is sent, so a mask makes them smaller too."""
    if accelerator.num_processes == 1:
        return
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    while gradients:
        bucket = [gradients.pop()]
        while gradients and sum(gradient.numel() for gradient in bucket) < BUCKET:
            bucket.append(gradients.pop())
        flat = accelerator.reduce(torch.cat([gradient.reshape(-1) for gradient in bucket]), "mean")
        for gradient, values in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(values.view_as(gradient))


class Log:
    """Means of the loss terms since the last row of log.csv. Raises RunError for a loss that is not finite."""

    def __init__(self, run_folder, accelerator):
        self.run_folder, self.accelerator, self.sums, self.counts = run_folder, accelerator, {}, {}

    def add(self, terms, **row):
        """Add the terms {name: scalar} of a step. row: columns of log.csv, `step` among them."""
        self.row = row
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        if row["step"] % LOG_STEPS == 0:
            self.flush()

    def flush(self):
        """Write a row, if a step was added since the last one."""
        means = {name: float(self.accelerator.reduce(self.sums[name], "mean")) / self.counts[name] for name in sorted(self.sums)}
        for name, value in means.items():
            if not math.isfinite(value):
                what = f"the {name} loss became {value} by step {self.row['step']}"
                raise RunError(f"{what}: lower --lr, or look for NaN in the data. No weights were written")
        if means:
            self.run_folder.log(**self.row, **means, seconds=round(self.run_folder.seconds(), 3))
        self.sums, self.counts = {}, {}
