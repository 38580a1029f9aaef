from engine import cross_entropy


def retrain(model, retain, fit, fresh, training, *, epochs=None, lr=None):
    """Exact unlearning, what every other method is compared with: train from new random weights on the retain set alone,
    by default with epochs, learning rate and schedule of the original model's training."""
    model.load_state_dict(fresh().state_dict())
    fit(
        lambda epoch: [{"retain": retain}],
        lambda retain: {"retain": cross_entropy(model, retain)},
        epochs=training["epochs"] if epochs is None else epochs,
        lr=training["lr"] if lr is None else lr,
        schedule=training["schedule"],
    )
