def ga(forget, fit, denoise, *, steps=100, lr=1e-5, train_method="full"):
    """Gradient ascent on the noise-prediction loss of the images to forget, under their own prompts. Reads nothing that is kept."""
    fit({"forget": forget}, lambda forget: {"forget": -denoise(forget)}, steps=steps, lr=lr, train_method=train_method)
