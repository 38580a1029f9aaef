"""Metrics against hand-made cases. Each names the mutation that would break it."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import draw_rates
import many
import metrics
import passes
import relearn
import table
from files import read_json, write_json
from helpers import TINY, ok, script


def test_accuracy():
    """Mutation: fractions in place of percent."""
    assert metrics.accuracy(torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]]), torch.tensor([0, 1, 1, 0])) == 75


def test_modified_entropy_by_hand():
    """Mutation: p where 1 - p belongs (a fault of the official release)."""
    p, y = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64), torch.tensor([0])
    assert float(metrics.modified_entropy(p, y)) == pytest.approx(-(0.3 * math.log(0.7) + 0.2 * math.log(0.8) + 0.1 * math.log(0.9)))
    sure = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    assert float(metrics.modified_entropy(sure, y)) == 0 and float(metrics.modified_entropy(sure, torch.tensor([1]))) > 10


def test_attack_tells_members_from_non_members():
    """Mutation: count members in place of non-members."""
    draw = np.random.default_rng(0)
    members, outsiders = draw.uniform(0.9, 1, (200, 1)), draw.uniform(0, 0.6, (200, 1))
    assert metrics.attack(members, outsiders, draw.uniform(0.95, 1, (50, 1))) == 0
    assert metrics.attack(members, outsiders, draw.uniform(0, 0.5, (50, 1))) == 100
    assert metrics.attack(members, outsiders, np.array([[0.99], [0.1], [0.2], [0.98]])) == 50


def test_merging_equal_rows_changes_nothing():
    """Mutation: forget sample_weight."""
    from sklearn.svm import SVC

    draw = np.random.default_rng(1)
    members, outsiders, targets = draw.integers(2, 9, (300, 1)) / 8, draw.integers(0, 8, (300, 1)) / 8, np.arange(9)[:, None] / 8
    plain = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate([members, outsiders]), [1] * 300 + [0] * 300)
    assert metrics.attack(members, outsiders, targets) == 100 * (plain.predict(targets) == 0).mean()


def test_membership_finds_the_forgotten():
    """Mutation: take members from the forget set."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (400,), generator=draw)
    sure = 8 * torch.nn.functional.one_hot(labels, 5) + torch.randn(400, 5, generator=draw)
    unsure = 1.5 * torch.nn.functional.one_hot(labels, 5) + torch.randn(400, 5, generator=draw)
    known = metrics.membership((sure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)
    forgotten = metrics.membership((unsure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)
    assert set(known) == {name for name in metrics.DEFINITIONS if name.startswith("MIA") and not name.endswith("_noise")}
    for name in ("MIA", "MIA_entropy", "MIA_modified_entropy", "MIA_probability"):
        assert known[name] < 10 and forgotten[name] > 80
    assert known == metrics.membership((sure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)


def test_membership_equals_plain_scikit_learn_on_the_same_logits():
    """Mutation: merge rows of members with rows of non-members, train on the forget set, take p for 1 - p in one of the entropies."""
    from sklearn.svm import SVC

    draw = torch.Generator().manual_seed(3)

    def logits(count, scale):
        labels = torch.randint(4, (count,), generator=draw)
        return torch.randn(count, 4, generator=draw) + scale * torch.nn.functional.one_hot(labels, 4), labels

    forget, retain, unseen = logits(90, 3), logits(150, 4), logits(150, 2)

    def features(logits, labels):
        p = np.exp(logits.double().numpy())
        p, y = p / p.sum(1, keepdims=True), labels.numpy()
        own = p[np.arange(len(y)), y]
        rest = p.copy()
        rest[np.arange(len(y)), y] = 0
        modified = -(1 - own) * np.log(own) - (rest * np.log(1 - rest)).sum(1)
        columns = {"MIA": own, "MIA_correctness": (p.argmax(1) == y) * 1.0, "MIA_entropy": -(p * np.log(p)).sum(1)}
        return {name: column[:, None] for name, column in (columns | {"MIA_modified_entropy": modified}).items()} | {"MIA_probability": p}

    found = metrics.membership(forget, retain, unseen, 0)
    members, others, targets = (features(*part) for part in (retain, unseen, forget))
    for name in targets:
        svc = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate([members[name], others[name]]), [1] * 150 + [0] * 150)
        assert found[name] == pytest.approx(100 * (svc.predict(targets[name]) == 0).mean()), name


def test_the_attacks_keep_to_a_bounded_memory(monkeypatch):
    """Mutation: all five at once, each with a cache of 500 MB."""
    assert metrics.CACHE_MB * metrics.ATTACKS_AT_ONCE <= 400
    sizes, pools, pool = [], [], metrics.ThreadPoolExecutor
    import sklearn.svm

    class Spy(sklearn.svm.SVC):
        def __init__(self, **options):
            sizes.append(options["cache_size"])
            super().__init__(**options)

    monkeypatch.setattr(sklearn.svm, "SVC", Spy)
    monkeypatch.setattr(metrics, "ThreadPoolExecutor", lambda workers: pools.append(workers) or pool(workers))
    draw = torch.Generator().manual_seed(0)
    metrics.membership(*((torch.randn(20, 3, generator=draw), torch.randint(3, (20,), generator=draw)) for _ in range(3)), 0)
    assert sizes == [metrics.CACHE_MB] * 5 and pools == [metrics.ATTACKS_AT_ONCE]


def test_the_noise_of_an_attack_is_its_spread_over_draws():
    """Mutation: the same draw every time. Without a choice of members there is none."""
    draw = torch.Generator().manual_seed(0)
    some = lambda count: (torch.randn(count, 3, generator=draw), torch.randint(3, (count,), generator=draw))  # noqa: E731
    forget, retain, unseen = some(50), some(300), some(40)
    runs = [metrics.membership(forget, retain, unseen, 7 + number) for number in range(4)]
    noise = metrics.membership_noise(runs[0], forget, retain, unseen, 7, 4)
    assert noise["MIA_noise"] == pytest.approx(np.std([run["MIA"] for run in runs], ddof=1)) and noise["MIA_noise"] > 0
    alone = forget, unseen, unseen, 7
    assert metrics.membership_noise(metrics.membership(*alone), *alone, 2)["MIA_noise"] == 0


def test_likeness_to_retrain_by_hand():
    """Mutation: KL the other way round, natural for binary logarithms, distances summed instead of halved."""
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]), torch.tensor([[0.2, 0.6, 0.2], [0.8, 0.1, 0.1]])
    same, divergence = metrics.agreement(p.log(), q.log())
    assert same == 50 and divergence == pytest.approx((0.2 * math.log(0.4) + 0.6 * math.log(2.4) + 0.2 * math.log(0.8)) / 2, rel=1e-5)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    ours, theirs = (torch.nn.functional.one_hot(torch.tensor(row), 3).float() for row in ([1, 1, 2, 2, 1, 1], [1, 2, 2, 2, 1, 1]))
    assert metrics.confusion(ours, theirs, labels) == pytest.approx((25 + 0) / 2)
    assert metrics.derive({"UA": 10.0, "RA": 90.0, "TA": 50.0}, {"UA": 0.0, "RA": 100.0, "TA": 75.0}) == {
        "ToW": pytest.approx(0.9 * 0.9 * 0.75)
    }
    assert metrics.derive({"UA": 1.0}, {"UA": 1.0}) == {}


def test_two_sample_attacks_are_blind_to_equal_outputs_and_see_others():
    """Mutation: confidence in place of the margin's rank, train and test on the same images, unequal numbers in the classifier."""
    draw = torch.Generator().manual_seed(0)

    def outputs(count, scale):
        labels = torch.randint(5, (count,), generator=draw)
        return torch.randn(count, 5, generator=draw) + scale * torch.nn.functional.one_hot(labels, 5), labels

    logits, labels = outputs(50, 2)
    p = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(metrics.margin(logits, labels), (p / (1 - p)).log())
    equal, other = metrics.two_sample(outputs(300, 2), outputs(1500, 2), 0), metrics.two_sample(outputs(300, 6), outputs(1500, 2), 0)
    assert 45 < equal["forget_AUC"] < 55 and equal["forget_KS"] < 9 and 44 < equal["forget_attack"] < 56
    assert other["forget_AUC"] > 95 and other["forget_KS"] > 80 and other["forget_attack"] > 90


@pytest.mark.parametrize("count", [2, 3, 16])
def test_u_lira_of_equal_models_is_blind_whatever_their_number(count):
    """Mutation: fit the Gaussians to the model that is judged, too, or leave out one of the two only."""
    draw = np.random.default_rng(count)
    centre = draw.standard_normal(2000)
    unlearned, retrained = (centre + draw.standard_normal((count, 2000)) for _ in range(2))
    attack = many.u_lira(unlearned, retrained)
    assert attack["AUC"] == pytest.approx(50, abs=1.5) and attack["TPR"] == pytest.approx(1, abs=0.8)
    draw = np.random.default_rng(2)
    for n in (100, 129, 199):  # Mutation: the share above the k-th largest of n, which is k / (n + 1)
        assert np.mean([many.hit_rate(*draw.standard_normal((2, n))) for _ in range(4000)]) == pytest.approx(0.01, rel=0.08)
    assert many.klom(unlearned, retrained).mean() == pytest.approx(many.klom_floor(count, count), rel=0.2)
    shifted = many.u_lira(unlearned + 2, retrained)
    assert shifted["AUC"] > 80 and shifted["TPR"] > 10
    assert many.klom(unlearned + 2, retrained).mean() > 1.5 + many.klom_floor(count, count)
    if count > 2:
        wider = many.u_lira(centre + 4 * (unlearned - centre), retrained)
        assert wider["AUC"] > 75
    assert "TPR" not in many.u_lira(unlearned[:, :99], retrained[:, :99])


def test_klom_is_the_divergence_of_two_gaussians():
    """Mutation: divide the shift by the unlearned models' variance, or by the standard deviation."""
    ours, theirs = np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[4.0, 0.0], [8.0, 4.0]])
    s, r = many.variances(ours), many.variances(theirs)
    assert s.tolist() == [2, 2] and r.tolist() == [8, 8]
    expected = [0.5 * (25 / 8 + 2 / 8 - 1 - math.log(2 / 8)), 0.5 * (1 / 8 + 2 / 8 - 1 - math.log(2 / 8))]
    assert many.klom(ours, theirs).tolist() == pytest.approx(expected)


@pytest.fixture(scope="module")
def runs_of_two(home, tmp_path_factory):
    """A folder with two originals' runs of retrain and ft, the same 120 images forgotten."""
    folder = tmp_path_factory.mktemp("many")
    for seed in (1, 2):
        start = ("--model_path", folder / f"original{seed}", "--num_forget 120 --epochs 2 --lr 0.05 --precision fp32 --seed", seed)
        train = ("--data_dir", home / "data", "--seed", seed, "--save_dir", folder / f"original{seed}")
        ok("train", TINY, "--epochs 2", *train)
        for method in ("retrain", "ft"):
            ok("unlearn", "--method", method, *start, "--save_dir", folder / f"{method}{seed}")
    return folder


@pytest.mark.slow
def test_many_models_and_relearning_from_a_folder_of_runs(runs_of_two, tmp_path, capsys, monkeypatch):
    """Mutation: compare runs of other forget sets, count a run twice, relearn on all forget images or from the start in each epoch.

    Also: ask for every retain image, however many there are.
    """
    ok("evaluate_many", runs_of_two)
    asked = set()
    predict = passes.predict_logits
    monkeypatch.setattr(passes, "predict_logits", lambda model, split: asked.add((split.name, len(split))) or predict(model, split))
    monkeypatch.setattr(relearn, "REST", 300)
    ok("relearn", runs_of_two, "--epochs 3 1")
    assert asked == {("forget", 110), ("retain", 300)}
    (row,) = json.loads((runs_of_two / "many.json").read_text())["rows"]
    assert row["method"] == "ft" and row["models"] == 2 and 30 < row["U-LiRA AUC"] <= 100 and row["KLOM forget"] > 0
    text = (runs_of_two / "many.md").read_text()
    assert "2 retrained models, 120 forget images." in text and "no variance is known" in text and "- floor: " in text
    rows = json.loads((runs_of_two / "relearn.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["retrain", "ft"] and all(row["runs"] == 2 for row in rows)
    assert all(row["other epoch"] != row["other before"] for row in rows)
    stages = ["other before", "other step", "other epoch", "other 3 epochs", "other gained"]
    assert [name for name in rows[0] if name.startswith("other")] == stages
    for row in rows:  # Mutation: gained by the first of --epochs, or by the step
        assert row["other gained"] == pytest.approx(row["other 3 epochs"] - row["other before"])
    assert (
        all(row["other 3 epochs"] != row["other epoch"] for row in rows) and "Minus Retrain" not in (runs_of_two / "relearn.md").read_text()
    )
    assert script("relearn", runs_of_two, "--lr 1e30") == 1 and "relearning diverged at --lr 1e+30" in capsys.readouterr().err
    assert script("relearn", runs_of_two, "--num_images 120") == 1 and "leaves none of the 120 forget images" in capsys.readouterr().err
    start = ("--model_path", runs_of_two / "original1", "--epochs 0 --lr 0.05 --seed 3 --precision fp32")
    copied = tmp_path / "copied"  # Retrain of another original with the same seed is the same model
    shutil.copytree(runs_of_two, copied)
    shutil.copy(copied / "retrain1" / "model.safetensors", copied / "retrain2")
    assert script("evaluate_many", copied) == 1 and "are one model, not two" in capsys.readouterr().err
    cases = [  # folder, method and flags of one more run, what is said
        ("odd", "retrain --num_forget 120 --split_seed 5", "forget different sets"),
        ("lonely", "ga --num_forget 120", "holds one run of ga"),
        ("mixed", "ga --num_forget 121", "cannot be compared"),
        ("one_original", "ft --num_forget 120", "holds runs of ft from one original"),
    ]
    for name, method, message in cases:
        shutil.copytree(runs_of_two, tmp_path / name)
        (tmp_path / name / "many.md").unlink()
        ok("unlearn", "--method", method, *start, "--save_dir", tmp_path / name / "more")
        args = tmp_path / name / "more" / "args.json"
        args.write_text(args.read_text().replace('"epochs": 0', '"epochs": 2'))  # the flags of the others
        assert script("evaluate_many", tmp_path / name) == 1 and message in capsys.readouterr().err
        assert not (tmp_path / name / "many.md").exists()
    assert script("relearn", tmp_path / "mixed") == 1 and "cannot be compared" in capsys.readouterr().err
    (copied / "ft1" / "done.json").unlink()
    assert script("relearn", copied) == 1 and "did not finish" in capsys.readouterr().err


def test_what_comes_back_is_compared_with_retrain_seed_by_seed():
    """Mutation: pair the runs by their order; compare with the mean of Retrain; count two runs from one original as two seeds."""
    key, draw = ("epoch", "other"), np.random.default_rng(0)
    retrain, ft = 50 + 9 * draw.standard_normal(6), 60 + 9 * draw.standard_normal(6)
    measured = {"ft": {seed: [{key: ft[seed] + more} for more in (-1, 1)] for seed in reversed(range(6))}}
    measured["ga"] = {1: [{key: 1.0}, {key: 1.5}], 2: [{key: 2.0}]}
    measured["retrain"] = {seed: [{key: retrain[seed]}] for seed in range(6)}
    compared = relearn.compare(measured, [key])
    assert list(compared) == ["ft"]
    mean, low, high = compared["ft"][key]
    assert mean == pytest.approx((ft - retrain).mean())
    assert (low, high) == pytest.approx(tuple(stats.ttest_rel(ft, retrain).confidence_interval()))


@pytest.mark.slow
def test_a_run_is_measured_against_retrain_image_by_image(runs_of_two, home, capsys):
    """Mutation: accept another forget set, a run that is no Retrain, or compare Retrain's outputs with themselves.

    Also: leave a run alone on --resume, however it was measured.
    """
    start = "--precision fp32 --mia_redraws 3 --model_path"
    ok("evaluate", start, runs_of_two / "ft1", runs_of_two / "retrain1", "--retrain_path", runs_of_two / "retrain1")
    measured = {name: json.loads((runs_of_two / name / "metrics.json").read_text()) for name in ("ft1", "retrain1")}
    assert measured["retrain1"]["agreement"] == 100 and measured["retrain1"]["KL"] == pytest.approx(0, abs=1e-9)
    assert measured["ft1"]["agreement"] < 100 and measured["ft1"]["KL_test"] > 0 and measured["ft1"]["MIA_noise"] >= 0
    ok("evaluate", start, runs_of_two / "ft1", "--retrain_path", runs_of_two / "retrain1", "--resume")
    assert "ft1 is measured already" in capsys.readouterr().out
    other = (start.replace("fp32", "bf16"), runs_of_two / "ft1", "--retrain_path", runs_of_two / "retrain2", "--held_out val")
    assert script("evaluate", *other, "--resume") == 1
    assert "measured with other values of held_out, precision, retrain_path: pass --overwrite" in capsys.readouterr().err
    path = runs_of_two / "ft1" / "metrics.json"
    found = json.loads(path.read_text())
    for damaged in ({}, found | {"how": 3}):  # Mutation: take any metrics.json for a measured one
        path.write_text(json.dumps(damaged))
        assert script("evaluate", start, runs_of_two / "ft1", "--resume") == 1
        assert "does not tell how it was measured: pass --overwrite" in capsys.readouterr().err
    found["how"]["precision"] = "another machine's"  # Mutation: compare it with what auto is here
    path.write_text(json.dumps(found))
    auto = start.replace("fp32", "auto")
    ok("evaluate", auto, runs_of_two / "ft1", "--retrain_path", runs_of_two / "retrain1", "--resume")
    assert "ft1 is measured already" in capsys.readouterr().out
    assert script("evaluate", start, runs_of_two / "ft2", "--retrain_path", runs_of_two / "ft1") == 1
    assert "is a run of ft" in capsys.readouterr().err
    ok("unlearn", "--method retrain --num_forget 5 --epochs 0 --lr 1 --model_path", home / "original", "--save_dir", home / "other_retrain")
    assert script("evaluate", start, runs_of_two / "ft2", "--retrain_path", home / "other_retrain") == 1
    assert "forgot another set" in capsys.readouterr().err and not (runs_of_two / "ft2" / "metrics.json").exists()


def test_a_part_of_a_class_is_compared_with_unseen_images_of_that_class(home, tmp_path, monkeypatch):
    """Mutation: compare with all unseen images, unless whole classes are forgotten."""
    seen = []
    monkeypatch.setattr(metrics, "two_sample", lambda forget, unseen, seed: seen.append(set(unseen[1].tolist())) or {})
    for number, flags in enumerate(("--forget_class 8 --num_forget 0.5", "--forget_class 8 3", "--num_forget 0.1")):
        ok("evaluate", "--model_path", home / "original", flags, "--save_dir", tmp_path / str(number))
    assert seen == [{8}, {3, 8}, set(range(10))]


def test_some_of_the_retain_images_stand_for_all(home, tmp_path, monkeypatch):
    """Mutation: take the first ones; draw others for each model; measure all of them, or say nothing of it in the table."""
    asked, predict = [], passes.predict_logits
    monkeypatch.setattr(passes, "predict_logits", lambda model, split, size: asked.append(split) or predict(model, split, size))
    for name in "ab":
        ok("evaluate", "--model_path", home / "original", "--num_forget 60 --num_retain 100 --save_dir", tmp_path / name)
    first, second = (split.indices.tolist() for split in asked if split.name == "retain")
    assert first == second and len(first) == 100 and max(first) > 200 and len([split for split in asked if split.name == "forget"][0]) == 60
    assert read_json(tmp_path / "a" / "metrics.json")["facts"]["retain images"] == "100 at most"


def test_runs_that_differ_in_a_training_flag_are_no_repetitions(tmp_path, capsys):
    """Nor are those under masks made with other flags. Mutation: leave the training flags, or the mask's, out of describe(); let the
    mask's ratio take the place of SalUn-soft's own."""
    for seed, size in ((1, None), (2, 64)):
        write_run(tmp_path / str(seed), "ft", seed, options={"lr": 0.1}, batch_size=size)
        mask = {"mask_ratio": 0.5, "mask_flags": {"epochs": seed}}
        write_run(tmp_path / "masked" / str(seed), "salun", seed, mask_path="mask", mask_info=mask)
        write_run(tmp_path / "soft" / str(seed), "salun_soft", seed, options={"mask_ratio": seed / 10}, mask_path="mask", mask_info=mask)
    assert script("table", tmp_path) == 1 and "runs of ft, salun, salun_soft differ in their flags" in capsys.readouterr().err
    ok("table", tmp_path, "--by_options --incomplete")
    text = (tmp_path / "table.md").read_text()
    assert "| ft --lr 0.1 --batch_size 64 | 1 |" in text and "| salun --mask_ratio 0.5 --mask_epochs 2 | 1 |" in text


def test_a_run_under_a_control_mask_has_a_row_of_its_own_beside_its_method(tmp_path):
    """Mutation: leave the kind out of describe(), or sort the row behind all methods."""
    saliency, control = {"mask_ratio": 0.5}, {"mask_ratio": 0.5, "mask_kind": "least_salient"}
    for number, (method, info, word) in enumerate(
        (("scrub", {}, None), ("salun", saliency, None), ("salun", control, None), ("ft", {}, "a b"))
    ):
        write_run(tmp_path / str(number), method, 1, mask_path="mask" if info else None, mask_info=info, setting=word)
    write_run(tmp_path / "plain", "ft", 1, options={"lr": 1.0})
    ok("table", tmp_path)
    rows = [line.split(" | ")[0][2:] for line in (tmp_path / "table.md").read_text().splitlines() if line.endswith("|")]
    assert rows[2:] == ["ft", "ft (a b)", "salun", "salun (least salient mask)", "scrub"]


def test_there_is_one_reference_and_no_noise_between_copies_of_it(tmp_path, capsys):
    """Mutation: take the first setting of Retrain; count one retrained model twice."""
    for seed in (1, 2):
        write_run(tmp_path / "a" / str(seed), "retrain", seed, {"weights_sha": "same"})
        write_run(tmp_path / "b" / str(seed), "retrain", seed, options={"lr": 0.1 * seed})
    assert script("table", tmp_path / "a") == 1 and "are one retrained model, not two" in capsys.readouterr().err
    assert script("table", tmp_path / "b", "--by_options") == 1 and "there can be one reference" in capsys.readouterr().err


def write_run(folder, method, seed, values=None, **more):
    """Write the metrics.json of a run, all numbers 50 but for `values`. more: of its args.json."""
    recorded = {"kind": "unlearn", "method": method, "options": {}, "mask_path": None, "machine": "m", "autocast": "no"}
    row = table.describe(recorded | {"versions": {"torch": "2"}} | more, seed, {"data set": "digits"})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", row | dict.fromkeys(metrics.GAP_COLUMNS, 50.0) | {"weights_sha": str(folder)} | (values or {}))


@pytest.mark.parametrize("name", table.BELONGS)
def test_runs_that_do_not_belong_together_make_no_table(name, tmp_path, capsys):
    """Mutation: compare the facts only."""
    for seed in (1, 2):
        for method in ("retrain", "ft"):
            write_run(tmp_path / method / str(seed), method, seed, parent_sha=f"p{seed}", forget_sha=f"f{seed}")
    ok("table", tmp_path)
    write_run(tmp_path / "odd", "rl", 2, **{"parent_sha": "p2", "forget_sha": "f2"} | {name: "other"})
    assert script("table", tmp_path) == 1
    error = capsys.readouterr().err
    assert f"runs of seed 2 {table.BELONGS[name]}" in error and "ft/2" in error and "odd" in error and "ft/1" not in error


def test_runs_measured_in_different_ways_are_not_averaged(tmp_path, capsys):
    """Mutation: compare the facts of the first run only; take a mean over the runs that have a metric."""
    for method in ("retrain", "ft"):
        for seed in (1, 2):
            write_run(tmp_path / f"{method}{seed}", method, seed, {"MIA_noise": 1.0} if seed == 1 else {})
    ok("table", tmp_path)
    assert "MIA_noise" not in (tmp_path / "table.md").read_text()
    for method, value in (("ft", "all"), ("retrain", "100 at most")):
        write_run(tmp_path / f"{method}2", method, 2, {"facts": {"data set": "digits", "retain images": value}})
    assert script("table", tmp_path) == 1 and "retain images is 100 at most and all" in capsys.readouterr().err


def test_a_table_with_gaps_is_made_only_where_it_is_asked_for(tmp_path, capsys):
    """Mutation: compare the number of runs only, or the sets of seeds only; count the settings of all methods together."""
    for method, seed in (("retrain", 1), ("retrain", 2), ("ft", 2)):
        write_run(tmp_path / f"{method}{seed}", method, seed)
    assert script("table", tmp_path) == 1 and "ft lacks seed 1: complete the runs" in capsys.readouterr().err
    ok("table", tmp_path, "--incomplete")
    assert "ft was not measured for seed 1." in (tmp_path / "table.md").read_text()
    write_run(tmp_path / "ft1", "ft", 1)
    write_run(tmp_path / "retrain_again", "retrain", 1)  # for the noise floor
    write_run(tmp_path / "original", "original", 1)  # from elsewhere, without a seed of its own
    ok("table", tmp_path)
    for name in ("ga1", "ga2", "ga_again"):
        write_run(tmp_path / name, "ga", 1 + (name == "ga2"))
    assert script("table", tmp_path) == 1 and "ft has 1 runs of seed 1, not 2" in capsys.readouterr().err
    for name in ("ga1", "ga2", "ga_again"):
        shutil.rmtree(tmp_path / name)
    for seed in (1, 2):
        for lr in (0.1, 0.2):
            write_run(tmp_path / f"rl{seed}_{lr}", "rl", seed, options={"lr": lr})
    assert script("table", tmp_path, "--by_options") == 1
    assert "ft has 1 settings; rl has 2 settings: complete" in capsys.readouterr().err


def test_the_best_setting_of_a_seed_is_chosen_on_the_other_seeds(tmp_path, capsys):
    """Mutation: choose on all seeds; keep the first setting, or the worst; leave out check_complete()."""
    gaps = {0.1: (2, 6), 0.2: (6, 1)}  # over both seeds 0.2 is the best, at 3.5
    for seed in (1, 2):
        write_run(tmp_path / f"retrain{seed}", "retrain", seed)
        for lr in gaps:
            values = dict.fromkeys(metrics.GAP_COLUMNS, 50.0 + gaps[lr][seed - 1])
            write_run(tmp_path / f"rl{seed}_{lr}", "rl", seed, values, options={"lr": lr})
    ok("table", tmp_path, "--best")
    (row,) = [row for row in read_json(tmp_path / "best.json")["rows"] if row["method"] == "rl"]
    assert row["average_gap"] == 6 and row["runs"] == 2
    assert "the setting that was best on all other seeds" in (tmp_path / "best.md").read_text()
    for seed in (1, 2):
        write_run(tmp_path / f"ft{seed}", "ft", seed)
    assert script("table", tmp_path, "--best") == 1 and "ft has 1 settings; rl has 2 settings" in capsys.readouterr().err
    for folder in ("retrain2", "rl2_0.1", "rl2_0.2", "ft1", "ft2"):
        shutil.rmtree(tmp_path / folder)
    assert script("table", tmp_path, "--best") == 1 and "two or more seeds" in capsys.readouterr().err


def test_too_much_and_too_little_forgotten_do_not_cancel_out_in_a_search(tmp_path):
    """Mutation: sort or choose by the average gap, of means over seeds."""
    gaps = {0.1: (5, -5, 2), 0.2: (3, 3, 3)}  # 0.1 has the smaller average gap, over all and over two of them
    for seed in range(3):
        write_run(tmp_path / f"retrain{seed}", "retrain", seed)
        for lr in gaps:
            values = dict.fromkeys(metrics.GAP_COLUMNS, 50.0 + gaps[lr][seed])
            write_run(tmp_path / f"rl{seed}_{lr}", "rl", seed, values, options={"lr": lr})
    ok("table", tmp_path, "--by_options")
    first, second = (row for row in read_json(tmp_path / "table.json")["rows"] if row["method"] == "rl")
    assert (first["options"], first["average_gap"], first["gap_per_seed"]) == ("--lr 0.2", 3, 3)
    assert second["average_gap"] == pytest.approx(2 / 3) and second["gap_per_seed"] == 4
    assert "| average gap | gap per seed |" in (tmp_path / "table.md").read_text()
    ok("table", tmp_path, "--best")
    (row,) = [row for row in read_json(tmp_path / "best.json")["rows"] if row["method"] == "rl"]
    assert row["average_gap"] == 3


def test_an_original_of_each_seed_is_asked_for_where_they_differ(tmp_path, capsys):
    """Mutation: leave the original out of missing_places()."""
    for seed in (1, 2):
        write_run(tmp_path / f"retrain{seed}", "retrain", seed, parent_sha=f"p{seed}")
    write_run(tmp_path / "original", "original", 1, parent_sha="p1")
    assert script("table", tmp_path) == 1 and "original lacks seed 2" in capsys.readouterr().err


def test_a_gap_over_fewer_metrics_is_no_average_gap(tmp_path):
    """Mutation: take the mean of the gaps that are there."""
    for name in ("retrain", "ft", "rl"):
        write_run(tmp_path / name, name, 1)
    path = tmp_path / "ft" / "metrics.json"
    found = read_json(path)
    del found["MIA"]
    write_json(path, found)
    ok("table", tmp_path)
    gaps = {row["method"]: row["average_gap"] for row in read_json(tmp_path / "table.json")["rows"]}
    assert gaps == {"retrain": 0, "rl": 0, "ft": None}


def test_a_copied_run_is_no_repetition(tmp_path, capsys):
    """Mutation: compare Retrain only; compare weights only; leave out the seed, or the flags."""
    for seed in (1, 2):
        for method in ("retrain", "rl"):
            write_run(tmp_path / f"{method}{seed}", method, seed, {"weights_sha": None})
    write_run(tmp_path / "backup", "rl", 2, {"weights_sha": None, "UA": 51.0})
    ok("table", tmp_path, "--incomplete")
    write_run(tmp_path / "backup", "rl", 2, {"weights_sha": None})
    assert script("table", tmp_path) == 1 and "backup and" in (error := capsys.readouterr().err) and "one model, not two: remove" in error
    write_run(tmp_path / "backup", "rl", 2, {"weights_sha": "w"})
    write_run(tmp_path / "rl2", "rl", 2, {"weights_sha": "w", "UA": 51.0})
    assert script("table", tmp_path) == 1 and "one model, not two: remove" in capsys.readouterr().err


def test_a_table_says_where_one_model_stands_in_several_runs(tmp_path):
    """Mutation: compare the weights of different methods, or take runs that do not tell theirs for one."""
    weights = {"ft": (None, None), "iu": ("w", "w"), "rl": ("w", "v")}
    for method, seed in ((method, seed) for method in weights for seed in (1, 2)):
        write_run(tmp_path / f"{method}{seed}", method, seed, {"weights_sha": weights[method][seed - 1]})
    ok("table", tmp_path)
    assert "Runs of iu are in part one model," in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("where", ("how", "classifier_sha"))
def test_runs_of_a_seed_are_measured_with_the_same_instrument(where, tmp_path, capsys):
    """Mutation: compare the facts only; ask it of all seeds; count a run that does not tell as another way."""
    told = {name: {where: {"retrain_path": name} if where == "how" else name} for name in ("a", "b")}
    for method, seed, values in (("retrain", 1, told["a"]), ("retrain", 2, told["b"]), ("ft", 1, {}), ("ft", 2, told["b"])):
        write_run(tmp_path / f"{method}{seed}", method, seed, values)
    ok("table", tmp_path)
    write_run(tmp_path / "ft1", "ft", 1, told["b"])
    assert script("table", tmp_path) == 1 and "runs of seed 1 were measured with different values of" in capsys.readouterr().err


def write_classes(folder, classes, wanted=lambda method, seed, kind: True):
    """Runs of three seeds that forget one of several classes. Those of a later class have ten points less in all metrics."""
    for method, gaps in {"retrain": (0.0, 0.2, 0.4), "salun": (1.0, 2.0, 3.0), "ft": (2.0, 2.5, 4.5)}.items():
        for seed in range(3):
            for place, kind in enumerate(classes):
                if wanted(method, seed, kind):
                    values = dict.fromkeys(metrics.GAP_COLUMNS, 50.0 - 10 * place - gaps[seed])
                    write_run(folder / f"{method}{seed}{kind}", method, seed, values | {"facts": {"forgotten": kind}}, forget_sha=kind)


def test_several_classes_are_averaged_within_a_seed(tmp_path):
    """Mutation: count a seed's classes as seeds of their own; take pairs of Retrains of different classes for the floor."""
    for classes in (["cat"], ["cat", "dog"]):
        write_classes(tmp_path / str(len(classes)), classes)
        ok("table", tmp_path / str(len(classes)), "--over_classes")
    one, two = ((tmp_path / name / "table.md").read_text() for name in ("1", "2"))
    paired = [next(line for line in text.splitlines() if line.startswith("| ft |") and " to " in line) for text in (one, two)]
    assert paired[0] == paired[1]
    floors = [read_json(tmp_path / name / "table.json")["noise_floor"] for name in ("1", "2")]
    assert floors == pytest.approx([0.8 / 3] * 2)


@pytest.mark.parametrize("method", ("retrain", "ft", "twice"))
def test_every_class_is_asked_of_every_seed(method, tmp_path, capsys):
    """Mutation: compare the numbers of runs of each seed."""
    write_classes(
        tmp_path, ["cat", "dog"], lambda name, seed, kind: (name, seed, kind) != ("ft" if method == "twice" else method, 1, "dog")
    )
    if method == "twice":
        write_run(tmp_path / "again", "ft", 1, {"facts": {"forgotten": "cat"}}, forget_sha="cat")
    assert script("table", tmp_path, "--over_classes") == 1
    assert f"{'ft' if method == 'twice' else method} lacks seed 1 (dog)" in capsys.readouterr().err


DAMAGED = [("seed", None), ("options", None), ("facts", "x"), ("method", 3), ("measured_on", 3), ("how", 3), ("parent_sha", ["a"])]
DAMAGED += [("UA", value) for value in ("96.9", None, True, float("nan"))] + [("class_accuracy", value) for value in ([1], {"a": "b"})]


@pytest.mark.parametrize("name, value", DAMAGED)
def test_a_damaged_metrics_file_is_named(name, value, tmp_path, capsys):
    """Mutation: leave out the check, or check the names of one kind only."""
    write_run(tmp_path / "ft", "ft", 1)
    write_json(tmp_path / "ft" / "metrics.json", read_json(tmp_path / "ft" / "metrics.json") | {name: value})
    assert script("table", tmp_path) == 1
    error = capsys.readouterr().err
    assert "ft/metrics.json" in error and name in error and "unexpected" not in error


def test_unseen_images_have_the_forget_sets_shares_of_the_classes():
    """Mutation: take all of the classes; match also what differs by chance; draw as many of each class."""
    draw = torch.Generator().manual_seed(0)
    unseen = torch.arange(10).repeat(30)
    chance = torch.randint(0, 10, (129,), generator=draw)
    assert metrics.alike(chance, unseen, 1).tolist() == list(range(300))
    assert unseen[metrics.alike(torch.full((7,), 3), unseen, 1)].tolist() == [3] * 30
    rows = metrics.alike(torch.tensor([6] * 100 + [8] * 10), unseen, 1)
    assert unseen[rows].bincount().tolist() == [0, 0, 0, 0, 0, 0, 30, 0, 3] and len(set(rows.tolist())) == 33
    assert len(metrics.alike(torch.tensor([77]), unseen, 1)) == 0


def test_several_sets_of_one_class_do_not_count_as_classes(tmp_path, capsys):
    """Mutation: leave forget_sha out with --over_classes."""
    for number, (sha, kind) in enumerate((("a", "1 of cat"), ("b", "1 of dog"))):
        for method in ("retrain", "ft"):
            write_run(tmp_path / f"{method}{number}", method, 1, {"facts": {"forgotten": kind}}, forget_sha=sha)
    ok("table", tmp_path, "--over_classes")
    write_run(tmp_path / "ft1", "ft", 1, {"facts": {"forgotten": "1 of cat"}}, forget_sha="b")
    assert script("table", tmp_path, "--over_classes") == 1 and "seed 1 forget different sets" in capsys.readouterr().err


def test_a_method_is_nearer_only_where_the_paired_interval_excludes_0(tmp_path, capsys):
    """Mutation: the interval of unpaired means; the normal distribution's 1.96; keep the last run of a seed only; average gaps in EACH."""
    gaps = {"salun": (1.0, 5.0, 9.0), "ft": (1.4, 5.5, 9.6), "ga": (0.5, 6.0, 9.0), "bs": (1.35, 5.5, 9.68)}
    for seed in range(3):
        for method, values in (gaps | {"retrain": (0, 0, 0)}).items():
            numbers = dict.fromkeys(metrics.GAP_COLUMNS, 50 + (-1) ** seed * values[seed])
            write_run(tmp_path / f"{method}{seed}", method, seed, numbers | {"forget_AUC": 50.0 - 2 * values[seed]})
    ok("table", tmp_path)
    low, high = stats.ttest_rel(gaps["ft"], gaps["salun"]).confidence_interval()
    text = (tmp_path / "table.md").read_text()
    first, second = (stats.ttest_rel(gaps[name], gaps["salun"]).pvalue for name in ("ft", "ga"))
    assert f"| ft | 5.50 | +0.50 | {low:+.2f} to {high:+.2f} | {3 * first:.3f} | salun |" in text and low > 0
    third = stats.ttest_rel(gaps["bs"], gaps["salun"]).pvalue  # below 0.05, and twice that is not. Mutation: a verdict as if alone
    assert 0.025 < third < 0.05 and f"| {2 * third:.3f} | salun (uncorrected) |" in text and text.count("uncorrected)") == 1
    line = next(line for line in text.splitlines() if line.startswith("| ft | +0.5 ("))
    assert f"+0.5 ({low:+.1f} to {high:+.1f}) * | +1.0 ({2 * low:+.1f} to {2 * high:+.1f}) * |" in line and "| ga | +0.2 (" in text
    assert "| ga | 5.17 | +0.17 |" in text and f"| {second:.3f} | undecided |" in text and text.count("| undecided |") == 1
    assert script("table", tmp_path, "--against slaun") == 1 and "--against slaun is no method of the table" in capsys.readouterr().err
    assert script("table", tmp_path, "--against retrain") == 1 and "--against retrain is no method" in capsys.readouterr().err
    assert script("table", tmp_path, "--against ft --by_options") == 1 and "--against needs a row per method" in capsys.readouterr().err
    write_run(tmp_path / "again", "ft", 0)  # a second run of a seed is averaged with the first: 50, where Retrain has 50
    ok("table", tmp_path, "--incomplete")
    assert "| ft | 5.27 |" in (tmp_path / "table.md").read_text()
    shutil.rmtree(tmp_path / "again")
    ok("table", tmp_path, "--against ft")
    assert f"| salun | 5.00 | -0.50 | {-high:+.2f} to {-low:+.2f} | {3 * first:.3f} | salun |" in (tmp_path / "table.md").read_text()
    assert table.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])  # Mutation: multiply all by three; no running maximum


def test_rates_are_drawn_by_method_and_setting(tmp_path, capsys):
    """Mutation: join settings of other flags in one line; leave the points in the order of the table."""
    write_run(tmp_path / "retrain", "retrain", 1)
    tries = (("ft", {"lr": 0.2}), ("ft", {"lr": 0.1}), ("l1_sparse", {"lr": 0.1, "gamma": 1e-4}), ("l1_sparse", {"lr": 0.1, "gamma": 1e-5}))
    for number, (method, options) in enumerate(tries):
        write_run(tmp_path / str(number), method, 1, dict.fromkeys(metrics.GAP_COLUMNS, 50.0 + number), options=options)
    rows, _ = table.summarise(table.collect(tmp_path), by_options=True)
    lines = {("ft", ""): [(0.1, 1), (0.2, 0)], ("l1_sparse", "--gamma 0.0001"): [(0.1, 2)], ("l1_sparse", "--gamma 1e-05"): [(0.1, 3)]}
    assert draw_rates.lines_of(rows) == lines and draw_rates.lines_of(rows, ["ft"]) == {("ft", ""): lines["ft", ""]}
    ok("draw_rates", tmp_path)
    assert Image.open(tmp_path / "rates.png").width > 500
    assert script("draw_rates", tmp_path, "--methods ft salun") == 1
    assert "no run with a learning rate beside a retrain: salun; there are ft, l1_sparse" in capsys.readouterr().err
