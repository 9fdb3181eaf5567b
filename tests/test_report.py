import json

import numpy as np
import pytest
import xarray as xr
from transfusion import figures, paper, report, simulation

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
    return compared(cca, pairs, null=0.1)


def compared(values, pairs, null=0.0):
    """A collected comparison of (model, block, pair), with pairs of (init, seed, state)."""
    names = ("init_a", "seed_a", "state_a", "init_b", "seed_b", "state_b")
    fields = np.array([[*a, *b] for a, b in pairs]).T
    models, blocks = ["cbr_tiny", "resnet50"], [f"block{i + 1}" for i in range(values.shape[1])]
    coords = {"model": models, "block": blocks, "measure": ["cca", "cka"]}
    coords |= {name: ("pair", list(column)) for name, column in zip(names, fields, strict=True)}
    corrected = xr.DataArray(np.stack([values, values]), dims=("measure", "model", "block", "pair"))
    dataset = xr.Dataset({"value": corrected + 0.01, "corrected": corrected}, coords)
    dataset["null"], dataset["corrected_null"] = (n + 0 * corrected for n in (null + 0.01, null))
    dataset["depth"] = (("model", "block"), [list(range(len(blocks)))] * 2)
    dataset["datapoints"] = (("model", "block"), np.full((2, len(blocks)), 1000))
    dataset["neurons"] = (("model", "block"), np.full((2, len(blocks)), 16))
    square = np.zeros((2, 2, len(blocks), len(blocks)))
    dataset["map"] = (("measure", "model", "block", "other"), square)
    return dataset.assign_coords(other=blocks)


def test_gaps_are_random_random_minus_random_transfer():
    table = report.gaps(similarity([0.0, 0.05]))
    assert table.loc["resnet50", "gap"] == pytest.approx(0.05, abs=0.005)
    assert table.loc["resnet50", "null"] == pytest.approx(0.1)
    assert report.gap_verdicts(table) == ["holds", "holds"]


def test_gaps_the_other_way_round_differ():
    assert report.gap_verdicts(report.gaps(similarity([0.05, -0.05]))) == ["differs", "differs"]
    noisy = report.gaps(similarity([0.0, 0.0], noise=0.2))
    assert set(report.gap_verdicts(noisy)) == {"inconclusive"}


def changed(kept_random, kept_transfer, noise=0.0):
    """Networks of four blocks before and after training: (model, block) similarities."""
    nets = [(i, str(s)) for i in ("random", "transfer") for s in range(3)]
    pairs = [((*net, "initial"), (*net, "final")) for net in nets]
    values = np.empty((2, 4, len(pairs)))
    values[..., :3] = np.array(kept_random, float)[..., None]
    values[..., 3:] = np.array(kept_transfer, float)[..., None]
    values += noise * np.random.default_rng(0).normal(size=values.shape)
    dataset = compared(0.1 + values, pairs, null=0.1)
    dataset["parameters"] = ("model", [1_000_000, 23_000_000])
    return dataset


FALLING, LEVEL = [0.9, 0.7, 0.5, 0.3], [0.6] * 4


def test_what_is_kept_is_above_chance_at_matched_depth():
    kept = report.kept(changed([FALLING, LEVEL], [LEVEL, LEVEL]))
    np.testing.assert_allclose(
        kept.sel(model="cbr_tiny", init="random")[0], np.linspace(0.9, 0.3, 5)
    )
    assert kept.dims == ("model", "init", "seed", "depth")


def test_size_effects_are_the_largest_network_less_the_others():
    table = report.size_effects(changed([FALLING, [0.9] * 4], [LEVEL, LEVEL], noise=0.01))
    assert table.loc[("cbr_tiny", "random"), "difference"] == pytest.approx(0.3, abs=0.02)
    assert table.loc[("cbr_tiny", "random"), "verdict"] == "holds"
    first = report.size_effects(changed([FALLING, [0.9] * 4], [LEVEL, LEVEL], noise=0.01), depth=0)
    assert first.loc[("cbr_tiny", "random"), "difference"] == pytest.approx(0, abs=0.02)
    other_way = report.size_effects(changed([[0.9] * 4, FALLING], [LEVEL, LEVEL], noise=0.01))
    assert other_way.loc[("cbr_tiny", "random"), "verdict"] == "differs"
    same = report.size_effects(changed([LEVEL, LEVEL], [LEVEL, LEVEL], noise=0.01))
    assert (same["verdict"] == "inconclusive").all()


def test_reuse_is_the_excess_of_pretrained_networks_in_low_blocks():
    low_only = [0.9, 0.9, 0.6, 0.6]
    table = report.reuse(changed([LEVEL, LEVEL], [low_only, LEVEL], noise=0.005))
    # Five depths over four blocks: the second lies between the first two, the third in the middle.
    assert table.loc["cbr_tiny", "low minus rest"] == pytest.approx(0.3 - 0.15 / 3, abs=0.02)
    assert table.loc["cbr_tiny", "verdict"] == "holds"
    assert table.loc["resnet50", "verdict"] == "inconclusive"
    high_only = report.reuse(changed([LEVEL, LEVEL], [low_only[::-1], LEVEL], noise=0.005))
    assert high_only.loc["cbr_tiny", "verdict"] == "differs"


def test_low_blocks_that_stay_are_seen():
    table = report.stays_low(changed([FALLING, LEVEL], [LEVEL, FALLING[::-1]]))
    assert table["verdict"].tolist() == ["holds", "inconclusive", "inconclusive", "differs"]


def predicted(foretold):
    """Shares of neurons that two random networks predict of each other; `foretold` (model, block)
    says where the state after training is that before."""
    rng = np.random.default_rng(0)
    nets = [(i, str(s)) for i in ("random", "transfer") for s in range(3)]
    pairs = [
        ((*a, state), (*b, state))
        for state in ("initial", "final")
        for n, a in enumerate(nets)
        for b in nets[n + 1 :]
    ]
    dataset = compared(np.full((2, 2, len(pairs)), 0.5), pairs)
    shares = rng.random((2, 2, len(pairs), 200))
    half = len(pairs) // 2
    for model, block in zip(*np.nonzero(foretold), strict=True):
        before = shares[model, block, :half]
        shares[model, block, half:] = 0.5 * before + 0.02 * rng.random(before.shape)
    dataset["explained"] = (("model", "block", "pair", "neuron"), shares)
    return dataset


@pytest.mark.parametrize(
    ("foretold", "verdict"),
    [
        ([[0, 0], [1, 0]], "holds"),
        ([[1, 0], [1, 0]], "holds in part"),
        ([[1, 1], [0, 1]], "differs"),
        ([[0, 0], [0, 0]], "inconclusive"),
    ],
)
def test_what_is_foretold(foretold, verdict):
    table = report.foretold(predicted(foretold))
    kinds = {"random, random": 3, "random, transfer": 9}
    for kind, pairs in kinds.items():
        for (model, block), there in np.ndenumerate(foretold):
            name = ("cbr_tiny", "resnet50")[model], ("first", "last")[block], kind
            assert table.loc[name, "n"] == pairs
            assert (table.loc[name, "R2"] > 0.95) == there
    assert report.foretold_verdict(table) == verdict


def test_initial_and_final_shares_are_of_the_same_pairs():
    one = figures.blocks_of(predicted([[1, 1], [1, 1]]), "cbr_tiny", "cca").isel(block=0)
    for kind in ("random", "transfer"):
        before, after = figures.neurons(one, kind)
        correlations = np.corrcoef(before, after)[: len(before), len(before) :]
        assert (np.diag(correlations) > 0.95).all()
        off = correlations[~np.eye(len(before), dtype=bool)]
        assert np.abs(off).max() < 0.5


def first_layers(moved, gabors):
    """(model, init) how far filters moved, and (model, init, state) which share are Gabors."""
    rng = np.random.default_rng(0)
    shape = (2, 2, 3, 20)
    far = np.reshape(moved, (2, 2, 1, 1)) * (1 + 0.01 * rng.normal(size=shape))
    fits = np.zeros((*shape[:3], 2, 20))
    for place, share in np.ndenumerate(np.array(gabors, float)):
        fits[(*place[:2], slice(None), place[2], slice(0, round(20 * share)))] = 0.9
    coords = {"model": ["cbr_small", "resnet50"], "init": ["random", "transfer"]}
    coords |= {"seed": range(3), "state": ["initial", "final"], "filter": range(20)}
    parts = {
        "moved": (("model", "init", "seed", "filter"), far),
        "gabor": (("model", "init", "seed", "state", "filter"), fits),
        "gabor_level": (("model", "init", "seed"), np.full((2, 2, 3), 0.4)),
        "grey": (
            ("model", "init", "state", "filter", "y", "x"),
            rng.normal(size=(2, 2, 2, 20, 5, 5)),
        ),
    }
    return xr.Dataset(parts, coords)


def test_movements_are_percent_and_gabors_are_counted():
    still, none = [[0.1, 0.05], [0.01, 0.01]], [0, 0]
    results = first_layers(still, [[none, [0.5, 0.25]], [none, [0.8, 0.8]]])
    table = report.movements(results)
    row = table.loc[("cbr_small", "transfer")]
    assert row["moved"] == pytest.approx(5, rel=0.02)
    assert (row["gabors before"], row["gabors after"], row["change"]) == (50, 25, -25)
    assert report.further(results)["verdict"].tolist() == ["holds", "holds"]
    assert report.gabor_verdicts(table, "random") == {"cbr_small": "holds"}
    assert report.gabor_verdicts(table, "transfer") == {"cbr_small": "holds"}
    text = report.movement_table(table).data
    assert "CBR-Small" in text and "50, 25" in text and "-25 [-25, -25]" in text


def test_gabors_that_are_learned_or_stay_speak_against_the_claim():
    gains = [[[0, 0.5], [0.2, 0.5]], [[0, 0], [0, 0]]]
    table = report.movements(first_layers([[0.1, 0.1], [0.1, 0.1]], gains))
    assert report.gabor_verdicts(table, "random") == {"cbr_small": "differs"}
    assert report.gabor_verdicts(table, "transfer") == {"cbr_small": "differs"}


def test_thin_blocks_are_named():
    results = similarity([0, 0])
    assert report.thin_blocks(results) == "All blocks have 50 datapoints a neuron."
    results["datapoints"][1, 1] = 799
    assert report.thin_blocks(results) == "Fewer than 50 datapoints a neuron: ResNet-50 (block2)."


def test_verdicts_in_words():
    verdicts = ["holds", "differs", "holds"]
    assert report.counted(verdicts, ["cbr_tiny", "resnet50", "cbr_small"]) == (
        "holds for CBR-Tiny and CBR-Small; differs for ResNet-50"
    )
    assert report.counted(verdicts) == "holds 2 of 3 times; differs 1 of 3 times"


def test_tables_show_interval_and_n():
    results = performance([0.0, 0.0])
    text = report.performance_table(results).data
    assert "CBR-Tiny" in text and "95.8 (unconfirmed)" in text and "96.4" in text
    text = report.difference_table(report.gains(results), "gain").data
    assert text.count("(n = 4)") == 2 and "holds" in text
    assert "+0.054" in report.measures_table(similarity([0.0, 0.054], noise=0)).data
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
    assert list(by_model.keys())[0] == ("ResNet-50", "mean CCA") and len(by_model) == 4
    overlay = by_model["ResNet-50", "linear CKA"]
    marks = overlay.get(1).data
    assert len(marks) == 2 * 3  # two blocks, three pairs of random networks
    assert len(figures.maps(similarity([0, 0]))["CBR-Tiny", "mean CCA"].data) == 4
    before_after = changed([FALLING, LEVEL], [LEVEL, LEVEL])
    assert len(figures.change(before_after)["CBR-Tiny", "mean CCA"].get(1).data) == 4 * 3
    against = figures.against_size(report.kept(before_after), before_after.parameters)
    assert set(against.get(0).data["parameters"]) == {1_000_000, 23_000_000}
    assert len(figures.foretold(predicted([[0, 0], [1, 0]]))) == 4
    layers = first_layers([[0.1, 0.1], [0.1, 0.1]], np.zeros((2, 2, 2)))
    assert len(figures.gabors(layers)) == 2
    assert figures.states(layers, "cbr_small", "random", columns=4).data[:4] == b"\x89PNG"
    simulated = simulation.simulate([20, 40], neurons=4, positions=2, tau=0.5, repeats=2)
    assert len(figures.chance(simulated)) == 3 and len(figures.few_datapoints(simulated)) == 6


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
