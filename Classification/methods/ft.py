from trainer import cross_entropy


def ft(model, retain, trainer, *, epochs=10, lr=0.01):
    """Fine-tuning, the paper's baseline FT: train on the retain set and let the forget set fade."""
    for _ in trainer.epochs(epochs, lr, retain):
        for batch in trainer.batches(retain):
            trainer.step(retain=cross_entropy(model, batch))
