from trainer import denoising_loss


def ga(unet, forget, trainer, scheduler, embeddings, *, steps=100, lr=1e-5):
    """Gradient ascent on the noise-prediction loss of the images to forget, under their own prompts. Reads nothing that is retained."""
    for batch in trainer.steps(steps, lr, forget):
        trainer.step(forget=-denoising_loss(unet, scheduler, batch, embeddings[batch.labels]))
