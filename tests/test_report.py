import json

import numpy as np
import pytest
import xarray as xr
from transfusion import figures, paper, report

SEEDS = 4


def performance(gain, noise=0.001, models=("cbr_tiny", "resnet50"), seed=0):
    rng = np.random.default_rng(seed)
    auc = 0.8 + noise * rng.normal(size=(len(models), 2, SEEDS))
    auc[:, 1] += np.reshape(gain, (-1, 1))
    coords = {"model": list(models), "init": ["random", "transfer"], "seed": range(SEEDS)}
    run = {"key": "k", "status": "done", "device": "cpu", "seconds": 1.0}
    attrs = {"runs": json.dumps([run | {"commit": "c", "torch": "t"}]), "parameters": "{}"}
    return xr.Dataset({"test_auc": (("model", "init", "seed"), auc)}, coords, attrs)


def test_gains_are_paired_differences_in_points():
    results = performance([0.02, -0.03])
    table = report.gains(results)
    by_hand = 100 * (results.test_auc[:, 1] - results.test_auc[:, 0]).mean("seed")
    np.testing.assert_allclose(table["gain"], by_hand)
    assert (table["n"] == SEEDS).all()


@pytest.mark.parametrize(
    ("gain", "noise", "verdicts"),
    [
        (0.0, 0.001, ["holds", "holds"]),
        (0.05, 0.001, ["differs", "differs"]),
        (0.0, 0.05, ["inconclusive", "inconclusive"]),
    ],
)
def test_gains_come_out_with_each_verdict(gain, noise, verdicts):
    assert report.gains(performance([gain, gain], noise))["verdict"].tolist() == verdicts


def test_the_clearest_effect_is_the_one_that_decides():
    results = performance([0.03, 0.05])
    results["test_auc"][1, 1] += [0.1, -0.1, 0.1, -0.1]  # larger in the mean, and undecided
    table = report.gains(results)
    assert table["verdict"].tolist() == ["differs", "inconclusive"]
    assert report.clearest(table).name == "cbr_tiny"


def test_keeping_up_is_not_being_worse():
    results = performance([0.0, 0.05])
    table = report.keeping_up(results)
    assert table.loc[("cbr_tiny", "random"), "verdict"] == "holds"
    assert table.loc[("cbr_tiny", "transfer"), "verdict"] == "differs"


def curves(slow, fast, final=0.9):
    """Linear rises to `final`, in `slow` and `fast` steps."""
    step = np.arange(10, 410, 10)
    coords = {"model": ["resnet50"], "init": ["random", "mean_var"], "seed": range(SEEDS)}
    auc = np.zeros((1, 2, SEEDS, len(step)))
    for i, steps in enumerate((slow, fast)):
        for seed in range(SEEDS):
            rise = np.minimum(step / (steps * (1 + 0.01 * seed)), 1)
            auc[0, i, seed] = 0.5 + (final - 0.5) * rise
    return xr.Dataset({"auc": (("model", "init", "seed", "step"), auc)}, {**coords, "step": step})


def test_speedup_is_the_ratio_of_steps():
    row = report.speedups(curves(300, 100)).iloc[0]
    assert row["level"] == pytest.approx(0.86) and row["never"] == 0
    assert row["speed-up"] == pytest.approx(3, rel=1e-6) and row["verdict"] == "holds"
    assert report.speedups(curves(100, 300)).iloc[0]["verdict"] == "differs"


def test_no_speedup_where_nothing_was_learned():
    row = report.speedups(curves(300, 100, final=0.52)).iloc[0]
    assert row["verdict"] == "inconclusive" and np.isnan(row["speed-up"])
    assert report.ratio(row) == "no level to reach, random init stayed near chance (n = 4)"


def test_runs_that_never_arrive_are_counted():
    assert report.speedups(curves(300, 5000)).iloc[0]["never"] == SEEDS


def similarity(gap, noise=0.002):
    """Made-up comparisons of 3 random and 3 transferred networks in two models."""
    rng = np.random.default_rng(0)
    nets = [(i, str(s), "final") for i in ("random", "transfer") for s in range(3)]
    pairs = [(a, b) for n, a in enumerate(nets) for b in nets[n + 1 :]]
    cca = 0.5 + noise * rng.normal(size=(2, 2, len(pairs)))
    mixed = [a[0] != b[0] for a, b in pairs]
    cca[..., mixed] -= np.reshape(gap, (2, 1, 1))
    names = ("init_a", "seed_a", "state_a", "init_b", "seed_b", "state_b")
    fields = np.array([[*a, *b] for a, b in pairs]).T
    coords = {"model": ["cbr_tiny", "resnet50"], "block": ["block1", "block2"]}
    coords |= {name: ("pair", list(column)) for name, column in zip(names, fields, strict=True)}
    variables = {"cca": (("model", "block", "pair"), cca), "null": xr.zeros_like(xr.DataArray(cca))}
    dataset = xr.Dataset({"cca": variables["cca"]}, coords)
    dataset["null"] = 0.1 + 0 * dataset["cca"]
    dataset["depth"] = (("model", "block"), [[0, 1], [0, 1]])
    return dataset


def test_gaps_are_random_random_minus_random_transfer():
    table = report.gaps(similarity([0.0, 0.05]))
    assert table.loc["resnet50", "gap"] == pytest.approx(0.05, abs=0.005)
    assert table.loc["resnet50", "null"] == pytest.approx(0.1)
    assert report.gap_verdicts(table) == ["holds", "holds"]


def test_gaps_the_other_way_round_differ():
    assert report.gap_verdicts(report.gaps(similarity([0.05, -0.05]))) == ["differs", "differs"]
    noisy = report.gaps(similarity([0.0, 0.0], noise=0.2))
    assert set(report.gap_verdicts(noisy)) == {"inconclusive"}


def test_tables_show_interval_and_n():
    results = performance([0.0, 0.0])
    text = report.performance_table(results).data
    assert "CBR-Tiny" in text and "95.8 (unconfirmed)" in text and "96.4" in text
    text = report.difference_table(report.gains(results), "gain").data
    assert text.count("(n = 4)") == 2 and "holds" in text
    assert "+0.054" in report.gap_table(similarity([0.0, 0.054], noise=0)).data
    assert "2.3" in report.speedup_table(curves(300, 100)).data


def test_footer_names_every_run():
    text = report.footer(performance([0.0, 0.0])).data
    assert "Where these numbers come from" in text and "<td>k</td>" in text


def test_figures_are_drawn():
    figures.setup()
    assert len(figures.performance(performance([0.0, 0.0]))) == 2
    assert list(figures.curves(curves(300, 100)).keys()) == ["ResNet-50"]
    by_model = figures.similarity(similarity([0.0, 0.05]))
    assert list(by_model.keys()) == ["ResNet-50", "CBR-Tiny"]
    overlay = by_model["ResNet-50"]
    marks = overlay.get(1).data
    assert len(marks) == 2 * 3  # two blocks, three pairs of random networks


def test_filters_and_contact_sheets_are_small_pictures(rng):
    assert figures.filters(rng.normal(size=(32, 3, 5, 5))).data[:4] == b"\x89PNG"
    sheet = figures.contact_sheet(rng.integers(0, 255, (2, 3, 3, 8, 8), dtype=np.uint8))
    assert sheet.data[16:24] == (3 * 10).to_bytes(4) + (2 * 10).to_bytes(4)


def test_the_papers_numbers_say_how_far_to_trust_them():
    table = paper.numbers("Table 1", "auc")
    assert set(table["confidence"]) <= set(paper.CONFIDENCE)
    assert table.loc[("resnet50", "transfer"), "value"] == 96.7
    with pytest.raises(ValueError, match="nothing recorded"):
        paper.numbers("Table 9", "auc")
