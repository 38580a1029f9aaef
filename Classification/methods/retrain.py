from trainer import cross_entropy

TRAINING = {"schedule": None}  # that of the original


def retrain(model, retain, trainer, fresh, training, *, epochs=None, lr=None):
    """Exact unlearning, the reference for all other methods: train from new random weights on the retain set alone.

    Epochs, learning rate and schedule are those of the original model's training, unless flags give others.
    """
    model.load_state_dict(fresh().state_dict())  # its normalisation is the original's
    epochs, lr = training["epochs"] if epochs is None else epochs, training["lr"] if lr is None else lr
    for _ in trainer.epochs(epochs, lr, retain):
        for batch in trainer.batches(retain):
            trainer.step(retain=cross_entropy(model, batch))
