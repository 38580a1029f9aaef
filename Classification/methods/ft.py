from engine import cross_entropy


def ft(model, retain, fit, *, epochs=10, lr=0.01):
    """Fine-tuning: go on training on the retain set and let the forget set fade (the paper's baseline FT)."""
    fit(lambda epoch: [{"retain": retain}], lambda retain: {"retain": cross_entropy(model, retain)}, epochs=epochs, lr=lr)
