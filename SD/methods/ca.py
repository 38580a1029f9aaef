import torch

from trainer import noisy_latents, predict_together, squared_error, training_target

TRAINING = {"train_method": "xattn"}


def ca(unet, trainer, scheduler, embeddings, targets, forgotten, generated, *, steps=400, lr=2e-6, alpha=1.0):
    """Concept ablation (Kumari et al. 2023, arXiv 2303.13516), model-based: on images of the target prompt c', which the original draws,
    |eps(x_t | c) - eps(x_t | c')|^2 with c the prompt to forget and the c' branch detached, + alpha * noise-prediction loss under c'.

    Reads no images. The defaults are a guess after the paper's.
    """
    device = embeddings.device
    anchors = generated(targets[forgotten].unique().tolist(), "anchor")
    for batch in trainer.steps(steps, lr, anchors):
        noisy = noisy_latents(scheduler, batch)
        # Several prompts may share a target: they take turns, by the uniform number that comes with each sample
        sources = [torch.tensor(forgotten, device=device)[targets[forgotten] == target] for target in batch.labels]
        sources = torch.stack([source[int(u * len(source))] for source, u in zip(sources, batch.uniform, strict=True)])
        parts = (noisy, batch.t, embeddings[sources]), (noisy, batch.t, embeddings[batch.labels])
        forget_prediction, anchor_prediction = predict_together(unet, *parts)
        anchor_target = training_target(scheduler, batch.images, batch.noise, batch.t)
        trainer.step(
            forget=batch.mean(squared_error(forget_prediction, anchor_prediction.detach())),
            retain=alpha * batch.mean(squared_error(anchor_prediction, anchor_target)),
        )
