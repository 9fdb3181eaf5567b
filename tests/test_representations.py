import numpy as np
import pandas as pd
import pytest
from scipy import stats
from transfusion import effects, figures, metrics, representations

from . import made_up
from .made_up import (
    FALLING,
    LARGE,
    LEVEL,
    SEEDS,
    STAYING,
    at_most_one_in_twenty,
    changed,
    ends,
    first_layers,
    predicted,
    similarity,
)

# --- similarity ------------------------------------------------------------------------------


def test_gaps_are_random_random_minus_random_transfer():
    table = representations.gaps(similarity([0.0, 0.05]))
    assert table.loc[LARGE, "gap"] == pytest.approx(0.05, abs=0.005)
    assert table.loc[LARGE, "null"] == pytest.approx(0.1)
    found = table["random, random"] - table["random, transfer"]
    np.testing.assert_allclose(table["gap"], found)
    assert representations.gap_verdicts(table)["verdict"].tolist() == ["holds", "holds"]


def test_gaps_the_other_way_round_differ():
    table = representations.gap_verdicts(representations.gaps(similarity([0.05, -0.05])))
    assert table["verdict"].tolist() == ["differs", "differs"] and (table["p"] < 0.05).all()
    noisy = representations.gap_verdicts(representations.gaps(similarity([0.0, 0.0], noise=0.2)))
    assert set(noisy["verdict"]) == {"inconclusive"} and (noisy["p"] >= 0.05).all()


def test_networks_that_are_like_all_others_widen_the_gaps_interval():
    """Where pairs owe all to their networks, the interval is the paired one of the networks."""
    results = similarity([0.0, 0.05], noise=0, own=0.02)
    one = results.sel(model=LARGE, measure="cca", block="block1")
    mixed = one.isel(pair=figures.between(one, "random", "transfer"))
    values = mixed["corrected"].values.reshape(SEEDS, SEEDS)  # random, transfer
    random, transfer = values.mean(1), values.mean(0)
    expected = stats.ttest_rel(random, transfer).confidence_interval()
    low, high = ends(representations.gaps(results).loc[LARGE])
    assert (high - low) == pytest.approx(expected.high - expected.low)


def test_what_is_kept_is_above_chance_at_matched_depth():
    kept = representations.kept(changed([FALLING, LEVEL], [LEVEL, LEVEL]))
    np.testing.assert_allclose(
        kept.sel(model="cbr_small", init="random")[0], np.linspace(0.9, 0.3, 5)
    )
    assert kept.dims == ("model", "init", "seed", "depth")


def test_size_effects_are_the_largest_network_less_the_others():
    results = changed([FALLING, STAYING], [LEVEL, LEVEL], noise=0.01)
    row = representations.size_effects(results).loc[("cbr_small", "random")]
    assert row["difference"] == pytest.approx(0.3, abs=0.02) and row["verdict"] == "holds"
    first = representations.size_effects(results, depth=0).loc[("cbr_small", "random")]
    assert first["difference"] == pytest.approx(0, abs=0.02)
    swapped = changed([STAYING, FALLING], [LEVEL, LEVEL], noise=0.01)
    other_way = representations.size_effects(swapped)
    assert other_way.loc[("cbr_small", "random"), "verdict"] == "differs"
    same = representations.size_effects(changed([LEVEL, LEVEL], [LEVEL, LEVEL], noise=0.01))
    assert (same["verdict"] == "inconclusive").all()


def test_reuse_is_the_excess_of_pretrained_networks_in_low_blocks():
    low_only = [0.9, 0.9, 0.6, 0.6]
    table = representations.reuse(changed([LEVEL, LEVEL], [low_only, LEVEL], noise=0.005))
    # Five depths over four blocks: the second lies between the first two, the third in the middle.
    assert table.loc["cbr_small", "low minus rest"] == pytest.approx(0.3 - 0.15 / 3, abs=0.02)
    assert table.loc["cbr_small", "verdict"] == "holds"
    assert table.loc[LARGE, "verdict"] == "inconclusive"
    high_only = representations.reuse(changed([LEVEL, LEVEL], [low_only[::-1], LEVEL], noise=0.005))
    assert high_only.loc["cbr_small", "verdict"] == "differs"


def test_low_blocks_that_stay_are_seen():
    table = representations.stays_low(changed([FALLING, LEVEL], [LEVEL, FALLING[::-1]]))
    assert table["verdict"].tolist() == ["holds", "inconclusive", "inconclusive", "differs"]


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
    table = representations.foretold(predicted(foretold))
    for kind in ("random, random", "random, transfer"):
        for (model, block), there in np.ndenumerate(foretold):
            name = ("cbr_tiny", LARGE)[model], ("first", "last")[block], kind
            assert table.loc[name, "n"] == 4
            assert (table.loc[name, "R2"] > 0.95) == there
    found = representations.foretold_decision(table)
    assert found.verdict == verdict and (found.p < 0.05) == (verdict != "inconclusive")


def test_initial_and_final_shares_are_of_the_same_pairs():
    one = figures.blocks_of(predicted([[1, 1], [1, 1]]), "cbr_tiny", "cca").isel(block=0)
    for kind in ("random", "transfer"):
        before, after = figures.neurons(one, kind)
        correlations = np.corrcoef(before, after)[: len(before), len(before) :]
        assert (np.diag(correlations) > 0.95).all()
        off = correlations[~np.eye(len(before), dtype=bool)]
        assert np.abs(off).max() < 0.7


def test_a_network_that_nothing_foretells_is_left_out_with_all_its_pairs():
    results = predicted([[1, 1], [1, 1]])
    there = (results.seed_a != "1") & (results.seed_b != "1")
    lost = results.assign(explained=results["explained"].where(there))
    expected = representations.foretold(results.isel(pair=there.values))
    pd.testing.assert_frame_equal(representations.foretold(lost), expected)


def test_thin_blocks_are_named():
    results = similarity([0, 0])
    assert representations.thin_blocks(results) == "All blocks have 50 datapoints a neuron."
    results["datapoints"][1, 1] = 799
    found = representations.thin_blocks(results)
    assert found == "Fewer than 50 datapoints a neuron: ResNet-50 (block2)."


# --- first layers ----------------------------------------------------------------------------


def test_movements_are_percent_and_gabors_are_counted():
    still, none = [[0.1, 0.05], [0.01, 0.01]], [0, 0]
    results = first_layers(still, [[none, [0.5, 0.25]], [none, [0.8, 0.8]]])
    table = representations.movements(results)
    row = table.loc[("cbr_small", "transfer")]
    assert row["moved"] == pytest.approx(5, rel=0.05)
    assert (row["gabors before"], row["gabors after"], row["change"]) == (50, 25, -25)
    assert representations.further(results)["verdict"].tolist() == ["holds", "holds"]
    for init in effects.BOTH:
        found = representations.gabor_changes(table, init)
        assert found["verdict"].to_dict() == {"cbr_small": "holds"}
        assert ends(found.loc["cbr_small"]) == ends(table.loc[("cbr_small", init)])


def test_gabors_that_are_learned_or_stay_speak_against_the_claim():
    learned = [[[0, 0.5], [0.2, 0.5]], [[0, 0], [0, 0]]]
    table = representations.movements(first_layers([[0.1, 0.1], [0.1, 0.1]], learned))
    for init in effects.BOTH:
        found = representations.gabor_changes(table, init)
        assert found["verdict"].to_dict() == {"cbr_small": "differs"}


# --- under no effect -------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0.0, 0.02])
def test_gaps_of_nothing_are_seldom_decided(rng, own):
    """Whether networks are more or less like all others, or only pairs differ."""
    names = [f"net{i}" for i in range(60)] + [LARGE]
    pairs = made_up.couples([(*net, "final") for net in made_up.networks(4)])
    values = 0.5 + 0.01 * rng.normal(size=(len(names), 1, len(pairs)))
    each = own * rng.normal(size=(len(names), 8))
    place = {net: i for i, net in enumerate(made_up.networks(4))}
    for end in (0, 1):
        values[:, 0] += each[:, [place[pair[end][:2]] for pair in pairs]]
    table = representations.gaps(made_up.compared(values, pairs, models=names))
    p = [metrics.decide_positive(effects.as_interval(row, "gap")).p for _, row in table.iterrows()]
    assert at_most_one_in_twenty(np.array(p) < 0.05)


# --- what is missing -------------------------------------------------------------------------

OF_COMPARISONS = {
    representations.gaps: lambda: similarity([0, 0.05]),
    representations.foretold: lambda: predicted([[1, 0], [1, 0]]),
    representations.reuse: lambda: changed([FALLING, LEVEL], [LEVEL, LEVEL]),
    representations.stays_low: lambda: changed([FALLING, LEVEL], [LEVEL, LEVEL]),
    representations.size_effects: lambda: changed([FALLING, LEVEL], [LEVEL, LEVEL]),
}


@pytest.mark.parametrize("effect", OF_COMPARISONS)
def test_comparisons_that_failed_have_no_rows(effect):
    results = OF_COMPARISONS[effect]()
    whole = effect(results)
    lost = [n for n in results.data_vars if "pair" in results[n].dims]
    small = results.model.values[0]
    one = effect(results.assign({n: results[n].where(results.model != small) for n in lost}))
    assert small not in one.index.get_level_values("model")
    assert not one[["low", "high"]].isna().any(axis=None)
    none = effect(results.assign({n: results[n] * np.nan for n in lost}))
    assert none.empty and list(none.index.names) == list(whole.index.names)
