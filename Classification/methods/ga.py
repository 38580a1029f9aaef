from trainer import cross_entropy


def ga(model, forget, trainer, *, epochs=5, lr=1e-4):
    """Gradient ascent on the forget set's cross-entropy (Thudi et al. 2022), the paper's baseline GA. Reads no retain data."""
    for _ in trainer.epochs(epochs, lr, forget):
        for batch in trainer.batches(forget):
            trainer.step(forget=-cross_entropy(model, batch))
