import torch
from tqdm import tqdm

from cli import RunError, positive_int
from passes import fisher_times

from .iu import influence

DAMPING = 1.0  # F starts as the identity, as in the release's recursion, so that its alpha is iu_scale
CLOSE = 1e-2  # largest residual, as a share of |v|, that counts as solved
FLAGS = {"cg_steps": dict(type=positive_int, help="steps of conjugate gradients, of two gradient passes over the Fisher samples each")}


def iu_exact(model, forget, retain, trainer, *, iu_scale=1.0, fisher_samples=1000, cg_steps=15):
    """Influence unlearning with the inverse that is meant (Koh & Liang 2017; WoodFisher): theta_o + iu_scale * F^-1 v.

    v is that of iu, and F = DAMPING * I + mean of g g^T over `fisher_samples` single retain samples. F^-1 v comes from conjugate
    gradients. F u takes one pass in forward mode, G u, and one weighted backward pass, G^T (G u), so no gradient of a single sample is
    ever held. Raises RunError where `cg_steps` steps leave a residual above CLOSE * |v|.
    """
    v = influence(model, forget, retain, trainer)
    few = retain.some(fisher_samples or len(retain), "iu", trainer.seed)
    bar = tqdm(total=cg_steps, desc="influence", disable=None)

    def times(u):
        bar.update()
        product = fisher_times(model, trainer.count(few), u)
        return {name: DAMPING * u[name] + product[name] for name in u}

    solution, residual = conjugate_gradients(times, v, cg_steps)
    bar.close()
    if residual > CLOSE:
        raise RunError(f"conjugate gradients left {100 * residual:.1f} % of v after {cg_steps} steps: raise --cg_steps")
    parameters = dict(model.named_parameters())
    trainer.update({name: (p + iu_scale * solution[name]).detach() for name, p in parameters.items()})


def dot(a, b):
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def conjugate_gradients(times, v, steps, tolerance=1e-4):
    """Solve A x = v for a symmetric positive A, given by times(u) = A u on {name: tensor}. Return (x, |v - A x| / |v|)."""
    solution = {name: torch.zeros_like(tensor) for name, tensor in v.items()}
    rest, direction = dict(v), dict(v)
    size = start = dot(v, v)
    for _ in range(steps):
        if size <= tolerance**2 * start:
            break
        product = times(direction)
        length = size / dot(direction, product)
        solution = {name: solution[name] + length * direction[name] for name in v}
        rest = {name: rest[name] - length * product[name] for name in v}
        before, size = size, dot(rest, rest)
        direction = {name: rest[name] + size / before * direction[name] for name in v}
    return solution, (size / start) ** 0.5 if start else 0.0
