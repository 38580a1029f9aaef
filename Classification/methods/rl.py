import torch

from data import Split
from engine import cross_entropy
from models import head


def other_labels(batch, num_classes):
    """Random labels, fresh at every step, that are never the true one: y' != y in Eq. 6 of the paper."""
    return (batch.y + 1 + batch.draw(num_classes - 1)) % num_classes


def rl(model, forget, retain, fit, *, epochs=10, lr=0.013, alpha=1.0, mix=False):
    """Random labelling (Golatkar et al. 2020), SalUn's loss without its mask, Eq. 6: CE(x, y') on the forget set + alpha * CE(x, y)
    on the retain set. An epoch is one pass over the forget set, then one over the retain set; with `mix` it is one pass over both."""
    num_classes = head(model).out_features
    both = Split(forget.x, forget.y, torch.cat([forget.rows, retain.rows]))

    def loss(forget=None, retain=None, both=None):
        if forget is not None:
            return {"forget": cross_entropy(model, forget, other_labels(forget, num_classes))}
        if retain is not None:
            return {"retain": alpha * cross_entropy(model, retain)}
        return mixed(both)

    def mixed(batch):
        of_forget = torch.isin(batch.rows, forget.rows).to(batch.y.device)
        labels = torch.where(of_forget, other_labels(batch, num_classes), batch.y)
        losses = torch.nn.functional.cross_entropy(model(batch.x), labels, reduction="none")
        return {"forget": batch.mean(losses * of_forget), "retain": alpha * batch.mean(losses * ~of_forget)}

    fit(lambda epoch: [{"both": both}] if mix else [{"forget": forget}, {"retain": retain}], loss, epochs=epochs, lr=lr)
