from .salun import salun


def rl(unet, forget, retain, trainer, scheduler, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5):
    """Relabelling: SalUn without a mask."""
    salun(unet, forget, retain, trainer, scheduler, embeddings, targets, steps=steps, lr=lr, alpha=alpha)
