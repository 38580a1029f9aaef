from .rl import rl


def salun(model, forget, retain, fit, *, epochs=10, lr=0.013, alpha=1.0, mix=False):
    """SalUn, the paper's method (Eq. 6): random labelling of the forget set that moves the salient weights alone,
    theta_u = m * (delta + theta_o) + (1 - m) * theta_o.

    `fit` carries the mask m; unlearn.py refuses this method without one.
    """
    rl(model, forget, retain, fit, epochs=epochs, lr=lr, alpha=alpha, mix=mix)
