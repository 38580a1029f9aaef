import torch

from engine import predict


def fmn(unet, forget, fit, scheduler, embeddings, concept_tokens, *, steps=35, lr=1e-5, train_method="xattn"):
    """Forget-Me-Not (Zhang et al. 2023, arXiv 2303.17591), attention resteering: on images to forget, under their own prompts, drive the
    cross-attention paid to the concept's tokens to zero.

    The loss is the sum over all cross-attention layers of the mean square of these attention probabilities (the reduction is ours). The
    concept's tokens are those of its prompt that the target prompt lacks.
    """
    wanted = torch.zeros(embeddings.shape[:2], device=embeddings.device)
    for number, positions in concept_tokens().items():
        wanted[number, positions] = 1

    def loss(forget):
        x_t = scheduler.add_noise(forget.x, forget.noise, forget.t)
        with CrossAttention(unet) as attention:
            predict(unet, x_t, forget.t, embeddings[forget.y])
        chosen = wanted[forget.y]
        squares = [
            (paid.float().square() * chosen[:, None, None]).sum((1, 2, 3)) / (paid.shape[1] * paid.shape[2] * chosen.sum(1))
            for paid in attention.found
        ]
        return {"forget": forget.mean(sum(squares))}

    # What comes after the last layer's attention does not show in the loss, its values for one
    fit({"forget": forget}, loss, steps=steps, lr=lr, train_method=train_method, reaches_all=False)


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
