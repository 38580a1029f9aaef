"""Several models per method against several retrained ones: pure functions of margins, log p - log(1 - p) of the true class.

An array of margins is (N, n): N models, n samples, the same samples in every row.
"""

import numpy as np

PRIOR = 4  # degrees of freedom that the pooled variance counts for in the variance of one sample
RATE, SMALLEST = 0.01, 100  # false-positive rate, and the samples it takes to see one


def variances(margins):
    """Variance of each sample's margins over the models, (n,), drawn towards their mean: few models say little of a single sample.

    One model gives no variance: ones.
    """
    count = len(margins)
    if count < 2:
        return np.ones(margins.shape[1])
    own = margins.var(0, ddof=1)
    return np.maximum((PRIOR * own.mean() + (count - 1) * own) / (PRIOR + count - 1), 1e-12)


def log_likelihood(values, margins):
    """Log density of values (n,) under a Gaussian for each sample, fitted to margins (N, n)."""
    spread = variances(margins)
    return -0.5 * ((values - margins.mean(0)) ** 2 / spread + np.log(spread))


def u_lira(unlearned, retrained):
    """The attack of U-LiRA (Hayes et al. 2024, arXiv 2403.01218): {"AUC", "TPR"} in percent, from two arrays of margins.

    An attacker who knows how both kinds of model answer to a sample decides which kind gave an answer, by the likelihood ratio. One
    model of each kind is left out, the Gaussians are fitted to the others, and the samples' ratios under the two left out are compared:
    for every such pair, then averaged. Two kinds that are the same give an AUC of 50 whatever N is. TPR, at a false-positive rate of
    1 %, needs 100 samples, and is absent for fewer. With two models a kind no variance is known, and only means are told apart.
    """
    areas, hits = [], []
    for i in range(len(unlearned)):
        of_unlearned = np.delete(unlearned, i, 0)
        for j in range(len(retrained)):
            of_retrained = np.delete(retrained, j, 0)
            ours, theirs = (log_likelihood(x, of_unlearned) - log_likelihood(x, of_retrained) for x in (unlearned[i], retrained[j]))
            areas.append(area(ours, theirs))
            hits.append(hit_rate(ours, theirs))
    result = {"AUC": 100 * float(np.mean(areas))}
    return result | ({"TPR": 100 * float(np.mean(hits))} if unlearned.shape[1] >= SMALLEST else {})


def hit_rate(ours, theirs):
    """Share of ours above the threshold that RATE of their kind exceeds. Of n values it lies between two, whose shares are interpolated:
    a further value of one kind exceeds the k-th largest with probability k / (n + 1)."""
    place = RATE * (len(theirs) + 1)
    k, largest = int(place), np.sort(theirs)[::-1]
    above, below = float((ours > largest[k - 1]).mean()), float((ours > largest[k]).mean())
    return above + (place - k) * (below - above)


def area(ours, theirs):
    """Chance that one of ours is larger than one of theirs, ties counting half."""
    below = np.searchsorted(np.sort(theirs), ours, "left")
    not_above = np.searchsorted(np.sort(theirs), ours, "right")
    return float((below + not_above).mean()) / (2 * len(theirs))


def klom(unlearned, retrained):
    """KL of margins (arXiv 2410.23232), (n,) in nats: of the unlearned models' margins from the retrained ones', sample by sample.

    Of Gaussians with variances(): their histograms need a hundred models.
    """
    ours, theirs = variances(unlearned), variances(retrained)
    shift = (unlearned.mean(0) - retrained.mean(0)) ** 2
    return 0.5 * (shift / theirs + ours / theirs - 1 - np.log(ours / theirs))


def klom_floor(count, others, samples=20_000):
    """The mean KLOM of `count` and `others` models of one kind, simulated: margins are normal, independent and equally variable."""
    draw = np.random.default_rng(0)
    return float(klom(draw.standard_normal((count, samples)), draw.standard_normal((others, samples))).mean())
