import torch

from data import make_generator
from models import head
from networks import widen
from trainer import cross_entropy

TRAINING = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "augment": False}  # boundary_unlearning.py, main.py


def be(model, forget, trainer, *, epochs=10, lr=1e-5):
    """Boundary expanding (Chen et al. 2023, arXiv 2303.11570): train the forget set towards a new output class, then drop that class.

    The extra class is a linear layer next to the model's own head, Xavier normal as in the authors' code. So the model itself never
    changes shape, and nothing of the extra class can remain in it. Reads no retain data.
    """
    last = head(model)
    shadow = torch.nn.Linear(last.in_features, 1)
    wide = torch.empty(last.out_features + 1, last.in_features)  # the scale is that of the whole widened layer
    torch.nn.init.xavier_normal_(wide, generator=make_generator("be", trainer.seed))
    with torch.no_grad():
        shadow.weight.copy_(wide[-1:])
        shadow.bias.zero_()
    hook = widen(last, shadow.to(last.weight.device))
    try:
        for _ in trainer.epochs(epochs, lr, forget, extra=shadow):
            for batch in trainer.batches(forget):
                trainer.step(forget=cross_entropy(model, batch, torch.full_like(batch.labels, last.out_features)))
    finally:
        hook.remove()
