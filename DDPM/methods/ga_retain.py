from trainer import denoising_loss, drop_labels


def ga_retain(model, forget, retain, trainer, classes, training, *, steps=1000, lr=1e-4, alpha=1.0):
    """The official release's `--method ga`: ascent on the forgotten classes, descent on the retain set, -L_f + alpha * L_r.

    Both losses are sums over pixels, on which the gradient is clipped to norm 1, and both drop labels as in training. Steps, rate and
    alpha are the release's defaults. The paper has no such row for DDPM.
    """
    pixels = forget.images[0].numel()
    for batches in trainer.steps(steps, lr, forget, retain):
        forget_loss, retain_loss = (
            pixels * denoising_loss(model, batch, drop_labels(batch, classes.null, training["class_dropout"])) for batch in batches
        )
        trainer.step(forget=-forget_loss, retain=alpha * retain_loss)
