import copy
from argparse import BooleanOptionalAction

import torch
from torch.nn import functional as F

from cli import RunError, non_negative_int
from passes import predict_logits
from trainer import cross_entropy

TEMPERATURE = 4.0  # of the distillation, as in the authors' code
RUNAWAY = 1e3  # a batch's mean KL * T^2 beyond this, where logits are hundreds apart, is not a classifier's answer any more
FLAGS = {
    "ascent_epochs": dict(type=non_negative_int, help="number of epochs, from the first on, that also ascend on the forget set"),
    "decay_epochs": dict(type=non_negative_int, nargs="*", metavar="E", help="epochs after which the learning rate falls to a tenth"),
    "rewind": dict(
        action=BooleanOptionalAction,
        help="SCRUB+R: keep the weights of the epoch whose error on the forget set is nearest to the validation error",
    ),
}
# large_scale_unlearning.ipynb
TRAINING = {"batch_size": 128, "forget_batch_size": 32, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "augment": False}


def scrub(
    model, forget, retain, val, trainer, *, epochs=3, lr=5e-4, alpha=1e-3, gamma=0.99, ascent_epochs=2, decay_epochs=(3, 5, 9), rewind=False
):
    """SCRUB (Kurmanji et al. 2023, arXiv 2302.09880): a student leaves its old self on the forget set and follows it elsewhere.

    Minimises alpha * KL + gamma * CE on the retain set. In each of the first `ascent_epochs` epochs, a pass that maximises KL on the
    forget set comes first. KL is between outputs at temperature 4, scaled by its square. Raises RunError where the ascent runs away.
    With `rewind` it ends in the state, of those after each epoch, whose error on the forget set is nearest to the last model's on the
    validation images of the forget set's classes.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    val = val.take(torch.isin(val.labels, forget.labels).nonzero().squeeze(1).cpu())
    if rewind and not len(val):
        raise RunError("--rewind needs validation images of the forgotten classes: train with --val_fraction above 0")
    states = States(model, epochs) if rewind else None

    def divergence(batch):
        with torch.no_grad():
            target = F.log_softmax(teacher(batch.images) / TEMPERATURE, 1)
        output = F.log_softmax(model(batch.images) / TEMPERATURE, 1)
        return batch.mean(F.kl_div(output, target, reduction="none", log_target=True).sum(1)) * TEMPERATURE**2

    ascents = min(ascent_epochs, epochs)
    steps = ascents * trainer.count_steps(forget) + epochs * trainer.count_steps(retain)
    for epoch in trainer.epochs(epochs, lr, total=steps, extra=states):
        trainer.lr = lr * 0.1 ** sum(epoch >= decay for decay in decay_epochs)
        if epoch < ascents:
            for batch in trainer.batches(forget):
                pushed = divergence(batch)
                trainer.step(forget=-pushed)
            if (reached := float(trainer.accelerator.reduce(pushed.detach(), "mean"))) > RUNAWAY:
                raise RunError(f"the ascent diverged, to a KL of {reached:.0f}: lower --lr or --ascent_epochs. No weights were written")
        for batch in trainer.batches(retain):
            trainer.step(retain=alpha * divergence(batch), cross_entropy=gamma * cross_entropy(model, batch))
        if rewind:
            states.keep(epoch, model)
    if rewind and epochs:
        go_back(model, states, epochs, trainer, forget, val)


class States(torch.nn.Module):
    """The model after each epoch, as buffers: so a checkpoint holds them, too."""

    def __init__(self, model, epochs):
        super().__init__()
        for epoch in range(epochs):
            for number, tensor in enumerate(model.state_dict().values()):
                self.register_buffer(f"{epoch}_{number}", torch.zeros_like(tensor))

    def keep(self, epoch, model):
        for number, tensor in enumerate(model.state_dict().values()):
            getattr(self, f"{epoch}_{number}").copy_(tensor)

    def restore(self, epoch, model):
        model.load_state_dict({name: getattr(self, f"{epoch}_{number}") for number, name in enumerate(model.state_dict())})


def go_back(model, states, epochs, trainer, forget, val):
    """Leave the model in the state whose error on the forget set is nearest to its last one on the validation images."""

    def error(split):
        return float((predict_logits(model, trainer.count(split)).argmax(1) != split.labels.cpu()).double().mean())

    reference, distances = error(val), []
    for epoch in range(epochs):
        states.restore(epoch, model)
        distances.append(abs(error(forget) - reference))
    states.restore(distances.index(min(distances)), model)
