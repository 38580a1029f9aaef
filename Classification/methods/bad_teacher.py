import copy

import torch
from torch.nn import functional as F

from cli import ratio
from data import concatenate

FLAGS = {"retain_share": dict(type=ratio, help="share of the retain set that is used, drawn once")}
TRAINING = {"optimizer": "adam", "weight_decay": 0.0, "batch_size": 256}  # CIFARSuper20_Rocket_Unlearn.ipynb, unlearn.py


def bad_teacher(model, forget, retain, trainer, fresh, *, epochs=1, lr=1e-4, retain_share=0.3):
    """Bad Teacher (Chundawat et al. 2023, arXiv 2205.08096): learn from an untrained model on the forget set, from the original elsewhere.

    Minimises KL(teacher | student) over both sets, shuffled, at temperature 1. The authors divide it by the number of classes as well,
    which Adam does not notice.
    """
    trainer.mixes()
    bad, good = fresh().to(trainer.accelerator.device).eval(), copy.deepcopy(model).eval()
    count = max(1, round(retain_share * len(retain)))
    both = concatenate(forget, retain.some(count, "bad_teacher", trainer.seed), "both")
    for _ in trainer.epochs(epochs, lr, both):
        for batch in trainer.batches(both):
            of_forget = batch.positions < len(forget)
            with torch.no_grad():
                target = torch.where(of_forget[:, None], bad(batch.images), good(batch.images)).log_softmax(1)
            losses = F.kl_div(model(batch.images).log_softmax(1), target, reduction="none", log_target=True).sum(1)
            trainer.step(forget=batch.mean(losses * of_forget), retain=batch.mean(losses * ~of_forget))
