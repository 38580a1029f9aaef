import torch

from engine import predict, predict_together, squared_error, wanted


def rl(unet, forget, retain, fit, scheduler, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5, train_method="full"):
    """Relabelling, SalUn's loss without its mask, Eq. 7: |eps(x_t | c') - eps(x_t | c)|^2 on the images to forget, c' != c the target
    prompt and its branch detached, + alpha * noise-prediction loss on the images to keep.

    Both terms are means over latent values. The two predictions that need gradients share one forward pass; c' goes through without
    storing activations.
    """

    def loss(forget, retain):
        forget_t, retain_t = (scheduler.add_noise(batch.x, batch.noise, batch.t) for batch in (forget, retain))
        with torch.no_grad():
            target = predict(unet, forget_t, forget.t, embeddings[targets[forget.y]])
        parts = (forget_t, forget.t, embeddings[forget.y]), (retain_t, retain.t, embeddings[retain.y])
        prediction, kept = predict_together(unet, *parts)
        return {
            "forget": forget.mean(squared_error(prediction, target)),
            "retain": alpha * retain.mean(squared_error(kept, wanted(scheduler, retain.x, retain.noise, retain.t))),
        }

    fit({"forget": forget, "retain": retain}, loss, steps=steps, lr=lr, train_method=train_method)
