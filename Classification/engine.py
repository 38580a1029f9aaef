"""The loop that trains and unlearns, and the passes that only look: predictions, gradients, Fisher diagonals."""

import contextlib
import math
import resource
import sys
import time

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import data
import masking
from run import RunError

CHECKPOINT_SECONDS = 15  # an epoch that ends this long after the last checkpoint is followed by one
LOG_STEPS = 20  # steps a row of log.csv
GRADIENT_BYTES = 512 << 20  # memory for per-sample gradients held at once

OPTIMIZERS = {
    "sgd": lambda leaves, lr, momentum, weight_decay: torch.optim.SGD(leaves, lr, momentum=momentum, weight_decay=weight_decay),
    "adam": lambda leaves, lr, momentum, weight_decay: torch.optim.Adam(leaves, lr, weight_decay=weight_decay),
    "adamw": lambda leaves, lr, momentum, weight_decay: torch.optim.AdamW(leaves, lr, weight_decay=weight_decay),
}
SCHEDULES = {  # factor of the learning rate at progress 0 <= p < 1 through the run
    "constant": lambda p: 1.0,
    "step": lambda p: 0.1 ** ((p >= 91 / 182) + (p >= 136 / 182)),
    "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
    "linear": lambda p: max(p, 0.01) / 0.15 if p < 0.15 else (1 - p) / 0.85,  # a warm-up, then down to 0
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

    On several GPUs BatchNorm takes its statistics over all of them (PyTorch cannot on CPUs).
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
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


def cross_entropy(model, batch, labels=None):
    """This process's share of the mean cross-entropy over the global batch, with the true labels unless others are given."""
    return batch.mean(F.cross_entropy(model(batch.x), batch.y if labels is None else labels, reduction="none"))


def fit(
    model,
    passes,
    loss,
    *,
    epochs,
    lr,
    batch_size,
    seed,
    accelerator,
    run,
    mask=None,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=5e-4,
    schedule="constant",
    augment=None,
    extra=None,
    after_step=None,
):
    """Train the salient weights of `model` in place: the one training loop.

    passes: function epoch -> list of passes over the data, each a dict {name: Split} of splits that are walked through
    together, the longest once. loss: called with {name: Batch} as keywords; returns {term: scalar}, whose sum is minimised.
    extra: a module trained along with the model, outside the mask. after_step(leaves, progress): may edit the leaves in place.
    Raises RunError when the loss is not finite or the first step gives a tensor no gradient. With --resume the run's last checkpoint
    is continued, to the same bytes.
    """
    with masking.Leaves(dict(model.named_parameters()), mask) as leaves:
        trained = leaves.parameters() + (list(extra.parameters()) if extra is not None else [])
        names = list(leaves.leaves) + ([name for name, _ in extra.named_parameters()] if extra is not None else [])
        solver = OPTIMIZERS[optimizer](trained, lr, momentum, weight_decay)
        first, step = restore(run, model, extra, solver, leaves)
        total = sum(steps_in(splits, batch_size) for epoch in range(epochs) for splits in passes(epoch))
        log = Log(run, accelerator, step)
        saved = time.monotonic()
        bar = tqdm(total=total, initial=step, desc="train", disable=None if accelerator.is_main_process else True, mininterval=1)
        for epoch in range(first, epochs):
            torch.manual_seed(data.mix("dropout", seed, epoch, accelerator.process_index))
            noise = data.generator("batches", seed, epoch)
            for splits in passes(epoch):
                for batches in batches_of(splits, batch_size, noise, augment, accelerator):
                    for group in solver.param_groups:
                        group["lr"] = lr * SCHEDULES[schedule](step / total)
                    terms = train_step(model, loss, batches, solver, trained, accelerator, names)
                    names = None  # the first step has told
                    step += 1
                    if after_step is not None:
                        after_step(leaves, step / total)
                    leaves.scatter()
                    run.images_seen += sum(batch.size for batch in batches.values())
                    log.add(step, epoch, solver.param_groups[0]["lr"], terms)
                    bar.update()
            log.flush()
            if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < epochs:
                keep(run, model, extra, solver, epoch + 1, step)
                saved = time.monotonic()
        bar.close()
    model.eval()


def refuse_untrained(names, trained):
    """Raise RunError if a trainable tensor has no gradient: the optimizer would pass it over in silence. Zeros are a gradient."""
    for name, leaf in zip(names, trained, strict=True):
        if leaf.requires_grad and leaf.grad is None:
            raise RunError(f"the loss gives {name} no gradient, so it would never be trained: let the model use it, or freeze it")


def train_step(model, loss, batches, solver, trained, accelerator, names=None):
    """One step of the optimizer on what it holds; returns the loss terms. names: of `trained`, to refuse what gets no gradient."""
    model.train()
    terms = loss(**batches)
    sum(terms.values()).backward()
    if names is not None:
        refuse_untrained(names, trained)
    average_gradients(trained, accelerator)
    solver.step()
    solver.zero_grad(set_to_none=True)
    return terms


def steps_in(splits, batch_size):
    return max(-(-len(split) // batch_size) for split in splits.values())


def batches_of(splits, batch_size, noise, augment, accelerator):
    """Yield {name: Batch}: the longest split is walked through once, a shorter one again and again in new orders."""

    def forever(split):
        while True:
            yield from data.epoch_batches(split, batch_size, noise, augment, accelerator.process_index, accelerator.num_processes)

    streams = {name: forever(split) for name, split in splits.items()}
    for _ in range(steps_in(splits, batch_size)):
        yield {name: next(stream) for name, stream in streams.items()}


def average_gradients(trained, accelerator):
    """Average gradients over processes. Only what the optimizer holds is sent: a mask makes the message smaller too."""
    if accelerator.num_processes > 1:
        for leaf in trained:
            if leaf.grad is not None:
                leaf.grad = accelerator.reduce(leaf.grad, "mean")


class Log:
    """Means of the loss terms since the last row of log.csv; refuses a loss that is not finite."""

    def __init__(self, run, accelerator, step):
        self.run, self.accelerator, self.step, self.sums, self.counts = run, accelerator, step, {}, {}

    def add(self, step, epoch, lr, terms):
        self.step, self.row = step, {"step": step, "epoch": epoch, "lr": lr}
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        if step % LOG_STEPS == 0:
            self.flush()

    def flush(self):
        if not self.sums:
            return
        means = {name: float(self.accelerator.reduce(self.sums[name], "mean")) / self.counts[name] for name in sorted(self.sums)}
        for name, value in means.items():
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} loss became {value} by step {self.step}: lower --lr, or look for NaN in the data; no weights were written"
                )
        self.run.log(**self.row, **means, seconds=round(self.run.seconds(), 3))
        self.sums, self.counts = {}, {}


def keep(run, model, extra, solver, epoch, step):
    """Write a checkpoint: model, extra module, optimizer state and counters. All noise follows from seed and epoch."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if extra is not None:
        tensors |= {f"extra.{name}": tensor for name, tensor in extra.state_dict().items()}
    for i, values in solver.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items() if value is not None}
    run.checkpoint(tensors, epoch=epoch, step=step, seconds=run.seconds(), images_seen=run.images_seen)


def restore(run, model, extra, solver, leaves):
    """Load the last checkpoint on --resume; return the epoch and step to go on from, (0, 0) without one."""
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        return 0, 0
    tensors, state = checkpoint
    part = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}  # noqa: E731
    model.load_state_dict(part("model."))
    if extra is not None:
        extra.load_state_dict(part("extra."))
    leaves.gather(dict(model.named_parameters()))
    values = {}
    for name, tensor in part("optimizer.").items():
        i, key = name.split(".", 1)
        values.setdefault(int(i), {})[key] = tensor
    solver.load_state_dict({"state": values, "param_groups": solver.state_dict()["param_groups"]})
    run.seconds_before, run.images_seen = state["seconds"], state["images_seen"]
    run.start_clock()
    return state["epoch"], state["step"]


def memory(accelerator):
    """{"peak_memory_mb"}: largest memory so far, allocated on a GPU, else the resident set of the process."""
    if accelerator.device.type == "cuda":
        return {"peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)}


# --------------------------------------------------------------------------------------- passes that do not train
def plain_batches(split, batch_size):
    """Yield (x, y) over a split in order, without augmentation."""
    for rows in split.rows.split(batch_size):
        rows = rows.to(split.x.device)
        yield data.to_float(split.x[rows]), split.y[rows]


@torch.no_grad()
def predict(model, split, batch_size=1000):
    """Return the logits (N, K), float32 on the CPU, of a split in eval mode without augmentation."""
    model.eval()
    outputs = []
    for x, _ in tqdm(plain_batches(split, batch_size), "predict", -(-len(split) // batch_size), disable=None, mininterval=1):
        outputs.append(model(x).cpu())
    return torch.cat(outputs) if outputs else torch.empty(0, 0)


def mean_gradient(model, split, accelerator, batch_size=256):
    """Gradient of the mean cross-entropy over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    Eval mode, no augmentation, every sample weighted once, accumulated in float32 in place: no copy beside the gradient.
    """
    model.eval()
    model.zero_grad(set_to_none=True)
    rows = split.rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
    for x, y in tqdm(plain_batches(split.take(rows), batch_size), "gradient", -(-len(rows) // batch_size), disable=None, mininterval=1):
        (F.cross_entropy(model(x), y, reduction="sum") / len(split)).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}


def sample_gradients(model, split):
    """Yield {name: (B, *shape)}: each sample's gradient of the cross-entropy, in eval mode and float32, in blocks bounded by memory."""
    model.eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    size = sum(parameter.numel() for parameter in parameters.values()) * 4

    def loss(parameters, x, y):
        logits = torch.func.functional_call(model, (parameters, buffers), (x[None],))
        return F.cross_entropy(logits, y[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for x, y in plain_batches(split, max(1, min(64, GRADIENT_BYTES // size))):
        with without_autocast(model):
            gradients = each(parameters, x, y)
        yield gradients


def fisher_diagonal(model, split):
    """Mean over a split of each sample's squared gradient, {name: tensor}: the diagonal of the empirical Fisher information."""
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with tqdm(total=len(split), desc="fisher", disable=None, mininterval=1) as bar:
        for block in sample_gradients(model, split):
            for name, gradients in block.items():
                total[name] += gradients.square().sum(0)
            bar.update(len(gradients))
    return {name: tensor / len(split) for name, tensor in total.items()}
