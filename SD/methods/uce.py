import torch

from cli import non_negative_float, positive_float
from families.sd import KEYS_AND_VALUES
from masking import apply_where


def scale(text):
    """An argparse type: a number of at least 0, or auto."""
    return text if text == "auto" else non_negative_float(text)


FLAGS = {
    "authors_code": dict(choices=("2023", "2025"), help="follow the authors' code of the paper, or that of 2025"),
    "erase_scale": dict(type=positive_float, help="weight of the forgotten prompts"),
    "preserve": dict(choices=("named", "retained"), help="keep the prompts that --retain_prompts names, or all that are retained"),
    "preserve_scale": dict(type=scale, help="weight of the kept prompts, or auto: max(0.1, 1 / their number), 1 in the code of 2025"),
    "ridge": dict(type=positive_float, help="weight of staying near the original"),
}
TRAINING = {"train_method": "xattn_kv"}


@torch.no_grad()
def uce(
    model,
    embeddings,
    targets,
    forgotten,
    retained,
    named,
    words,
    *,
    erase_scale=1.0,
    preserve="named",
    preserve_scale="auto",
    ridge=0.5,
    authors_code="2023",
):
    """Unified concept editing (Gandikota et al. 2024, arXiv 2308.14761, Eq. 7): in closed form, the keys and values W of cross-attention
    that minimise sum_forgotten |W c - W_o c'|^2 + sum_kept |W c - W_o c|^2 + ridge * |W - W_o|^2, each sum times its scale.

    W = W_o (sum c' c^T + sum_kept c c^T + ridge I) (sum c c^T + sum_kept c c^T + ridge I)^-1. In the code of 2023 (train_erase.py) c and
    c' are the embeddings of a prompt from its last own token on to the end, aligned there, and a kept prompt has all its positions. The
    empty prompt is always kept. In that of 2025 (uce_sd_erase.py) each prompt is its last own token alone. Reads no images, takes no steps.
    """
    embeddings = embeddings.tokens
    one_token, length = authors_code == "2025", embeddings.shape[1]
    kept = named if preserve == "named" else retained
    if one_token:
        kept = [number for number in kept if number != len(embeddings) - 1]  # but not the empty prompt
    if preserve_scale == "auto":
        preserve_scale = 1.0 if one_token else max(0.1, 1 / len(kept))

    before = ridge * torch.eye(embeddings.shape[2], dtype=torch.float64, device=embeddings.device)
    after = before.clone()
    for number in forgotten:
        target = int(targets[number])
        ends = len(words[number]), len(words[target])  # where the last own tokens are: the start token comes first
        count = 1 if one_token else length - max(ends)
        pair = zip((number, target), ends, strict=True)
        concept, target_concept = (embeddings[prompt, end : end + count].double() for prompt, end in pair)
        after += erase_scale * concept.T @ concept
        before += erase_scale * target_concept.T @ concept
    for number in kept:
        rows = embeddings[number, len(words[number])][None] if one_token else embeddings[number]
        same = preserve_scale * rows.double().T @ rows.double()
        after += same
        before += same
    edit = torch.linalg.solve(after, before, left=False).float()
    parameters = {name: parameter for name, parameter in model.named_parameters() if name.endswith(KEYS_AND_VALUES)}
    apply_where(parameters, {name: parameter @ edit for name, parameter in parameters.items()}, None)
