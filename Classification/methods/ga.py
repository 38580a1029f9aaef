from engine import cross_entropy


def ga(model, forget, fit, *, epochs=5, lr=1e-4):
    """Gradient ascent on the forget set's cross-entropy (the paper's baseline GA, Thudi et al. 2022). Reads no retain data."""
    fit(lambda epoch: [{"forget": forget}], lambda forget: {"forget": -cross_entropy(model, forget)}, epochs=epochs, lr=lr)
