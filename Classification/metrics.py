"""What a forgotten model is measured by: pure functions of logits and labels. Results are in percent, but for KL and ToW.

Membership inference (MIA) is the paper's, described in appendix C.3 of arXiv 2304.04934: an SVC(C = 3, gamma "auto", rbf) learns to
tell training samples (members, drawn from the retain set) from samples never trained on, and is then asked about the forget set.
"""

import math
import statistics
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

CACHE_MB, ATTACKS_AT_ONCE = 200, 2  # bounds the memory: an SVC fills its cache
GAP_COLUMNS = ("UA", "RA", "TA", "MIA")  # of table.py: what the average gap is the mean of
COLUMNS = (*GAP_COLUMNS, "ToW", "RTE")
MORE = ("UA_test", "agreement", "KL", "agreement_test", "KL_test", "confusion", "forget_AUC", "forget_KS", "forget_attack", "MIA_noise")
DEFINITIONS = {  # name: (what it is, which way is good)
    "UA": ("unlearning accuracy: 100 - accuracy on the forget set", "close to Retrain"),
    "RA": ("remaining accuracy: accuracy on the retain set", "close to Retrain"),
    "TA": ("accuracy on held-out images; without the forgotten classes where whole classes are forgotten", "close to Retrain"),
    "MIA": ("share of the forget set that an SVC attack on the true class's confidence calls never trained on", "close to Retrain"),
    "MIA_correctness": ("the same attack on whether the prediction is correct", "close to Retrain"),
    "MIA_entropy": ("the same attack on the entropy of the output", "close to Retrain"),
    "MIA_modified_entropy": ("the same attack on the modified entropy, which knows the true class", "close to Retrain"),
    "MIA_probability": ("the same attack on all class probabilities", "close to Retrain"),
    "ToW": (
        "tug of war (arXiv 2406.01257): (1 - |dUA|)(1 - |dRA|)(1 - |dTA|), differences from the mean of Retrain, as fractions",
        "high, at most 1",
    ),
    "agreement": ("share of the forget set on which model and Retrain predict the same class", "high"),
    "KL": ("KL divergence of the model's output from Retrain's on the forget set, mean, nats", "low"),
    "agreement_test": ("share of held-out images on which model and Retrain predict the same class", "high"),
    "KL_test": ("KL divergence of the model's output from Retrain's on held-out images, mean, nats", "low"),
    "confusion": (
        "interclass confusion: total variation distance between what model and Retrain take held-out images of the forgotten classes for",
        "low",
    ),
    "forget_AUC": (
        "chance that a forget image has a larger margin, log p - log(1 - p) of the true class, than an unseen one of its kind",
        "close to Retrain, which has 50 on average",
    ),
    "forget_KS": ("Kolmogorov-Smirnov distance between the margins of forget and unseen images", "close to Retrain"),
    "forget_attack": (
        "accuracy of a classifier that tells forget from unseen images by the output, five folds, equal numbers",
        "close to Retrain, which has 50 on average",
    ),
    "UA_test": ("100 - accuracy on held-out images of the forgotten classes", "close to Retrain"),
    "RTE": ("run-time efficiency: minutes of unlearning, with those of the mask", "low"),
    "peak_memory_mb": ("largest memory of the unlearning process (CPU: resident set, GPU: allocated), MB", "low"),
    "images_seen": ("training images that went through the model while unlearning", "low"),
    "changed": ("share of the weights that differ from the original model's", "low at equal forgetting"),
}

REDRAWN = "standard deviation of {} over draws of its members and non-members"
DEFINITIONS |= {f"{name}_noise": (REDRAWN.format(name), "low") for name in list(DEFINITIONS) if name.startswith("MIA")}


def derive(run, retrain):
    """What follows from a run's numbers and the means over the retrained models, {name: number}: ToW."""
    shares = [1 - abs(run[name] - retrain[name]) / 100 for name in ("UA", "RA", "TA") if name in run and name in retrain]
    return {"ToW": math.prod(shares)} if len(shares) == 3 else {}


def accuracy(logits, labels):
    """Top-1 accuracy in percent of logits (N, K) for labels (N,). NaN for no samples."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def modified_entropy(probabilities, labels):
    """-(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i) (Song & Mittal 2021), (N,)."""
    true = F.one_hot(labels, probabilities.shape[1]).bool()
    log_p, log_rest = probabilities.clamp_min(1e-30).log(), (1 - probabilities).clamp_min(1e-30).log()
    return -torch.where(true, (1 - probabilities) * log_p, probabilities * log_rest).sum(1)


def attack_features(logits, labels):
    """{attack: features (N, d)} of float64 softmax outputs."""
    p = logits.double().softmax(1)
    return {
        "MIA": p.gather(1, labels[:, None]),
        "MIA_correctness": (p.argmax(1) == labels).double()[:, None],
        "MIA_entropy": torch.special.entr(p).sum(1, keepdim=True),
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
    svc = SVC(C=3, gamma="auto", kernel="rbf", cache_size=CACHE_MB).fit(rows[:, :-1], rows[:, -1], sample_weight=counts)
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
    with ThreadPoolExecutor(ATTACKS_AT_ONCE) as pool:  # libsvm releases the interpreter lock
        results = {name: pool.submit(attack, members[name].numpy(), non_members[name].numpy(), targets[name].numpy()) for name in targets}
        return {name: result.result() for name, result in tqdm(results.items(), "attacks", disable=None)}


def membership_noise(first, forget, retain, held_out, seed, draws):
    """{f"{attack}_noise": standard deviation of the attack's result over `draws` draws of members and non-members}.

    first: what membership() gave for the other arguments, the first of these draws.
    """
    found = [first, *(membership(forget, retain, held_out, seed + number) for number in range(1, draws))]
    return {f"{name}_noise": statistics.stdev(one[name] for one in found) for name in found[0]}


def agreement(logits, others):
    """(share of samples with the same prediction, mean KL(others || logits) in nats) of two models' logits (N, K)."""
    ours, theirs = logits.double().log_softmax(1), others.double().log_softmax(1)
    return accuracy(ours, theirs.argmax(1)), F.kl_div(ours, theirs, reduction="batchmean", log_target=True).item()


def confusion(logits, others, labels):
    """Total variation distance, mean over the classes in `labels` (N,), between the shares of each class that two models predict for it."""
    distances = []
    for label in labels.unique():
        ours, theirs = (F.one_hot(part[labels == label].argmax(1), logits.shape[1]).double().mean(0) for part in (logits, others))
        distances.append(50 * (ours - theirs).abs().sum().item())
    return statistics.fmean(distances)


def margin(logits, labels):
    """log p - log(1 - p) of the true class, (N,), float64: the logit minus the log-sum-exp of the others."""
    logits = logits.double()
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits[true] - logits.masked_fill(true, -math.inf).logsumexp(1)


def alike(forgotten, unseen, seed):
    """Places of unseen images of the forget set's kind: of its classes, and with its shares of them. Both arguments are labels.

    Shares that differ by no more than chance (chi-square test, p of 0.001 or more) are left alone, as those of random forget sets.
    Otherwise images are drawn: else an attack would tell the sets apart by their classes, whatever was forgotten.
    """
    from scipy.stats import chi2_contingency

    classes, wanted = forgotten.unique(return_counts=True)
    found = (unseen[:, None] == classes).sum(0)
    classes, wanted, found = (part[found > 0] for part in (classes, wanted, found))
    if len(classes) > 1 and chi2_contingency(torch.stack([wanted, found]).numpy()).pvalue < 0.001:
        scarce = (found / wanted).argmin()
        found = wanted * found[scarce] // wanted[scarce]
    order = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))
    rows = [order[unseen[order] == label][:count] for label, count in zip(classes, found, strict=True)]
    return torch.cat(rows).sort().values if rows else order[:0]


def two_sample(forget, unseen, seed):
    """Attacks on one model's outputs that need no other model. Each argument is (logits, labels). Returns {name: percent}.

    If the forget set is forgotten, its outputs are those of unseen images of the same kind, see alike().
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    ours, theirs = margin(*forget).numpy(), margin(*unseen).numpy()
    result = {"forget_AUC": 100 * float(mannwhitneyu(ours, theirs).statistic) / (len(ours) * len(theirs))}
    return result | {"forget_KS": 100 * float(ks_2samp(ours, theirs).statistic), "forget_attack": told_apart(forget, unseen, seed)}


def told_apart(forget, unseen, seed, folds=5):
    """Accuracy in percent of logistic regression on sorted log-probabilities and margin: cross-validated, equal numbers of both kinds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count, draw = min(len(forget[1]), len(unseen[1])), torch.Generator().manual_seed(seed)
    rows = []
    for logits, labels in (forget, unseen):
        chosen = torch.randperm(len(labels), generator=draw)[:count]
        logits, labels = logits[chosen], labels[chosen]
        rows.append(torch.cat([logits.double().log_softmax(1).sort(1).values, margin(logits, labels)[:, None]], 1))
    split = StratifiedKFold(min(folds, count), shuffle=True, random_state=seed % 2**32)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return 100 * float(cross_val_score(model, torch.cat(rows).numpy(), np.repeat([1, 0], count), cv=split).mean())
