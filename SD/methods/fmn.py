import argparse

import torch

FLAGS = {"end_token": dict(action=argparse.BooleanOptionalAction, help="count every end token as the concept's too, padding included")}
# configs/attn.yaml of the authors
TRAINING = {"train_method": "full", "optimizer": "adamw", "weight_decay": 0.01, "batch_size": 1, "grad_clip": 1.0}


def fmn(model, forget, trainer, family, embeddings, targets, forgotten, words, *, steps=35, lr=2e-6, end_token=True):
    """Forget-Me-Not (Zhang et al. 2023, arXiv 2303.17591), attention resteering: on images to forget, under their own prompts, drive the
    cross-attention paid to the concept's tokens to zero.

    The loss of an image is one L2 norm over the attention probabilities of all layers, heads and pixels to these tokens, as in the
    authors' train_attn.py. end_token is their use_pooler, true in their configuration: on Stable Diffusion 1.x, whose padding consists
    of end tokens, it takes in all positions behind the prompt. Their textual inversion (use_ti) is left out: the concept's tokens are
    those of its prompt that the target lacks.
    """
    of_concept = torch.zeros(embeddings.tokens.shape[:2], device=embeddings.device)
    for number in forgotten:
        of_concept[number, concept_positions(words[number], words[int(targets[number])])] = 1
        if end_token:
            end = len(words[number]) + 1
            tokenizer = family.pipeline.tokenizer
            padded = tokenizer.pad_token_id == tokenizer.eos_token_id
            of_concept[number, end : None if padded else end + 1] = 1

    # What comes after the last layer's attention does not show in the loss, its values for one
    for batch in trainer.steps(steps, lr, forget, reaches_all=False):
        with CrossAttention(model) as attention:
            family.predict(model, family.noisy(batch), batch.t, embeddings[batch.labels])
        chosen = of_concept[batch.labels][:, None, None]
        norms = [(paid.float() * chosen).flatten(1).norm(dim=1) for paid in attention.found]
        trainer.step(forget=batch.mean(torch.stack(norms).norm(dim=0)))


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
