from .salun import salun


def rl(model, forget, retain, trainer, family, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5):
    """Relabelling: SalUn without a mask."""
    salun(model, forget, retain, trainer, family, embeddings, targets, steps=steps, lr=lr, alpha=alpha)
