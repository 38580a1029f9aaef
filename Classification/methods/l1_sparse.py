from engine import cross_entropy


def l1_sparse(model, retain, fit, *, epochs=10, lr=0.01, gamma=5e-5):
    """Sparsity-aware fine-tuning (Jia et al. 2023, arXiv 2304.04934): CE on the retain set + gamma_t * |theta|_1, where gamma_t falls
    linearly from gamma in the first epoch towards 0 after the last."""
    weight = gamma

    def passes(epoch):
        nonlocal weight
        weight = gamma * (1 - epoch / epochs)
        return [{"retain": retain}]

    def loss(retain):
        norm = sum(parameter.abs().sum() for parameter in model.parameters() if parameter.requires_grad)
        return {"retain": cross_entropy(model, retain), "l1": weight * norm}

    fit(passes, loss, epochs=epochs, lr=lr)
