from trainer import denoising_loss, drop_labels

TRAINING = dict.fromkeys(("batch_size", "optimizer", "weight_decay", "schedule", "grad_clip", "ema"))  # as the original


def retrain(model, retain, trainer, classes, fresh, training, *, steps=None, lr=None):
    """Train from scratch, as the original was trained, without the forgotten classes: the reference for all other methods.

    Equals train.py --retain_only with the same seed.
    """
    model.load_state_dict(fresh().state_dict())
    steps, lr = training["steps"] if steps is None else steps, training["lr"] if lr is None else lr
    retain.name = "train"  # the stream of batches that train.py draws
    scale = retain.images[0].numel() if training["loss"] == "sum" else 1
    for batch in trainer.steps(steps, lr, retain):
        trainer.step(train=scale * denoising_loss(model, batch, drop_labels(batch, classes.null, training["class_dropout"])))
