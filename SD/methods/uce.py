import torch

from cli import non_negative_float, positive_float
from masking import apply_where

FLAGS = {
    "erase_scale": dict(type=positive_float, help="weight of the forgotten prompts"),
    "preserve_scale": dict(type=non_negative_float, help="weight of the retained prompts"),
    "ridge": dict(type=positive_float, help="weight of staying near the original"),
}
TRAINING = {"train_method": "xattn"}


@torch.no_grad()
def uce(unet, embeddings, targets, forgotten, retained, words, *, erase_scale=1.0, preserve_scale=1.0, ridge=0.5):
    """Unified concept editing (Gandikota et al. 2024, arXiv 2308.14761): in closed form, the keys and values W of cross-attention that
    minimise sum_forgotten |W c - W_o c'|^2 + sum_retained |W c - W_o c|^2 + ridge * |W - W_o|^2, each sum times its scale.

    W = W_o (sum c' c^T + sum_r c c^T + ridge I) (sum c c^T + sum_r c c^T + ridge I)^-1. c and c' are the embeddings of a prompt from its
    last own token on to the end, aligned there. Reads no images, takes no steps. Scales and ridge are as we remember the authors' code.
    """

    def rows(number, length):
        start = len(words[number])  # that of its last token: the start token comes first
        return embeddings[number, start : start + length].double()

    width = embeddings.shape[2]
    before = ridge * torch.eye(width, dtype=torch.float64, device=embeddings.device)
    after = before.clone()
    for number in forgotten:
        target = int(targets[number])
        length = embeddings.shape[1] - max(len(words[number]), len(words[target]))
        concept, target_concept = rows(number, length), rows(target, length)
        after += erase_scale * concept.T @ concept
        before += erase_scale * target_concept.T @ concept
    for number in retained:
        retain_rows = rows(number, embeddings.shape[1])
        after += preserve_scale * retain_rows.T @ retain_rows
        before += preserve_scale * retain_rows.T @ retain_rows
    edit = torch.linalg.solve(after, before, left=False).float()
    parameters = {name: p for name, p in unet.named_parameters() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    apply_where(parameters, {name: p @ edit for name, p in parameters.items()}, None)
