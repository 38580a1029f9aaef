import torch

from cli import non_negative_float, positive_float
from masking import apply_where


def scale(text):
    """An argparse type: a number of at least 0, or auto."""
    return text if text == "auto" else non_negative_float(text)


FLAGS = {
    "authors_code": dict(choices=("2023", "2025"), help="follow the authors' code of the paper, or that of 2025 (SD 3, FLUX: 2025 alone)"),
    "erase_scale": dict(type=positive_float, help="weight of the forgotten prompts"),
    "preserve": dict(choices=("named", "retained"), help="keep the prompts that --retain_prompts names, or all that are retained"),
    "preserve_scale": dict(type=scale, help="weight of the kept prompts, or auto: max(0.1, 1 / their number), 1 in the code of 2025"),
    "ridge": dict(type=positive_float, help="weight of staying near the original"),
}
TRAINING = {"train_method": "readers"}


@torch.no_grad()
def uce(
    model,
    family,
    embeddings,
    targets,
    forgotten,
    retained,
    named,
    ends,
    *,
    erase_scale=1.0,
    preserve="named",
    preserve_scale="auto",
    ridge=0.5,
    authors_code=None,
):
    """Unified concept editing (Gandikota et al. 2024, arXiv 2308.14761, Eq. 7): in closed form, the keys and values W of cross-attention
    that minimise sum_forgotten |W c - W_o c'|^2 + sum_kept |W c - W_o c|^2 + ridge * |W - W_o|^2, each sum times its scale.

    W = W_o (sum c' c^T + sum_kept c c^T + ridge I) (sum c c^T + sum_kept c c^T + ridge I)^-1. In the code of 2023 (train_erase.py) c and
    c' are the embeddings of a prompt from its last own token on to the end, aligned there, and a kept prompt has all its positions. The
    empty prompt is always kept. In that of 2025 (uce_sd_erase.py) each prompt is its last own token alone. So it is in uce_flux_edit.py,
    where W are the transformer's linear layers that read the encoded prompt and the pooled one. Reads no images, takes no steps.
    """
    authors_code = authors_code or family.UCE_CODE
    one_token, null = authors_code == "2025", len(embeddings) - 1
    kept = named if preserve == "named" else retained
    if one_token:
        kept = [number for number in kept if number != null]  # but not the empty prompt
    if preserve_scale == "auto":
        preserve_scale = 1.0 if one_token else max(0.1, 1 / len(kept))

    def rows(number, begin, end):
        """The rows (n, D) of `tensor` that stand for a prompt: those from `begin` to `end`, its last own tokens, or its only one."""
        if tensor.dim() == 2:
            return tensor[number][None].double()
        return tensor[number, ends[number] if one_token else slice(begin, end)].double()

    parameters, new = dict(model.named_parameters()), {}
    for name, suffixes in family.READERS.items():
        tensor = embeddings.tensors[name]
        before = ridge * torch.eye(tensor.shape[-1], dtype=torch.float64, device=tensor.device)
        after = before.clone()
        for number in forgotten:
            target = int(targets[number])
            starts, length = (ends[number][0], ends[target][0]), tensor.shape[1]
            count = length - max(starts)
            concept, target_concept = (rows(n, start, start + count) for n, start in zip((number, target), starts, strict=True))
            after += erase_scale * concept.T @ concept
            before += erase_scale * target_concept.T @ concept
        for number in kept:
            kept_rows = rows(number, 0, None)
            same = preserve_scale * kept_rows.T @ kept_rows
            after += same
            before += same
        edit = torch.linalg.solve(after, before, left=False).float()
        new |= {key: parameter.float() @ edit for key, parameter in parameters.items() if key.endswith(suffixes)}
    apply_where({key: parameters[key] for key in new}, new, None)
