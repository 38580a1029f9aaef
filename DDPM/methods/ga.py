from trainer import denoising_loss


def ga(model, forget, trainer, *, steps=1000, lr=1e-6):
    """Gradient ascent on the noise-prediction loss of the forgotten classes, under their own labels. Reads no retain data."""
    for batch in trainer.steps(steps, lr, forget):
        trainer.step(forget=-denoising_loss(model, batch, batch.labels))
