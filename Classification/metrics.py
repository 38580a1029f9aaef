"""What a forgotten model is measured by: pure functions of logits and labels, all results in percent.

Membership inference (MIA) is the paper's, described in appendix C.3 of arXiv 2304.04934: an SVC(C = 3, gamma "auto", rbf) learns to
tell training samples (members, drawn from the retain set) from samples never trained on, and is then asked about the forget set.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

GAP_COLUMNS = ("UA", "RA", "TA", "MIA")  # of table.py: what the average gap is the mean of
COLUMNS = (*GAP_COLUMNS, "RTE")
DEFINITIONS = {  # name: (what it is, which way is good)
    "UA": ("unlearning accuracy: 100 - accuracy on the forget set", "close to Retrain"),
    "RA": ("remaining accuracy: accuracy on the retain set", "close to Retrain"),
    "TA": ("accuracy on held-out images; without the forgotten classes where whole classes are forgotten", "close to Retrain"),
    "MIA": ("share of the forget set that an SVC attack on the true class's confidence calls never trained on", "close to Retrain"),
    "MIA_correctness": ("the same attack on whether the prediction is correct", "close to Retrain"),
    "MIA_entropy": ("the same attack on the entropy of the output", "close to Retrain"),
    "MIA_modified_entropy": ("the same attack on the modified entropy, which knows the true class", "close to Retrain"),
    "MIA_probability": ("the same attack on all class probabilities", "close to Retrain"),
    "UA_test": ("100 - accuracy on held-out images of the forgotten classes", "close to Retrain"),
    "RTE": ("run-time efficiency: minutes of unlearning, with those of the mask", "low"),
    "peak_memory_mb": ("largest memory of the unlearning process (CPU: resident set, GPU: allocated), MB", "low"),
    "images_seen": ("training images that went through the model while unlearning", "low"),
    "changed": ("share of the weights that differ from the original model's", "low at equal forgetting"),
}


def accuracy(logits, labels):
    """Top-1 accuracy in percent of logits (N, K) for labels (N,). NaN for no samples."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def entropy(probabilities):
    """-sum p log p, (N,)."""
    return -(probabilities * probabilities.clamp_min(1e-30).log()).sum(1)


def modified_entropy(probabilities, labels):
    """-(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i) (Song & Mittal 2021), (N,)."""
    true = torch.nn.functional.one_hot(labels, probabilities.shape[1]).bool()
    log_p, log_rest = probabilities.clamp_min(1e-30).log(), (1 - probabilities).clamp_min(1e-30).log()
    return -torch.where(true, (1 - probabilities) * log_p, probabilities * log_rest).sum(1)


def attack_features(logits, labels):
    """{attack: features (N, d)} of float64 softmax outputs."""
    p = logits.double().softmax(1)
    return {
        "MIA": p.gather(1, labels[:, None]),
        "MIA_correctness": (p.argmax(1) == labels).double()[:, None],
        "MIA_entropy": entropy(p)[:, None],
        "MIA_modified_entropy": modified_entropy(p, labels)[:, None],
        "MIA_probability": p,
    }


def attack(members, non_members, targets):
    """Percentage of `targets` (N, d) that an SVC trained on members and non-members calls non-members.

    Equal rows are merged into one of their joint weight: the same problem for the SVC, and a fast one for discrete features.
    """
    from sklearn.svm import SVC

    features = np.concatenate([members, non_members])
    is_member = np.repeat([1, 0], [len(members), len(non_members)])
    rows, counts = np.unique(np.column_stack([features, is_member]), axis=0, return_counts=True)
    svc = SVC(C=3, gamma="auto", kernel="rbf", cache_size=500).fit(rows[:, :-1], rows[:, -1], sample_weight=counts)
    return 100 * float((svc.predict(targets) == 0).mean())


def membership(forget, retain, held_out, seed):
    """All attacks. Each argument is (logits (N, K), labels (N,)). Returns {attack: percentage of the forget set called non-member}.

    Members are as many retain samples, drawn by `seed`, as there are held-out samples (or the other way round if fewer are retained).
    """
    count = min(len(retain[1]), len(held_out[1]))
    draw = torch.Generator().manual_seed(seed)

    def some(logits, labels):
        rows = torch.randperm(len(labels), generator=draw)[:count]
        return attack_features(logits[rows], labels[rows])

    members, non_members, targets = some(*retain), some(*held_out), attack_features(*forget)
    with ThreadPoolExecutor() as pool:  # libsvm releases the interpreter lock
        results = {name: pool.submit(attack, members[name].numpy(), non_members[name].numpy(), targets[name].numpy()) for name in targets}
        return {name: result.result() for name, result in tqdm(results.items(), "attacks", disable=None)}
