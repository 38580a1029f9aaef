from .salun import salun


def rl(model, forget, retain, trainer, classes, targets, training, *, steps=1000, lr=1e-4, alpha=3.072):
    """Relabelling, the paper's baseline RL: SalUn without a mask."""
    salun(model, forget, retain, trainer, classes, targets, training, steps=steps, lr=lr, alpha=alpha)
