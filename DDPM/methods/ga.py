def ga(forget, fit, denoise, *, steps=1000, lr=1e-6):
    """Gradient ascent on the noise-prediction loss of the forgotten classes, under their own labels. Reads no retain data."""
    fit({"forget": forget}, lambda forget: {"forget": -denoise(forget, labels=forget.y)}, steps=steps, lr=lr)
