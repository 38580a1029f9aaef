import contextlib

import torch

from trainer import squared_error

# compvis/train.py and configs/finetune_style.yaml of the authors: the rate is 2e-6 times the global batch, two GPUs of 4 images
TRAINING = {"train_method": "xattn_kv", "optimizer": "adamw", "weight_decay": 0.01, "batch_size": 8}


def ca(model, trainer, family, embeddings, targets, forgotten, generated, *, steps=100, lr=1.6e-5, alpha=0.0):
    """Concept ablation (Kumari et al. 2023, arXiv 2303.13516), model-based: on images of the target prompt c', which the original draws,
    |eps(x_t | c) - eps(x_t | c')|^2 with c the prompt to forget and the c' branch detached, + alpha * noise-prediction loss under c'.

    Reads no images. The authors' --regularization is alpha 0.2 in their compvis code and 1 in their diffusers code, and is off by
    default. As there, the start token's keys and values give no gradient. They draw c' from 200 prompts, here it is what
    --target_prompt names: pairs of several --forget_prompt and --target_prompt come nearest.
    """
    device = embeddings.device
    anchors = generated(targets[forgotten].unique().tolist(), "anchor")
    with start_token_detached(model):
        for batch in trainer.steps(steps, lr, anchors):
            noisy = family.noisy(batch)
            # Several prompts may share a target: they take turns, by the uniform number that comes with each sample
            sources = [torch.tensor(forgotten, device=device)[targets[forgotten] == target] for target in batch.labels]
            sources = torch.stack([source[int(u * len(source))] for source, u in zip(sources, batch.uniform, strict=True)])
            part, anchor_part = (noisy, batch.t, embeddings[sources]), (noisy, batch.t, embeddings[batch.labels])
            if alpha == 0:
                with torch.no_grad():
                    anchor = family.predict(model, *anchor_part)
                trainer.step(forget=batch.mean(squared_error(family.predict(model, *part), anchor)))
                continue
            forget_prediction, anchor = family.predict_together(model, part, anchor_part)
            anchor_target = family.target(batch.images, batch.noise, batch.t)
            trainer.step(
                forget=batch.mean(squared_error(forget_prediction, anchor.detach())),
                retain=alpha * batch.mean(squared_error(anchor, anchor_target)),
            )


@contextlib.contextmanager
def start_token_detached(unet):
    """While entered, no gradient flows through the first position of cross-attention's keys and values, which all prompts share."""

    def detach(layer, args, out):
        return torch.cat([out[:, :1].detach(), out[:, 1:]], dim=1)

    # In SD 3.5 another attention among image patches has that name, too
    crossing = [module for name, module in unet.named_modules() if name.endswith("attn2") and module.is_cross_attention]
    layers = [layer for module in crossing for layer in (module.to_k, module.to_v)]
    hooks = [layer.register_forward_hook(detach) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
