from trainer import cross_entropy


def l1_sparse(model, retain, trainer, *, epochs=10, lr=0.01, gamma=1e-4):
    """Sparsity-aware fine-tuning (Jia et al. 2023, arXiv 2304.04934): CE on the retain set + gamma_t * |theta|_1.

    gamma_t falls linearly from gamma in the first epoch towards 0 after the last. The authors' code states no gamma, which it calls alpha:
    1e-4 is that of Scissorhands' authors for this code (sh/main_0.1_cifar10.sh).
    """
    for epoch in trainer.epochs(epochs, lr, retain):
        for batch in trainer.batches(retain):
            norm = sum(parameter.abs().sum() for parameter in model.parameters() if parameter.requires_grad)
            trainer.step(retain=cross_entropy(model, batch), l1=gamma * (1 - epoch / epochs) * norm)
