from .salun import salun


def rl(model, forget, retain, trainer, *, epochs=10, lr=0.013, alpha=1.0, mix=False):
    """Random labelling (Golatkar et al. 2020), the paper's baseline RL: SalUn without a mask."""
    salun(model, forget, retain, trainer, epochs=epochs, lr=lr, alpha=alpha, mix=mix)
