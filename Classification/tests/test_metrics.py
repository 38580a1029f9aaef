"""Metrics against hand-made cases. Each names the mutation that would break it."""

import math

import numpy as np
import pytest
import torch

import metrics
import table
from files import write_json
from helpers import ok, script


def test_accuracy():
    """Mutation: fractions in place of percent."""
    assert metrics.accuracy(torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]]), torch.tensor([0, 1, 1, 0])) == 75


def test_entropies_by_hand():
    """Mutation: p where 1 - p belongs (a fault of the official release)."""
    p, y = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64), torch.tensor([0])
    assert float(metrics.entropy(p)) == pytest.approx(-(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)))
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


def test_membership_finds_the_forgotten(tmp_path):
    """Mutation: take members from the forget set."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (400,), generator=draw)
    sure = 8 * torch.nn.functional.one_hot(labels, 5) + torch.randn(400, 5, generator=draw)
    unsure = 1.5 * torch.nn.functional.one_hot(labels, 5) + torch.randn(400, 5, generator=draw)
    known = metrics.membership((sure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)
    forgotten = metrics.membership((unsure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)
    assert set(known) == {name for name in metrics.DEFINITIONS if name.startswith("MIA")}
    for name in ("MIA", "MIA_entropy", "MIA_modified_entropy", "MIA_probability"):
        assert known[name] < 10 and forgotten[name] > 80
    assert known == metrics.membership((sure[:100], labels[:100]), (sure[100:], labels[100:]), (unsure, labels), 0)


def test_runs_that_differ_in_a_training_flag_are_no_repetitions(tmp_path, capsys):
    """Mutation: leave the training flags out of describe()."""
    recorded = {"kind": "unlearn", "method": "ft", "options": {"lr": 0.1}, "mask_path": None, "machine": "m", "autocast": "no"}
    for seed, size in ((1, None), (2, 64)):
        row = table.describe(recorded | {"versions": {"torch": "2"}, "batch_size": size}, seed, {"data set": "digits"})
        (tmp_path / str(seed)).mkdir()
        write_json(tmp_path / str(seed) / "metrics.json", row | dict.fromkeys(metrics.GAP_COLUMNS, 50.0))
    assert script("table", tmp_path) == 1 and "runs of ft differ in their flags" in capsys.readouterr().err
    ok("table", tmp_path, "--by_options")
    assert "| ft --lr 0.1 --batch_size 64 | 1 |" in (tmp_path / "table.md").read_text()


def test_a_run_under_a_control_mask_has_a_row_of_its_own_beside_its_method(tmp_path):
    """Mutation: leave the kind out of describe(), or sort the row behind all methods."""
    for method, info in (("scrub", {}), ("salun", {"mask_ratio": 0.5}), ("salun", {"mask_ratio": 0.5, "mask_kind": "least_salient"})):
        path = tmp_path / f"{method}{len(info)}"
        write_run(path, method, 1, mask_path="mask" if info else None, mask_info=info)
    ok("table", tmp_path)
    rows = [line.split(" | ")[0] for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| s")]
    assert rows == ["| salun", "| salun (least salient mask)", "| scrub"]


def write_run(folder, method, seed, **more):
    recorded = {"kind": "unlearn", "method": method, "options": {}, "mask_path": None, "machine": "m", "autocast": "no"}
    row = table.describe(recorded | {"versions": {"torch": "2"}} | more, seed, {"data set": "digits"})
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", row | dict.fromkeys(metrics.GAP_COLUMNS, 50.0))


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


def test_a_method_that_lacks_a_seed_is_named(tmp_path):
    """Mutation: give the number of runs only."""
    for method, seed in (("retrain", 1), ("retrain", 2), ("ft", 2)):
        write_run(tmp_path / f"{method}{seed}", method, seed)
    ok("table", tmp_path)
    assert "ft was not measured for seed 1." in (tmp_path / "table.md").read_text()
