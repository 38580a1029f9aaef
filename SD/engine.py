"""The loop that trains and unlearns, and the pass that only looks: the gradient of the forget loss."""

import contextlib
import math
import resource
import sys
import time

import torch
from accelerate import Accelerator
from tqdm import tqdm

import data
import masking
import models
from run import RunError

CHECKPOINT_SECONDS = 60  # a step that ends this long after the last checkpoint is followed by one
LOG_STEPS = 20  # steps a row of log.csv

OPTIMIZERS = {
    "adam": lambda leaves, lr, weight_decay: torch.optim.Adam(leaves, lr, weight_decay=weight_decay),
    "adamw": lambda leaves, lr, weight_decay: torch.optim.AdamW(leaves, lr, weight_decay=weight_decay),
}
SCHEDULES = {  # factor of the learning rate at progress 0 <= p < 1 through the run
    "constant": lambda p: 1.0,
    "linear": lambda p: min(1.0, (p + 1e-3) / 0.05) * (1 - p),  # a short warm-up, then down to 0
}


def make_accelerator(device, precision):
    """An Accelerator on the device asked for, with autocast in bf16 or fp16 where `precision` says so, or auto and bf16 is native."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: no CUDA device is available")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and precision == "fp16":
        raise RunError("--precision fp16 needs a GPU: take bf16 or fp32")
    if on_cpu:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    else:
        native = torch.cuda.get_device_capability()[0] >= 8
    half = {"auto": "bf16" if native else "no", "fp32": "no"}.get(precision, precision)
    return Accelerator(cpu=on_cpu, mixed_precision=half)


def place(model, accelerator):
    """Move a model to this process's device and give its forward pass the autocast asked for; outputs stay float32."""
    model = model.to(accelerator.device)
    # Autocast begins and ends with each forward pass. In a region around several, PyTorch before 2.11 takes a weight's cast that was made
    # under no_grad for the pass that trains, and the weight gets no gradient.
    accelerator.prepare_model(model, evaluation_mode=True)  # in place; nothing is wrapped
    accelerator.free_memory()  # accelerate would keep every model that it has prepared
    return model


@contextlib.contextmanager
def without_autocast(model):
    """While entered, the model's forward pass is its class's own, without the autocast that place() gave it."""
    prepared = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if prepared is not None:
            model.forward = prepared


# -------------------------------------------------------------------------------------------------- predictions and losses
def predict(unet, x_t, t, embeddings):
    """The U-Net's prediction, noise or velocity, for noised latents (B, C, h, w), timesteps (B,) and embeddings (B, L, D), in float32."""
    return unet(x_t, t, encoder_hidden_states=embeddings, return_dict=False)[0]


def predict_together(unet, *parts):
    """predict() for several (x_t, t, embeddings) in one forward pass; returns a prediction for each."""
    sizes = [len(part[1]) for part in parts]
    return predict(unet, *(torch.cat(values) for values in zip(*parts, strict=True))).split(sizes)


def squared_error(prediction, target):
    """Mean squared error of each sample, (B,): mean-reduced over channels and pixels."""
    return (prediction - target).square().mean((1, 2, 3))


def wanted(scheduler, x, noise, t):
    """What the U-Net should predict: the noise, or with v prediction the velocity (Salimans & Ho 2022)."""
    return scheduler.get_velocity(x, noise, t) if scheduler.config.prediction_type == "v_prediction" else noise


# ---------------------------------------------------------------------------------------------------------------- the loop
def fit(
    model,
    splits,
    loss,
    *,
    steps,
    lr,
    batch_size,
    seed,
    accelerator,
    run,
    mask=None,
    optimizer="adam",
    weight_decay=0.0,
    schedule="constant",
    grad_clip=1.0,
    ema=None,
    after_step=None,
    reaches_all=True,
    save_every=None,
    draw=None,
    offset=0,
):
    """Train the salient weights of `model` in place: the one training loop.

    splits: {name: Split}; every step draws a new Batch of `batch_size` from each. loss: called with {name: Batch} as keywords; returns
    {term: scalar}, whose sum is minimised. ema: decay of the average of the weights, which the model holds in the end.
    after_step(leaves, progress): may edit the leaves in place. draw(step): called every `save_every` steps with the weights as they
    would be saved. offset: steps that the run made before, of another model. reaches_all: whether the loss depends on all that is
    trained. Raises RunError when the loss is not finite, or the first step gives a tensor no gradient that it should reach. With
    --resume the run's last checkpoint is continued, to the same bytes.
    """
    here = {"device": accelerator.device, "rank": accelerator.process_index, "world": accelerator.num_processes}
    same = {"batch_size": batch_size, "seed": seed, "timesteps": models.TIMESTEPS, **here}
    streams = {name: data.Stream(split, name, **same) for name, split in splits.items()}
    with masking.Leaves(dict(model.named_parameters()), mask) as leaves:
        solver = OPTIMIZERS[optimizer](leaves.parameters(), lr, weight_decay)
        average = average_weights(model, ema)
        first = restore(run, model, solver, leaves, average, offset)
        log, saved = Log(run, accelerator), time.monotonic()
        bar = tqdm(total=steps, initial=first, desc="train", disable=None if accelerator.is_main_process else True, mininterval=1)
        model.train()
        for step in range(first, steps):
            rate = lr * SCHEDULES[schedule](step / steps)
            for group in solver.param_groups:
                group["lr"] = rate
            batches = {name: stream.batch(step) for name, stream in streams.items()}
            names = list(leaves.leaves) if step == first and reaches_all else None
            terms = train_step(loss, batches, solver, leaves.parameters(), accelerator, grad_clip, names)
            if after_step is not None:
                after_step(leaves, (step + 1) / steps)
            leaves.scatter()
            if average is not None:
                average.step(model.parameters())
            run.images_seen += batch_size * len(batches)
            log.add(offset + step + 1, rate, terms, last=step + 1 == steps)
            bar.update()
            if draw is not None and (step + 1) % save_every == 0:
                show(draw, step + 1, model, average, run)
            if time.monotonic() - saved > CHECKPOINT_SECONDS and step + 1 < steps:
                log.flush()
                keep(run, model, solver, average, offset + step + 1)
                saved = time.monotonic()
        bar.close()
        if average is not None:
            average.copy_to(model.parameters())
    model.eval()


def refuse_untrained(names, trained):
    """Raise RunError if a trainable tensor has no gradient: the optimizer would pass it over in silence. Zeros are a gradient."""
    for name, leaf in zip(names, trained, strict=True):
        if leaf.requires_grad and leaf.grad is None:
            raise RunError(f"the loss gives {name} no gradient, so it would never be trained: let the model use it, or freeze it")


def train_step(loss, batches, solver, trained, accelerator, grad_clip, names=None):
    """One step of the optimizer on what it holds; returns the loss terms. With fp16 the gradients are scaled against underflow.

    names: of `trained`, to refuse what gets no gradient.
    """
    terms = loss(**batches)
    scaler = accelerator.scaler  # of fp16 only
    total = sum(terms.values())
    (total if scaler is None else scaler.scale(total)).backward()
    if names is not None:
        refuse_untrained(names, trained)
    if accelerator.num_processes > 1:  # only what the optimizer holds is sent: a mask makes the message smaller too
        for leaf in trained:
            if leaf.grad is not None:
                leaf.grad = accelerator.reduce(leaf.grad, "mean")
    if scaler is not None:
        scaler.unscale_(solver)
    if grad_clip:
        torch.nn.utils.clip_grad_norm_(trained, grad_clip)
    if scaler is None:
        solver.step()
    else:
        scaler.step(solver)
        scaler.update()
    solver.zero_grad(set_to_none=True)
    return terms


def average_weights(model, ema):
    """diffusers' EMAModel of decay min(ema, (1 + n) / (10 + n)) after n steps; None without `ema`."""
    if not ema:
        return None
    from diffusers.training_utils import EMAModel

    return EMAModel(model.parameters(), decay=ema, foreach=True)


def show(draw, step, model, average, run):
    """Call draw(step) in eval mode and with the averaged weights; the time it takes is not the training's."""
    with run.paused(), torch.random.fork_rng():
        model.eval()
        if average is not None:
            average.store(model.parameters())
            average.copy_to(model.parameters())
        draw(step)
        if average is not None:
            average.restore(model.parameters())
        model.train()


class Log:
    """Means of the loss terms since the last row of log.csv; refuses a loss that is not finite."""

    def __init__(self, run, accelerator):
        self.run, self.accelerator, self.sums, self.count = run, accelerator, {}, 0

    def add(self, step, lr, terms, last):
        self.row = {"step": step, "lr": lr}
        self.count += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        if step % LOG_STEPS == 0 or last:
            self.flush()

    def flush(self):
        if not self.count:
            return
        means = {name: float(self.accelerator.reduce(value, "mean")) / self.count for name, value in sorted(self.sums.items())}
        for name, value in means.items():
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} loss became {value} by step {self.row['step']}: lower --lr, or look for NaN in the data; "
                    "no weights were written"
                )
        self.run.log(**self.row, **means, seconds=round(self.run.seconds(), 3))
        self.sums, self.count = {}, 0


def keep(run, model, solver, average, step):
    """Write a checkpoint: model, averaged weights, optimizer state and counters. All noise follows from seed and step."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{i}": tensor for i, tensor in enumerate(average.shadow_params)}
    for i, values in solver.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
    run.checkpoint(tensors, step=step, seconds=run.seconds(), images_seen=run.images_seen)


def restore(run, model, solver, leaves, average, offset):
    """Load the last checkpoint on --resume; return the step to go on from, 0 without one or where it is of the model before."""
    checkpoint = run.last_checkpoint()
    if checkpoint is None or checkpoint[1]["step"] <= offset:
        return 0
    tensors, state = checkpoint
    part = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}  # noqa: E731
    model.load_state_dict(part("model."))
    leaves.gather(dict(model.named_parameters()))
    if average is not None:
        for i, tensor in part("average.").items():
            average.shadow_params[int(i)].copy_(tensor)
        average.optimization_step = state["step"] - offset
    values = {}
    for name, tensor in part("optimizer.").items():
        i, key = name.split(".", 1)
        values.setdefault(int(i), {})[key] = tensor
    solver.load_state_dict({"state": values, "param_groups": solver.state_dict()["param_groups"]})
    run.seconds_before, run.images_seen = state["seconds"], state["images_seen"]
    run.start_clock()
    return state["step"] - offset


def memory(accelerator):
    """{"peak_memory_mb"}: largest memory so far, allocated on a GPU, else the resident set of the process."""
    if accelerator.device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)}


# ------------------------------------------------------------------------------------------------- the pass that does not train
def mean_gradient(unet, scheduler, split, embeddings, null, accelerator, *, guidance, passes, batch_size, seed):
    """Gradient of the forget loss over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    The loss is the mean squared error of the guided prediction (1 + w) f(c) - w f(null), w = guidance, as in the official release;
    at w = 0 the plain training loss. Eval mode; every image weighted once in each of `passes` passes with timesteps and noise of their
    own; accumulated in float32 in place: no copy beside the gradient.
    """
    unet.eval()
    unet.zero_grad(set_to_none=True)
    here = (accelerator.process_index, accelerator.num_processes)
    for number in range(passes):
        batches = data.whole_pass(split, batch_size, seed, models.TIMESTEPS, accelerator.device, number, *here)
        for x, y, t, noise in tqdm(batches, "gradient", disable=None):
            x_t = scheduler.add_noise(x, noise, t)
            if guidance == 0:
                prediction = predict(unet, x_t, t, embeddings[y])
            else:
                parts = (x_t, t, embeddings[y]), (x_t, t, embeddings[null].expand_as(embeddings[y]))
                conditional, unconditional = predict_together(unet, *parts)
                prediction = (1 + guidance) * conditional - guidance * unconditional
            (squared_error(prediction, wanted(scheduler, x, noise, t)).sum() / (passes * len(split))).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in unet.named_parameters()}
    unet.zero_grad(set_to_none=True)
    if accelerator.num_processes > 1:
        gradient = {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}
    return gradient
