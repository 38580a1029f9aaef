from .salun import salun


def rl(model, forget, retain, trainer, classes, targets, training, *, steps=1000, lr=1e-4, alpha=3.072, sum_alpha=None, target_dropout=0.1):
    """Relabelling, the paper's baseline RL: SalUn without a mask."""
    options = {"steps": steps, "lr": lr, "alpha": alpha, "sum_alpha": sum_alpha, "target_dropout": target_dropout}
    salun(model, forget, retain, trainer, classes, targets, training, **options)
