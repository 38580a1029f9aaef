"""The loop that trains and unlearns, and the passes that only look: gradients and Fisher diagonals."""

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
FISHER_BATCH = 64  # timesteps of an image that go through the model together

OPTIMIZERS = {
    "adam": lambda leaves, lr, weight_decay: torch.optim.Adam(leaves, lr, weight_decay=weight_decay),
    "adamw": lambda leaves, lr, weight_decay: torch.optim.AdamW(leaves, lr, weight_decay=weight_decay),
}
SCHEDULES = {  # factor of the learning rate at progress 0 <= p < 1 through the run
    "constant": lambda p: 1.0,
    "linear": lambda p: min(1.0, (p + 1e-3) / 0.05) * (1 - p),  # a short warm-up, then down to 0
}


def make_accelerator(device, precision):
    """An Accelerator on the device asked for, with bf16 autocast where `precision` is bf16, or auto and native to the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: no CUDA device is available")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    else:
        native = torch.cuda.get_device_capability()[0] >= 8
    bf16 = precision == "bf16" or (precision == "auto" and native)
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if bf16 else "no")


def place(model, accelerator):
    """Move a model to this process's device and give its forward pass the autocast asked for; outputs stay float32.

    channels_last on GPUs only: on a CPU it was slower.
    """
    on_gpu = accelerator.device.type == "cuda"
    model = model.to(accelerator.device, memory_format=torch.channels_last if on_gpu else torch.contiguous_format)
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
def predict(model, x_t, t, labels):
    """The model's noise prediction for noised images (B, C, H, W), timesteps (B,) and labels (B,), in float32."""
    return model(x_t, t, class_labels=labels, return_dict=False)[0]


def predict_together(model, *parts):
    """predict() for several (x_t, t, labels) in one forward pass; returns a prediction for each."""
    sizes = [len(part[1]) for part in parts]
    return predict(model, *(torch.cat(values) for values in zip(*parts, strict=True))).split(sizes)


def squared_error(prediction, target):
    """Mean squared error of each sample, (B,): mean-reduced over channels and pixels."""
    return (prediction - target).square().mean((1, 2, 3))


def dropped(batch, null, probability):
    """The batch's labels, each replaced by the null class with that probability (classifier-free guidance needs both)."""
    return torch.where(batch.uniform < probability, null, batch.y)


def denoising(model, scheduler, batch, labels):
    """This process's share of the noise-prediction loss of a batch, l_MSE in Eq. 7 of the paper."""
    x_t = scheduler.add_noise(batch.x, batch.noise, batch.t)
    return batch.mean(squared_error(predict(model, x_t, batch.t, labels), batch.noise))


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
    flip=False,
    ema=None,
    lr_factors=None,
    combine=None,
    after_step=None,
    save_every=None,
    draw=None,
):
    """Train the salient weights of `model` in place: the one training loop.

    splits: {name: Split}; every step draws a Batch of `batch_size` from each. loss: called with {name: Batch} as keywords; returns
    {term: scalar}, whose sum is minimised; or, with combine({term: [gradient of each leaf]}) -> [gradient], what that makes of
    the terms' gradients. lr_factors: {parameter name: factor of its learning rate}, 1 for the others. ema: decay of the average of
    the weights, which the model holds in the end. after_step(leaves, progress): may edit the leaves in place. draw(step): called
    every `save_every` steps with the weights as they would be saved. Raises RunError when the loss is not finite or the first step
    gives a tensor no gradient. With --resume the run's last checkpoint is continued, to the same bytes.
    """
    streams = make_streams(splits, batch_size, seed, flip, accelerator)
    with masking.Leaves(dict(model.named_parameters()), mask) as leaves:
        trained = leaves.parameters()
        solver = make_solver(leaves, optimizer, lr, weight_decay, lr_factors)
        average = average_weights(model, ema)
        first = restore(run, model, solver, leaves, average)
        log, saved = Log(run, accelerator), time.monotonic()
        bar = tqdm(total=steps, initial=first, desc="train", disable=None if accelerator.is_main_process else True, mininterval=1)
        model.train()
        for step in range(first, steps):
            torch.manual_seed(data.mix("dropout", seed, step, accelerator.process_index))
            for group in solver.param_groups:
                group["lr"] = lr * group["factor"] * SCHEDULES[schedule](step / steps)
            batches = {name: stream.batch(step) for name, stream in streams.items()}
            names = list(leaves.leaves) if step == first else None
            terms = train_step(loss, batches, solver, trained, accelerator, grad_clip, combine, names)
            if after_step is not None:
                after_step(leaves, (step + 1) / steps)
            leaves.scatter()
            if average is not None:
                average.step(model.parameters())
            run.images_seen += batch_size * len(batches)
            log.add(step + 1, lr * SCHEDULES[schedule](step / steps), terms, last=step + 1 == steps)
            bar.update()
            if draw is not None and (step + 1) % save_every == 0:
                show(draw, step + 1, model, average, run)
            if time.monotonic() - saved > CHECKPOINT_SECONDS and step + 1 < steps:
                log.flush()
                keep(run, model, solver, average, step + 1)
                saved = time.monotonic()
        bar.close()
        if average is not None:
            average.copy_to(model.parameters())
    model.eval()


def make_streams(splits, batch_size, seed, flip, accelerator):
    """{name: data.Stream} of {name: Split}, this process's slices."""
    here = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    same = {"batch_size": batch_size, "seed": seed, "timesteps": models.TIMESTEPS, "flip": flip}
    return {name: data.Stream(split, name, **same, **here) for name, split in splits.items()}


def make_solver(leaves, optimizer, lr, weight_decay, lr_factors):
    """The optimizer of the leaves, in one group for each factor of the learning rate."""
    groups = {}
    for name, leaf in leaves.leaves.items():
        groups.setdefault((lr_factors or {}).get(name, 1.0), []).append(leaf)
    return OPTIMIZERS[optimizer]([{"params": part, "factor": factor} for factor, part in groups.items()], lr, weight_decay)


def refuse_untrained(names, trained):
    """Raise RunError if a trainable tensor has no gradient: the optimizer would pass it over in silence. Zeros are a gradient."""
    for name, leaf in zip(names, trained, strict=True):
        if leaf.requires_grad and leaf.grad is None:
            raise RunError(f"the loss gives {name} no gradient, so it would never be trained: let the model use it, or freeze it")


def train_step(loss, batches, solver, trained, accelerator, grad_clip, combine, names=None):
    """One step of the optimizer on what it holds; returns the loss terms. names: of `trained`, to refuse what gets no gradient."""
    terms = loss(**batches)
    if combine is None:
        sum(terms.values()).backward()
        if names is not None:
            refuse_untrained(names, trained)
        average_gradients(trained, accelerator)
    else:
        gradients = {}
        for i, (name, term) in enumerate(terms.items()):
            term.backward(retain_graph=i + 1 < len(terms))
            if names is not None:
                refuse_untrained(names, trained)
            average_gradients(trained, accelerator)
            gradients[name] = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in trained]
            solver.zero_grad(set_to_none=True)
        for leaf, gradient in zip(trained, combine(gradients), strict=True):
            leaf.grad = gradient
    if grad_clip:
        torch.nn.utils.clip_grad_norm_(trained, grad_clip)
    solver.step()
    solver.zero_grad(set_to_none=True)
    return terms


def average_gradients(trained, accelerator):
    """Average gradients over processes. Only what the optimizer holds is sent: a mask makes the message smaller too."""
    if accelerator.num_processes > 1:
        for leaf in trained:
            if leaf.grad is not None:
                leaf.grad = accelerator.reduce(leaf.grad, "mean")


def average_weights(model, ema):
    """diffusers' EMAModel of decay min(ema, (1 + n) / (10 + n)) after n steps; None without `ema`."""
    if not ema:
        return None
    from diffusers.training_utils import EMAModel

    return EMAModel(model.parameters(), decay=ema, foreach=True)


def show(draw, step, model, average, run):
    """Call draw(step) in eval mode and with the averaged weights; the time it takes is not the training's."""
    with run.paused(), torch.random.fork_rng():
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


def restore(run, model, solver, leaves, average):
    """Load the last checkpoint on --resume; return the step to go on from, 0 without one."""
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        return 0
    tensors, state = checkpoint
    part = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}  # noqa: E731
    model.load_state_dict(part("model."))
    leaves.gather(dict(model.named_parameters()))
    if average is not None:
        for i, tensor in part("average.").items():
            average.shadow_params[int(i)].copy_(tensor)
        average.optimization_step = state["step"]
    values = {}
    for name, tensor in part("optimizer.").items():
        i, key = name.split(".", 1)
        values.setdefault(int(i), {})[key] = tensor
    solver.load_state_dict({"state": values, "param_groups": solver.state_dict()["param_groups"]})
    run.seconds_before, run.images_seen = state["seconds"], state["images_seen"]
    run.start_clock()
    return state["step"]


def memory(accelerator):
    """{"peak_memory_mb"}: largest memory so far, allocated on a GPU, else the resident set of the process."""
    if accelerator.device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)}


# ------------------------------------------------------------------------------------------------- passes that do not train
def mean_gradient(model, scheduler, split, accelerator, *, passes, batch_size, seed):
    """Gradient of the noise-prediction loss over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    Eval mode, no augmentation, every image weighted once in each of `passes` passes with timesteps and noise of their own,
    accumulated in float32 in place: no copy beside the gradient.
    """
    model.eval()
    model.zero_grad(set_to_none=True)
    here = (accelerator.process_index, accelerator.num_processes)
    for number in range(passes):
        for x, y, t, noise in tqdm(data.whole_pass(split, batch_size, seed, models.TIMESTEPS, number, *here), "gradient", disable=None):
            prediction = predict(model, scheduler.add_noise(x, noise, t), t, y)
            (squared_error(prediction, noise).sum() / (passes * len(split))).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}


def fisher_diagonal(model, scheduler, split, accelerator, *, timesteps, seed):
    """Mean over a split of each image's squared gradient, {name: tensor}: the diagonal of the Fisher information.

    An image's gradient is that of its noise-prediction loss, mean-reduced over pixels and over `timesteps` timesteps spread evenly
    over the noise range, with noise of their own (selective amnesia, arXiv 2305.10120, takes all 1,000).
    """
    model.eval()
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    t = ((torch.arange(timesteps) + 0.5) * models.TIMESTEPS / timesteps).long()
    rows = split.rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
    for row in tqdm(rows.tolist(), "fisher", disable=None, mininterval=1):
        x, label = data.to_float(split.x[row : row + 1]), split.y[row]
        noises = torch.randn(timesteps, *x.shape[1:], generator=data.generator("fisher", seed, row))
        for part in torch.arange(timesteps).split(FISHER_BATCH):
            times, noise = t[part].to(x.device), noises[part].to(x.device)
            prediction = predict(model, scheduler.add_noise(x.expand_as(noise), noise, times), times, label.expand(len(part)))
            (squared_error(prediction, noise).sum() / timesteps).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name].addcmul_(parameter.grad, parameter.grad)
        model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") / len(split) for name, tensor in total.items()}
