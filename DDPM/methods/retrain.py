def retrain(model, retain, fit, fresh, denoise, training, *, steps=None, lr=None):
    """Train anew, as the original was trained, without the forgotten classes: the standard the other methods are held to.

    Equals train.py --retain_only with the same seed.
    """
    model.load_state_dict(fresh().state_dict())
    fit(
        {"train": retain},
        lambda train: {"train": denoise(train)},
        steps=training["steps"] if steps is None else steps,
        lr=training["lr"] if lr is None else lr,
        optimizer=training["optimizer"],
        weight_decay=training["weight_decay"],
        schedule=training["schedule"],
        grad_clip=training["grad_clip"],
        ema=training["ema"],
    )
