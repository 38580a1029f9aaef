from .rl import rl


def salun(model, forget, retain, fit, scheduler, classes, training, targets, *, steps=1000, lr=1e-4, alpha=3.072):
    """SalUn, the paper's method (Eq. 7): relabelling that moves the salient weights alone,
    theta_u = m * (delta + theta_o) + (1 - m) * theta_o.

    `fit` carries the mask m; unlearn.py refuses this method without one.
    """
    rl(model, forget, retain, fit, scheduler, classes, training, targets, steps=steps, lr=lr, alpha=alpha)
