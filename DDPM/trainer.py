"""Predictions, losses, and everything around a training loop. The loop itself stands in the method, or in train.py."""

import argparse
import datetime
import math
import time

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm import tqdm

import cli
import data
import models
from cli import RunError
from masking import SalientParameters

CHECKPOINT_SECONDS = 60  # a step that ends this long after the last checkpoint is followed by one
LOG_STEPS = 20  # steps per row of log.csv
BUCKET = 1 << 25  # gradient entries that processes exchange in one message

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = {  # factor of the learning rate at progress 0 <= p < 1 through the run
    "constant": lambda p: 1.0,
    "linear": lambda p: min(1.0, (p + 1e-3) / 0.05) * (1 - p),  # a short warm-up, then down to 0
}
SETTINGS = dict(batch_size=128, forget_batch_size=None, optimizer="adam", momentum=0.9, weight_decay=0.0, schedule="constant")
SETTINGS |= dict(grad_clip=1.0, ema=0.0)


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

    channels_last on GPUs only: on a CPU it was slower.
    """
    on_gpu = accelerator.device.type == "cuda"
    model = model.to(accelerator.device, memory_format=torch.channels_last if on_gpu else torch.contiguous_format)
    # Autocast begins and ends with each forward pass. In a region around several passes, PyTorch before 2.11 reuses a weight's cast that
    # was made under no_grad for the pass that trains, and the weight gets no gradient.
    accelerator.prepare_model(model, evaluation_mode=True)  # in place; nothing is wrapped around it
    accelerator.free_memory()  # accelerate would keep every model that it has prepared
    return model


# -------------------------------------------------------------------------------------------------- predictions and losses
def predict_noise(model, noisy, t, labels):
    """The noise prediction eps(x_t | c) for noisy images (B, C, H, W), timesteps (B,) and labels (B,), in float32."""
    return model(noisy, t, class_labels=labels, return_dict=False)[0]


def predict_together(model, *parts):
    """predict_noise() for several (noisy, t, labels) in one forward pass; returns a prediction for each."""
    sizes = [len(part[1]) for part in parts]
    return predict_noise(model, *(torch.cat(values) for values in zip(*parts, strict=True))).split(sizes)


def squared_error(prediction, target):
    """Mean squared error of each sample, (B,): mean-reduced over channels and pixels."""
    return (prediction - target).square().mean((1, 2, 3))


def noisy_images(batch):
    """x_t of a Batch, with its own noise and timesteps."""
    return models.noisy_images(batch.images, batch.noise, batch.t)


def drop_labels(batch, null, probability):
    """The batch's labels, each replaced by the null class with that probability (classifier-free guidance needs both)."""
    return torch.where(batch.uniform < probability, null, batch.labels)


def denoising_loss(model, batch, labels):
    """This process's share of the noise-prediction loss of a batch, l_MSE in Eq. 7 of the paper."""
    return batch.mean(squared_error(predict_noise(model, noisy_images(batch), batch.t, labels), batch.noise))


def denoising_losses(model, *batches):
    """denoising_loss() of several batches under their own labels, in one forward pass."""
    predictions = predict_together(model, *((noisy_images(batch), batch.t, batch.labels) for batch in batches))
    return [batch.mean(squared_error(found, batch.noise)) for batch, found in zip(batches, predictions, strict=True)]


# ------------------------------------------------------------------------------------------------------------ the Trainer
class Trainer:
    """What stands around a method's loop: optimizer over the salient weights, schedule, checks, masked step, EMA, log, checkpoints.

        for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
            trainer.step(forget=..., retain=...)

    model is trained in place, at the salient positions of `mask` only if there is one. settings: flags of the same names, SETTINGS
    has their defaults. flip: mirror images at random. draw(step): called every `save_every` steps with the weights as they would be saved.
    A method may set after_step, a function (salient parameters, progress in (0, 1]) that edits them in place after each step.
    """

    def __init__(self, model, run_folder, accelerator, *, seed, mask=None, flip=False, save_every=None, draw=None, **settings):
        self.model, self.run_folder, self.accelerator, self.seed, self.mask = model, run_folder, accelerator, seed, mask
        self.flip, self.save_every, self.draw, self.after_step, self.average = flip, save_every, draw, None, None
        self.scaler = accelerator.scaler or torch.amp.GradScaler(enabled=False)  # fp16 alone has one, against underflow of gradients
        if unknown := settings.keys() - SETTINGS.keys():
            raise TypeError(f"Trainer has no setting {', '.join(sorted(unknown))}")
        self.settings = argparse.Namespace(**SETTINGS | settings)

    def steps(self, steps, lr, *splits, lr_factors=None):
        """Yield a Batch of the split for each step, or of several splits a tuple with a Batch of each.

        lr_factors: {parameter name: factor of its learning rate}, 1 for the others. With --resume the loop continues after the last
        checkpoint and ends in the same bytes.
        """
        streams = [self._stream(split) for split in splits]
        self.total, self.lr, self.batch_sizes = steps, lr, sum(stream.batch_size for stream in streams)
        with SalientParameters(dict(self.model.named_parameters()), self.mask) as self.salient:
            self.optimizer = self._make_optimizer(lr_factors or {})
            self.average = average_weights(self.model, self.settings.ema) if self.settings.ema else None
            first = self._load_checkpoint()
            self.log, self.stepped, saved, pace = Log(self.run_folder, self.accelerator), False, time.monotonic(), 1
            hidden = None if self.accelerator.is_main_process else True
            self.model.train()
            for self.number in tqdm(range(first, steps), "train", total=steps, initial=first, disable=hidden, mininterval=1):
                torch.manual_seed(data.derive_seed("dropout", self.seed, self.number, self.accelerator.process_index))
                self.terms, self.rate = {}, lr * SCHEDULES[self.settings.schedule](self.number / steps)
                batches = tuple(stream.batch(self.number) for stream in streams)
                yield batches if len(splits) > 1 else batches[0]
                self.log.add(self.terms, step=self.number + 1, lr=self.rate)
                if self.average is not None:  # once, however often a method has moved the weights in this step
                    self.average.step(self.model.parameters())
                self.run_folder.images_seen += self.batch_sizes
                if self.draw is not None and (self.number + 1) % self.save_every == 0:
                    self._draw()
                # Processes have clocks of their own: several save only where nothing is left to reduce, which takes all of them.
                alone = self.accelerator.num_processes == 1 or not self.log.sums
                if alone and time.monotonic() - saved > CHECKPOINT_SECONDS * pace and self.number + 1 < steps:
                    self.log.flush()
                    start = time.monotonic()
                    self._save_checkpoint()
                    saved = time.monotonic()
                    pace = max(1, (saved - start) / 3)  # a twentieth of the time at most goes to checkpoints
            self.log.flush()
            if self.average is not None:
                self.average.store(self.model.parameters())
                self.average.copy_to(self.model.parameters())
        self.model.eval()

    def _stream(self, split):
        size = (split.name == "forget" and self.settings.forget_batch_size) or self.settings.batch_size
        here = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        return data.Stream(split, batch_size=size, seed=self.seed, timesteps=models.TIMESTEPS, flip=self.flip, **here)

    def _make_optimizer(self, lr_factors):
        """The optimizer of the salient parameters, with a group for each factor of the learning rate."""
        groups = {}
        for name, leaf in self.salient.tensors.items():
            groups.setdefault(lr_factors.get(name, 1.0), []).append(leaf)
        groups = [{"params": part, "factor": factor} for factor, part in groups.items()]
        options = {"momentum": self.settings.momentum} if self.settings.optimizer == "sgd" else {}
        fused = True if self.accelerator.device.type == "cuda" and not self.scaler.is_enabled() else None
        return OPTIMIZERS[self.settings.optimizer](groups, self.lr, weight_decay=self.settings.weight_decay, fused=fused, **options)

    def step(self, **terms):
        """One step of the optimizer down the sum of the loss terms, which are logged by their names."""
        if not terms:
            raise RunError("trainer.step() was called without a loss term: pass at least one, by name")
        self._backward(sum(terms.values()))
        self._update(terms)

    def gradients(self, term, retain_graph=False):
        """The gradient of a loss term, a tensor for each salient parameter, averaged over processes."""
        self._backward(term, retain_graph)
        scale = self.scaler.get_scale()
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale for leaf in self.salient.parameters()]
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def apply(self, gradients, **terms):
        """One step of the optimizer along `gradients`, made of those of gradients(). The terms are logged by their names."""
        scale = self.scaler.get_scale()
        for leaf, gradient in zip(self.salient.parameters(), gradients, strict=True):
            leaf.grad = gradient * scale  # as the scaler expects it, which skips the step if one is infinite
        self._update(terms)

    def _backward(self, loss, retain_graph=False):
        self.scaler.scale(loss).backward(retain_graph=retain_graph)
        if not self.stepped:
            check_gradients(self.salient.tensors)
        average_gradients(self.salient.parameters(), self.accelerator)

    def _update(self, terms):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]
        self.scaler.unscale_(self.optimizer)
        if self.settings.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.salient.parameters(), self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.stepped = True
        if self.after_step is not None:
            self.after_step(self.salient, (self.number + 1) / self.total)
        self.salient.scatter()
        # One row of the log for a step, however often a method has moved the weights in it
        self.terms |= {name: value.detach() for name, value in terms.items()}

    def _draw(self):
        """Call draw(step) with the averaged weights. The time it takes is not the training's."""
        with self.run_folder.paused(), torch.random.fork_rng(devices=[]):
            if self.average is not None:
                self.average.store(self.model.parameters())
                self.average.copy_to(self.model.parameters())
            self.draw(self.number + 1)
            if self.average is not None:
                self.average.restore(self.model.parameters())
            self.model.train()

    def _save_checkpoint(self):
        """Keep model, averaged weights, optimizer state and counters. All noise follows from seed and step."""
        state = self.optimizer.state_dict()["state"]
        optimizer = {f"{i}.{key}": value for i, values in state.items() for key, value in values.items() if value is not None}
        average = {str(i): tensor for i, tensor in enumerate(self.average.shadow_params)} if self.average is not None else {}
        groups = {"model": self.model.state_dict(), "optimizer": optimizer, "average": average}
        self.run_folder.checkpoint(groups, step=self.number + 1, scaler=self.scaler.state_dict())

    def _load_checkpoint(self):
        """Return the step to continue at: that of the last checkpoint on --resume, else 0."""
        checkpoint = self.run_folder.last_checkpoint()
        if checkpoint is None:
            return 0
        groups, state = checkpoint
        self.model.load_state_dict(groups["model"])
        self.salient.gather(dict(self.model.named_parameters()))
        if self.average is not None:
            for i, tensor in groups["average"].items():
                self.average.shadow_params[int(i)].copy_(tensor)
            self.average.optimization_step = state["step"]
        load_optimizer(self.optimizer, groups.get("optimizer", {}))
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.run_folder.continue_from(state)
        return state["step"]


def average_weights(model, ema):
    """diffusers' EMAModel: it starts at the weights after the first step, then has the decay min(ema, (1 + n) / (10 + n)) after n steps."""
    from diffusers.training_utils import EMAModel

    return EMAModel(model.parameters(), decay=ema, foreach=True)


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
