import torch

from models import head
from networks import widen
from trainer import cross_entropy


def be(model, forget, trainer, *, epochs=10, lr=1e-5):
    """Boundary expanding (Chen et al. 2023, arXiv 2303.11570): train the forget set towards a new output class, then drop that class.

    The extra class is a linear layer next to the model's own head. So the model itself never changes shape, and nothing of the
    extra class can remain in it. Reads no retain data.
    """
    last = head(model)
    shadow = torch.nn.Linear(last.in_features, 1).to(last.weight.device)
    torch.nn.init.zeros_(shadow.weight)  # starts without preference, and needs no seed
    torch.nn.init.zeros_(shadow.bias)
    hook = widen(last, shadow)
    try:
        for _ in trainer.epochs(epochs, lr, forget, extra=shadow):
            for batch in trainer.batches(forget):
                trainer.step(forget=cross_entropy(model, batch, torch.full_like(batch.labels, last.out_features)))
    finally:
        hook.remove()
