from .rl import rl


def salun(model, forget, retain, fit, *, epochs=10, lr=0.013, alpha=1.0, mix=False):
    """SalUn, the paper's method (Eq. 5 and 6): random labelling of the forget set that moves the salient weights alone.

    `fit` carries the mask; unlearn.py refuses this method without one."""
    rl(model, forget, retain, fit, epochs=epochs, lr=lr, alpha=alpha, mix=mix)
