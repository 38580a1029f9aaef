import torch

from trainer import noisy_latents, predict, predict_together, squared_error, training_target


def salun(unet, forget, retain, trainer, scheduler, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5):
    """SalUn, the paper's method (Eq. 7): |eps(x_t | c') - eps(x_t | c)|^2 on the images to forget, c' != c the target prompt and its
    branch detached, + alpha * noise-prediction loss on the images to retain. Both terms are means over latent values.

    Only the salient weights move, theta_u = m * (delta + theta_o) + (1 - m) * theta_o: the trainer's optimizer holds no others.
    """
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_noisy, retain_noisy = noisy_latents(scheduler, forget_batch), noisy_latents(scheduler, retain_batch)

        # What the model predicts for c', without gradients
        with torch.no_grad():
            target = predict(unet, forget_noisy, forget_batch.t, embeddings[targets[forget_batch.labels]])

        # Its predictions for c and for the retained images, in one forward pass
        forget_part = (forget_noisy, forget_batch.t, embeddings[forget_batch.labels])
        retain_part = (retain_noisy, retain_batch.t, embeddings[retain_batch.labels])
        forget_prediction, retain_prediction = predict_together(unet, forget_part, retain_part)
        retain_target = training_target(scheduler, retain_batch.images, retain_batch.noise, retain_batch.t)
        trainer.step(
            forget=forget_batch.mean(squared_error(forget_prediction, target)),
            retain=alpha * retain_batch.mean(squared_error(retain_prediction, retain_target)),
        )
