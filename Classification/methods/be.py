import torch

from engine import cross_entropy
from models import head


def be(model, forget, fit, *, epochs=10, lr=1e-5):
    """Boundary expanding (Chen et al. 2023, arXiv 2303.11570): train the forget set towards an output class that is new, then drop it.

    The extra class is a linear layer beside the model's own head, so the model itself never changes shape and nothing of the
    extra class can remain in it. Reads no retain data.
    """
    last = head(model)
    shadow = torch.nn.Linear(last.in_features, 1).to(last.weight.device)
    torch.nn.init.zeros_(shadow.weight)  # starts without preference, and needs no seed
    torch.nn.init.zeros_(shadow.bias)
    widen = last.register_forward_hook(lambda layer, inputs, output: torch.cat([output, shadow(inputs[0])], 1))
    try:
        fit(
            lambda epoch: [{"forget": forget}],
            lambda forget: {"forget": cross_entropy(model, forget, torch.full_like(forget.y, last.out_features))},
            epochs=epochs,
            lr=lr,
            extra=shadow,
        )
    finally:
        widen.remove()
