"""What a model that has forgotten a class is measured by, from samples of all classes.

Quality (FID, IS, KID, precision, recall) is torch-fidelity's, between samples and training images of the retained classes. With a
classifier's features in place of Inception's the same numbers carry other names: feature_distance is no FID.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

import data
import models
from cli import RunError

INCEPTION = "inception-v3-compat"  # its name in torch-fidelity
GAP_COLUMNS = ("UA", "remaining_accuracy")  # of table.py: what the average gap is the mean of
COLUMNS = ("UA", "forget_entropy", "forget_probability", "remaining_accuracy", "FID", "feature_distance", "RTE")
OURS = "in the features of the classifier"
DEFINITIONS = {  # name: (what it is, which way is good)
    "UA": ("unlearning accuracy: share of the forgotten classes' samples that the classifier does not recognise as their class, %", "high"),
    "forget_entropy": ("mean entropy of the classifier's output on samples of the forgotten classes, nats", "close to Retrain"),
    "forget_probability": ("mean probability that the classifier gives the forgotten class on its samples, %", "low"),
    "remaining_accuracy": ("share of the other classes' samples that the classifier recognises, %; a drop is collateral damage", "high"),
    "FID": ("Frechet Inception distance of the other classes' samples to their training images", "low"),
    "IS": ("inception score of the other classes' samples", "high"),
    "KID": ("kernel Inception distance", "low"),
    "precision": ("share of samples that lie among the training images, % (Kynkaanniemi et al. 2019)", "high"),
    "recall": ("share of training images that lie among the samples, %", "high"),
    "feature_distance": (f"Frechet distance as in FID, {OURS}: not a FID, comparable within one table only", "low"),
    "RTE": ("run-time efficiency: minutes of unlearning, with those of the mask", "low"),
    "peak_memory_mb": ("largest memory of the unlearning process (CPU: resident set, GPU: allocated), MB", "low"),
    "images_seen": ("images in the batches of the unlearning steps (generated samples and Fisher information not counted)", "low"),
    "changed": ("share of the weights that differ from the original model's, %", "low at equal forgetting"),
}
DEFINITIONS |= {f"feature_{name}": (f"as {name}, {OURS}", DEFINITIONS[name][1]) for name in ("IS", "KID", "precision", "recall")}


@torch.no_grad()
def classify(classifier, images, batch_size=250):
    """Logits (N, K), float32 on the CPU, of uint8 images (N, H, W, C)."""
    classifier.eval()
    device = next(classifier.parameters()).device
    logits = torch.cat([classifier(data.to_float(part.to(device))).float().cpu() for part in images.split(batch_size)])
    if not torch.isfinite(logits).all():
        raise RunError("the classifier gives NaN or infinite outputs: train it again with a lower --lr")
    return logits


def accuracy(logits, labels):
    """Top-1 accuracy in percent of logits (N, K) for labels (N,). NaN for no samples."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def forgetting(logits, labels, forgotten, names):
    """{"UA", "forget_entropy", "forget_probability", "remaining_accuracy", "class_accuracy"} of samples drawn for `labels` (N,).

    class_accuracy is {class name: share of its samples that the classifier recognises as that class, %}; names: by label.
    remaining_accuracy is the mean over all retained samples. Raises RunError where the forgotten or the other classes have none.
    """
    of_forgotten = torch.isin(labels, torch.tensor(forgotten))
    if not of_forgotten.any() or of_forgotten.all():
        found = "only" if of_forgotten.any() else "none of"
        raise RunError(f"the samples show {found} the forgotten classes: draw forgotten and other classes with sample.py")
    p = logits[of_forgotten].double().softmax(1)
    result = {
        "UA": 100 - accuracy(logits[of_forgotten], labels[of_forgotten]),
        "forget_entropy": torch.special.entr(p).sum(1).mean().item(),
        "forget_probability": 100 * p.gather(1, labels[of_forgotten][:, None]).mean().item(),
        "remaining_accuracy": accuracy(logits[~of_forgotten], labels[~of_forgotten]),
    }
    drawn = labels.unique().tolist()
    return result | {"class_accuracy": {names[label]: accuracy(logits[labels == label], labels[labels == label]) for label in drawn}}


def as_dataset(images, three_channels):
    """uint8 images (N, H, W, C) as torch-fidelity wants them: (3, H, W) each for Inception, (C, H, W) for a classifier of our own."""
    images = images.cpu().permute(0, 3, 1, 2).expand(-1, 3 if three_channels else images.shape[3], -1, -1)
    return Subset(images, range(len(images)))


def register_features(classifier):
    """Make a classifier's features and logits known to torch-fidelity; returns their name there. classifier: has features(x) and fc."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    class ClassifierFeatures(FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)
            self.classifier = classifier

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, x):
            features = self.classifier.features(x.float() / 127.5 - 1)
            return tuple(features if name == "features" else self.classifier.fc(features) for name in self.features_list)

    name = f"classifier-{id(classifier)}"
    register_feature_extractor(name, ClassifierFeatures)
    return name


def checked_inception(source, folder):
    """Path in `folder` of Inception's weights, read here as tensors and written again: torch-fidelity would run what a pickle holds.

    source: a file of them; None: torch-fidelity's own, from torch's cache or downloaded. Raises RunError, or OSError without network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    tensors = models.hub_weights(URL_INCEPTION_V3) if source is None else models.read_weights(source)
    path = Path(folder, "inception.pth")
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise RunError(f"could not write {path}: {error}") from error
    try:
        FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=path)
    except RuntimeError as error:
        raise RunError(f"{source or URL_INCEPTION_V3} does not hold the weights of torch-fidelity's Inception: name its file") from error
    return str(path)


def fidelity(samples, reference, *, extractor=INCEPTION, weights=None, cuda=False, cache=None, cache_name=None):
    """Quality of uint8 samples against reference images, both (N, H, W, C), by torch-fidelity.

    extractor: Inception, or a name by register_features(). weights: file of Inception's weights, downloaded without one. cache: a
    folder for the reference's features under `cache_name`. Returns FID, IS, KID, precision and recall (%), all but with Inception's
    features under names that start with feature_. Raises RunError if Inception cannot be had or there are too few images.
    """
    from torch_fidelity import calculate_metrics

    inception = extractor == INCEPTION
    fewest = min(len(samples), len(reference))
    if fewest < 10:
        raise RunError(f"{fewest} images are too few for a distance between sets of images: draw at least 10 of the other classes")
    options = dict(input1=as_dataset(samples, inception), input2=as_dataset(reference, inception))
    options |= dict(isc=True, fid=True, kid=True, prc=True, kid_subset_size=min(1000, fewest), cuda=cuda, verbose=False)
    options |= dict(cache=cache is not None, cache_root=None if cache is None else str(cache), input2_cache_name=cache_name)
    options |= dict(feature_extractor=extractor, save_cpu_ram=True)  # no worker processes, distances in blocks
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = checked_inception(weights, folder) if inception else None
            found = calculate_metrics(feature_extractor_weights_path=path, **options)
    except OSError as error:
        if not inception:
            raise
        otherwise = "pass --inception_weights FILE, or --features classifier, whose distances are not FIDs"
        raise RunError(f"Inception's weights could not be read or downloaded ({error}): {otherwise}") from error
    except (np.linalg.LinAlgError, ValueError) as error:
        raise RunError(f"no distance between samples and real images could be computed ({error}): is the extractor ruined?") from error
    bad = next((name for name, value in found.items() if not math.isfinite(value)), None)
    if bad:
        raise RunError(f"the {bad} of the samples is {found[bad]}: they are all alike, or the extractor is ruined")
    names = {"FID": "frechet_inception_distance", "IS": "inception_score_mean", "KID": "kernel_inception_distance_mean"}
    values = {name: found[key] for name, key in names.items()} | {name: 100 * found[name] for name in ("precision", "recall")}
    return values if inception else {"feature_distance" if name == "FID" else f"feature_{name}": value for name, value in values.items()}
