import torch
from tqdm import tqdm

from cli import positive_float
from data import make_generator
from passes import mean_gradient, sample_gradients

DAMPING = 1.0  # F starts as the identity, as in the official recursion, so that its alpha is iu_scale
BLOCK_BYTES = 2 << 30  # two blocks of per-sample gradients are held at once
FLAGS = {"iu_scale": dict(type=positive_float, help="length of the step along the influence direction")}


def iu(model, forget, retain, trainer, *, iu_scale=1.0, fisher_samples=1000):
    """Influence unlearning with the WoodFisher inverse (the paper's baseline IU): theta_o + iu_scale * F^-1 v.

    v = (sum of gradients on the forget set) / N - (sum of gradients on the retain set) * n_f / (N * n_r), N = n_f + n_r, and
    F = DAMPING * I + mean of g g^T over `fisher_samples` single retain samples. F^-1 v is exact for that F: by the Woodbury
    identity it is (v - G^T (s * DAMPING * I + G G^T)^-1 G v) / DAMPING with the s gradients as rows of G, which equals the full
    WoodFisher recursion with its history. The official release keeps one auxiliary vector in place of that history.
    """
    order = torch.randperm(len(retain), generator=make_generator("iu", trainer.seed))[: fisher_samples or None]
    few = retain.take(order.sort().values)
    of_forget, of_retain = (
        mean_gradient(model, trainer.count(split), trainer.accelerator, trainer.settings.batch_size) for split in (forget, retain)
    )
    share = len(forget) / (len(forget) + len(retain))
    v = torch.cat([(of_forget[name] - of_retain[name]).flatten() * share for name in of_forget])
    step = iu_scale * inverse_times(v, lambda block: sample_gradients(model, trainer.count(block)), few)
    parameters = dict(model.named_parameters())
    pieces = step.split([parameter.numel() for parameter in parameters.values()])
    new = {name: p.detach() + piece.view(p.shape) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}
    trainer.update(new)


def inverse_times(v, samples, split):
    """Return (DAMPING * I + G^T G / s)^-1 v, G (s, n) being the per-sample gradients of the split, never held whole.

    samples: function of a split that yields blocks of its per-sample gradients. A block of rows is held while the rows after it are
    computed again, so memory is bounded and the arithmetic exact.
    """
    blocks = [split.take(positions) for positions in torch.arange(len(split)).split(max(1, BLOCK_BYTES // (4 * len(v))))]
    offsets = [0]
    for block in blocks:
        offsets.append(offsets[-1] + len(block))
    gram = torch.zeros(len(split), len(split), dtype=torch.float64)
    projection = torch.zeros(len(split), dtype=torch.float64)
    with tqdm(total=len(blocks) * (len(blocks) + 1) // 2 + len(blocks) * (len(blocks) > 1), desc="influence", disable=None) as bar:
        for i, block in enumerate(blocks):
            rows = matrix(samples, block, v)
            mine = slice(offsets[i], offsets[i + 1])
            projection[mine] = (rows @ v).double().cpu()
            for j in range(i, len(blocks)):
                other = rows if j == i else matrix(samples, blocks[j], v)
                part = (rows @ other.T).double().cpu()
                gram[mine, offsets[j] : offsets[j + 1]] = part
                gram[offsets[j] : offsets[j + 1], mine] = part.T
                bar.update()
        coefficients = torch.linalg.solve(gram + len(split) * DAMPING * torch.eye(len(split), dtype=torch.float64), projection)
        result = v.clone()
        for i, block in enumerate(blocks):
            if len(blocks) > 1:
                rows = matrix(samples, block, v)
                bar.update()
            result -= rows.T @ coefficients[offsets[i] : offsets[i + 1]].to(v)
    return result / DAMPING


def matrix(samples, split, v):
    """Per-sample gradients of a split as rows (B, n)."""
    rows, start = torch.empty(len(split), len(v), device=v.device), 0
    for block in samples(split):
        count = len(next(iter(block.values())))
        torch.cat([gradients.flatten(1) for gradients in block.values()], 1, out=rows[start : start + count])
        start += count
    return rows
