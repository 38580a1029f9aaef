import torch

from trainer import drop_labels, noisy_images, predict_noise, predict_together, squared_error


def salun(model, forget, retain, trainer, classes, targets, training, *, steps=1000, lr=1e-4, alpha=3.072):
    """SalUn, the paper's method (Eq. 7): |eps(x_t | c') - eps(x_t | c)|^2 on the forgotten classes, c' != c and its branch detached,
    + alpha * noise-prediction loss on the retain set.

    Only the salient weights move, theta_u = m * (delta + theta_o) + (1 - m) * theta_o: the trainer's optimizer holds no others.
    Both terms are means over pixels. The official release sums the second one, so its alpha of 1e-3 on CIFAR-10 (3 * 32 * 32 values)
    is 3.072 here.
    """
    targets = targets.to(forget.images.device)
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_noisy, retain_noisy = noisy_images(forget_batch), noisy_images(retain_batch)

        # What the model predicts for c', without gradients and without dropout
        model.eval()
        with torch.no_grad():
            target = predict_noise(model, forget_noisy, forget_batch.t, targets[forget_batch.labels])
        model.train()

        # Its predictions for c and for the retained images, in one forward pass
        labels = drop_labels(retain_batch, classes.null, training["class_dropout"])
        forget_prediction, retain_prediction = predict_together(
            model, (forget_noisy, forget_batch.t, forget_batch.labels), (retain_noisy, retain_batch.t, labels)
        )
        retain_loss = retain_batch.mean(squared_error(retain_prediction, retain_batch.noise))
        trainer.step(forget=forget_batch.mean(squared_error(forget_prediction, target)), retain=alpha * retain_loss)
