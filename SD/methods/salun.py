from .rl import rl


def salun(unet, forget, retain, fit, scheduler, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5, train_method="full"):
    """SalUn, the paper's method (Eq. 7): relabelling that moves the salient weights alone,
    theta_u = m * (delta + theta_o) + (1 - m) * theta_o.

    `fit` carries the mask m; unlearn.py refuses this method without one.
    """
    rl(unet, forget, retain, fit, scheduler, embeddings, targets, steps=steps, lr=lr, alpha=alpha, train_method=train_method)
