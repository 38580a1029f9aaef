import torch

from trainer import noisy_latents, predict

TRAINING = {"train_method": "xattn"}


def fmn(unet, forget, trainer, scheduler, embeddings, targets, forgotten, words, *, steps=35, lr=1e-5):
    """Forget-Me-Not (Zhang et al. 2023, arXiv 2303.17591), attention resteering: on images to forget, under their own prompts, drive the
    cross-attention paid to the concept's tokens to zero.

    The loss is the sum over all cross-attention layers of the mean square of these attention probabilities (the reduction is ours).
    """
    concept_tokens = torch.zeros(embeddings.shape[:2], device=embeddings.device)
    for number in forgotten:
        concept_tokens[number, concept_positions(words[number], words[int(targets[number])])] = 1

    # What comes after the last layer's attention does not show in the loss, its values for one
    for batch in trainer.steps(steps, lr, forget, reaches_all=False):
        with CrossAttention(unet) as attention:
            predict(unet, noisy_latents(scheduler, batch), batch.t, embeddings[batch.labels])
        chosen = concept_tokens[batch.labels]
        squares = [
            (paid.float().square() * chosen[:, None, None]).sum((1, 2, 3)) / (paid.shape[1] * paid.shape[2] * chosen.sum(1))
            for paid in attention.found
        ]
        trainer.step(forget=batch.mean(sum(squares)))


def concept_positions(prompt, target):
    """Positions, counted from the start token, of a prompt's tokens that its target lacks; of all its tokens where it lacks none."""
    lacking = [place + 1 for place, token in enumerate(prompt) if token not in target]
    return lacking or list(range(1, len(prompt) + 1)) or [1]


class CrossAttention:
    """While entered, keeps every cross-attention layer's probabilities (B, heads, pixels, tokens) in `found`, with gradients."""

    def __init__(self, unet):
        self.layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]

    def __enter__(self):
        self.found = []
        self.hooks = [layer.register_forward_pre_hook(self.look, with_kwargs=True) for layer in self.layers]
        return self

    def look(self, layer, args, kwargs):
        query = layer.head_to_batch_dim(layer.to_q(args[0] if args else kwargs["hidden_states"]))
        key = layer.head_to_batch_dim(layer.to_k(kwargs["encoder_hidden_states"]))
        paid = layer.get_attention_scores(query, key)
        self.found.append(paid.unflatten(0, (-1, layer.heads)))

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
