import torch

from trainer import squared_error


def salun(model, forget, retain, trainer, family, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5):
    """SalUn, the paper's method (Eq. 7): |eps(x_t | c') - eps(x_t | c)|^2 on the images to forget, c' != c the target prompt and its
    branch detached, + alpha * noise-prediction loss on the images to retain. Both terms are means over latent values.

    Only the salient weights move, theta_u = m * (delta + theta_o) + (1 - m) * theta_o: the trainer's optimizer holds no others.
    """
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_noisy, retain_noisy = family.noisy(forget_batch), family.noisy(retain_batch)

        # What the model predicts for c', without gradients
        with torch.no_grad():
            target = family.predict(model, forget_noisy, forget_batch.t, embeddings[targets[forget_batch.labels]])

        # Its predictions for c and for the retained images, in one forward pass
        forget_part = (forget_noisy, forget_batch.t, embeddings[forget_batch.labels])
        retain_part = (retain_noisy, retain_batch.t, embeddings[retain_batch.labels])
        forget_prediction, retain_prediction = family.predict_together(model, forget_part, retain_part)
        retain_target = family.target(retain_batch.images, retain_batch.noise, retain_batch.t)
        trainer.step(
            forget=forget_batch.mean(squared_error(forget_prediction, target)),
            retain=alpha * retain_batch.mean(squared_error(retain_prediction, retain_target)),
        )
