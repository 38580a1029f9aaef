def ga(model, forget, trainer, family, embeddings, *, steps=100, lr=1e-5):
    """Gradient ascent on the noise-prediction loss of the images to forget, under their own prompts. Reads nothing that is retained."""
    for batch in trainer.steps(steps, lr, forget):
        trainer.step(forget=-family.loss(model, batch, embeddings[batch.labels]))
