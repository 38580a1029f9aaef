import torch

from engine import predict_together, squared_error, wanted


def ca(unet, own_samples, fit, scheduler, embeddings, targets, forgotten, *, steps=400, lr=2e-6, alpha=1.0, train_method="xattn"):
    """Concept ablation (Kumari et al. 2023, arXiv 2303.13516), model-based: on images of the target prompt c', which the original draws,
    |eps(x_t | c) - eps(x_t | c')|^2 with c the prompt to forget and the c' branch detached, + alpha * noise-prediction loss under c'.

    Reads no images. The defaults are a guess after the paper's.
    """
    anchors = targets[forgotten].unique()
    device = embeddings.device

    def loss(anchor):
        x_t = scheduler.add_noise(anchor.x, anchor.noise, anchor.t)
        # Several prompts may share a target: they take turns, by the uniform number that each sample brings along
        sources = [torch.tensor(forgotten, device=device)[targets[forgotten] == target] for target in anchor.y]
        asked = torch.stack([source[int(u * len(source))] for source, u in zip(sources, anchor.uniform, strict=True)])
        prediction, kept = predict_together(unet, (x_t, anchor.t, embeddings[asked]), (x_t, anchor.t, embeddings[anchor.y]))
        return {
            "forget": anchor.mean(squared_error(prediction, kept.detach())),
            "retain": alpha * anchor.mean(squared_error(kept, wanted(scheduler, anchor.x, anchor.noise, anchor.t))),
        }

    fit({"anchor": own_samples(anchors.tolist())}, loss, steps=steps, lr=lr, train_method=train_method)
