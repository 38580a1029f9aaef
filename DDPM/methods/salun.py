import torch

from trainer import drop_labels, noisy_images, predict_noise, predict_together, squared_error


def salun(
    model, forget, retain, trainer, classes, targets, training, *, steps=1000, lr=1e-4, alpha=3.072, sum_alpha=None, target_dropout=0.1
):
    """SalUn, the paper's method (Eq. 7): |eps(x_t | c') - eps(x_t | c)|^2 on the forgotten classes, c' != c and its branch detached,
    + alpha * noise-prediction loss on the retain set.

    Only the salient weights move, theta_u = m * (delta + theta_o) + (1 - m) * theta_o: the trainer's optimizer holds no others.
    Both terms are means over pixels. The official release sums the second one: its alpha of 1e-3 is sum_alpha here, and on CIFAR-10
    (3 * 32 * 32 values) alpha 3.072. It also drops c and c' with probability 0.1 each (target_dropout), which Eq. 7 does not.
    """
    targets = targets.to(forget.images.device)
    alpha = alpha if sum_alpha is None else sum_alpha * forget.images[0].numel()
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_noisy, retain_noisy = noisy_images(forget_batch), noisy_images(retain_batch)

        # What the model predicts for c', without gradients
        c, other = drop_both(forget_batch, targets[forget_batch.labels], classes.null, target_dropout)
        target = detached_prediction(model, forget_noisy, forget_batch.t, other, dropout=target_dropout > 0)

        # Its predictions for c and for the retained images, in one forward pass
        labels = drop_labels(retain_batch, classes.null, training["class_dropout"])
        forget_prediction, retain_prediction = predict_together(
            model, (forget_noisy, forget_batch.t, c), (retain_noisy, retain_batch.t, labels)
        )
        retain_loss = retain_batch.mean(squared_error(retain_prediction, retain_batch.noise))
        trainer.step(forget=forget_batch.mean(squared_error(forget_prediction, target)), retain=alpha * retain_loss)


def drop_both(batch, others, null, probability):
    """(the batch's labels, `others`), each label replaced by the null class with that probability, independently of one another."""
    p, u = probability, batch.uniform  # both in [0, p^2), the first alone up to p, the second alone up to p + p (1 - p)
    second = (u < p * p) | ((u >= p) & (u < p + p * (1 - p)))
    return torch.where(u < p, null, batch.labels), torch.where(second, null, others)


def detached_prediction(model, noisy, t, labels, dropout):
    """The model's own prediction as a target. dropout: with the U-Net's dropout, as in the official release."""
    model.train(dropout)
    with torch.no_grad():
        target = predict_noise(model, noisy, t, labels)
    model.train()
    return target
