import numpy as np
import pandas as pd
import pytest
from scipy import stats
from transfusion.experiments import features, filters, tables
from transfusion.statistics import contrasts, gate, intervals

from .. import made_up
from ..made_up import (
    COMPARED,
    FALLING,
    LARGE,
    LEVEL,
    RUNS,
    STAYING,
    at_most_one_in_twenty,
    changed,
    ends,
    failed,
    first_layers,
    ignorant,
    predicted,
    similarity,
)


@pytest.fixture
def all_learned(monkeypatch):
    made_up.taught(monkeypatch)


# --- similarity ------------------------------------------------------------------------------


def test_gaps_are_what_training_adds_to_random_random_minus_random_transfer():
    table = features.gaps(similarity([0.0, 0.05], before=[0.0, 0.02]))
    assert table.loc[LARGE, "added"] == pytest.approx(0.03, abs=0.005)
    assert table.loc["cbr_small", "added"] == pytest.approx(0, abs=0.005)
    found = table["random, random"] - table["random, transfer"]
    np.testing.assert_allclose(table["after"], found)
    np.testing.assert_allclose(table["after"] - table["before"], table["added"])
    assert (table["n"] == COMPARED).all()


def test_other_features_are_the_large_networks_gap_less_the_small_ones():
    results = similarity([0.01, 0.0, 0.05], noise=0.0005)
    effect = features.other_features(results)
    table = contrasts.listed(effect)
    assert table["difference"].to_dict() == pytest.approx(
        {"cbr_tiny": 0.04, "cbr_small": 0.05}, abs=0.001
    )
    assert contrasts.contrast(effect).mean == pytest.approx(0.045, abs=0.001)
    assert set(table["verdict"]) == {"holds"}


def jackknifed(pairs, statistic):
    """The textbook's variance, on `pairs` of (seed, seed): value."""
    seeds = sorted({s for pair in pairs for s in pair[:2]})
    parts = [statistic([p for p in pairs if seed not in p[:2]]) for seed in seeds]
    return (len(seeds) - 1) * np.var(parts), statistic(pairs)


def test_the_error_over_networks_is_that_of_leaving_each_out():
    results = similarity([0.05], noise=0.01, own=0.02)
    one = results.sel(model=LARGE, measure="cca").isel(block=[0, 1]).mean("block")
    pairs = [
        (a, b, "transfer" in kinds, state, value - 0.1)
        for a, b, kinds, state, value in zip(
            one.seed_a.values, one.seed_b.values,
            zip(one.init_a.values, one.init_b.values, strict=True),
            one.state_a.values, one["corrected"].values, strict=True,
        ) if "random" in kinds
    ]  # fmt: skip

    def added(pairs):
        means = {
            (mixed, state): np.mean([p[4] for p in pairs if p[2:4] == (mixed, state)])
            for mixed in (False, True)
            for state in ("initial", "final")
        }
        gap = {state: means[False, state] - means[True, state] for state in ("initial", "final")}
        return gap["final"] - gap["initial"]

    variance, whole = jackknifed(pairs, added)
    row = features.gaps(results).loc[LARGE]
    found = contrasts.as_interval(row, "added")
    assert found.se**2 == pytest.approx(variance)
    half = stats.t.ppf(0.975, COMPARED - 1) * np.sqrt(variance)
    # A statistic of pairs has, unlike a mean, a little bias, which the jackknife takes off.
    assert found.mean == pytest.approx(whole, abs=0.1 * half)
    assert ends(row) == pytest.approx((found.mean - half, found.mean + half))


def test_pseudo_values_of_a_mean_are_the_numbers_themselves(rng):
    values = rng.normal(size=5)
    pairs = pd.DataFrame({"a": list("01234"), "b": list("01234"), "value": values})
    found = features._pseudo_values(pairs, lambda part: part["value"].mean())
    np.testing.assert_allclose(found, values)
    assert found.seed.values.tolist() == list(range(5))


def test_networks_that_are_like_all_others_widen_the_gaps_interval():
    alike, own = (features.gaps(similarity([0.05], noise=0.001, own=o)).loc[LARGE]
                  for o in (0, 0.02))  # fmt: skip
    assert own["high"] - own["low"] > 3 * (alike["high"] - alike["low"])


def test_seeds_of_two_networks_are_those_that_both_have():
    results = similarity([0.0, 0.05])
    there = ((results.seed_a != "2") & (results.seed_b != "2")) | (results.model != LARGE)
    lost = results.assign(corrected=results["corrected"].where(there))
    found = contrasts.contrast(features.other_features(lost))
    assert found.n == COMPARED - 1 and found.mean == pytest.approx(0.05, abs=0.01)


def test_what_is_kept_is_above_chance_at_matched_depth():
    kept = features.kept(changed([FALLING, LEVEL], [LEVEL, LEVEL]))
    np.testing.assert_allclose(
        kept.sel(model="cbr_small", init="random")[0], np.linspace(0.9, 0.3, 5)
    )
    assert kept.dims == ("model", "init", "seed", "depth")


def test_size_is_what_the_large_network_keeps_more():
    results = changed([FALLING, STAYING], [LEVEL, LEVEL], noise=0.01)
    row = contrasts.listed(features.larger_keeps_more(results)).loc["cbr_small"]
    assert row["difference"] == pytest.approx(0.3, abs=0.02) and row["verdict"] == "holds"
    kept = features.kept(results).sel(init="random").mean("depth")
    expected = stats.ttest_1samp(kept.sel(model=LARGE) - kept.sel(model="cbr_small"), 0)
    assert ends(row) == pytest.approx(tuple(expected.confidence_interval()))
    assert row["p"] == pytest.approx(expected.pvalue)
    first = contrasts.listed(features.larger_keeps_more(results, depth=0)).loc["cbr_small"]
    assert first["difference"] == pytest.approx(0, abs=0.02)
    swapped = changed([STAYING, FALLING], [LEVEL, LEVEL], noise=0.01)
    assert contrasts.decision(features.larger_keeps_more(swapped)).verdict == "differs"
    same = changed([LEVEL, LEVEL], [LEVEL, LEVEL], noise=0.01)
    assert contrasts.decision(features.larger_keeps_more(same)).verdict == "inconclusive"


def test_reuse_is_the_excess_of_pretrained_networks_in_low_blocks():
    low_only = [0.9, 0.9, 0.6, 0.6]
    table = contrasts.listed(
        features.low_reuse(changed([LEVEL, LEVEL], [low_only, LEVEL], noise=0.005))
    )
    # Five depths over four blocks: the second lies between the first two, the third in the middle.
    assert table.loc["cbr_small", "low minus rest"] == pytest.approx(0.3 - 0.15 / 3, abs=0.02)
    assert table["verdict"].tolist() == ["holds", "inconclusive"]
    high = features.low_reuse(changed([LEVEL] * 2, [low_only[::-1], LEVEL], noise=0.005))
    assert contrasts.listed(high).loc["cbr_small", "verdict"] == "differs"


@pytest.mark.parametrize(
    ("foretold", "verdict"),
    [
        ([[0, 0], [1, 0]], "holds"),
        ([[1, 0], [1, 1]], "inconclusive"),
        ([[1, 1], [0, 1]], "differs"),
        ([[0, 0], [0, 0]], "inconclusive"),
    ],
)
def test_what_is_foretold(foretold, verdict):
    results = predicted(foretold)
    table = features.foretold_r2(results)
    for kind in ("random, random", "random, transfer"):
        for (model, block), there in np.ndenumerate(foretold):
            name = ("cbr_tiny", LARGE)[model], ("first", "last")[block], kind
            assert table.loc[name, "n"] == 4
            assert (table.loc[name, "R2"] > 0.95) == there
    effect = features.foretelling(results)
    assert list(effect.rows) == [(LARGE, "last"), ("cbr_tiny", "first")]
    found = contrasts.decision(effect)
    assert found.verdict == verdict and (found.p < 0.05) == (verdict != "inconclusive")


def test_the_start_foretells_by_the_squared_correlation_over_neurons():
    results = predicted([[0.5, 0.5], [0.5, 0.5]])
    one = tables.blocks_of(results, LARGE, "cca").isel(block=0)
    before, after = tables.neurons(one, "random")
    expected = [stats.pearsonr(x, y).statistic ** 2 for x, y in zip(before, after, strict=True)]
    row = features.foretold_r2(results).loc[(LARGE, "first", "random, random")]
    assert row["R2"] == pytest.approx(np.mean(expected))


def test_initial_and_final_shares_are_of_the_same_pairs():
    one = tables.blocks_of(predicted([[1, 1], [1, 1]]), "cbr_tiny", "cca").isel(block=0)
    for kind in gate.BOTH:
        before, after = tables.neurons(one, kind)
        correlations = np.corrcoef(before, after)[: len(before), len(before) :]
        assert (np.diag(correlations) > 0.95).all()
        off = correlations[~np.eye(len(before), dtype=bool)]
        assert np.abs(off).max() < 0.7


def test_a_network_that_nothing_foretells_is_left_out_with_all_its_pairs():
    results = predicted([[1, 1], [1, 1]])
    there = (results.seed_a != "1") & (results.seed_b != "1")
    lost = results.assign(explained=results["explained"].where(there))
    expected = features.foretold_r2(results.isel(pair=there.values))
    pd.testing.assert_frame_equal(features.foretold_r2(lost), expected)


def test_thin_blocks_are_named():
    results = similarity([0, 0])
    assert features.thin_blocks(results) == "All blocks have 50 datapoints a neuron."
    results["datapoints"][1, 1] = 799
    found = features.thin_blocks(results)
    assert found == "Fewer than 50 datapoints a neuron: ResNet-50 (block2)."


# --- the gate --------------------------------------------------------------------------------


def is_asked(measure, results, **lost):
    return contrasts.decision(measure(ignorant(results, **lost))).verdict != "not testable"


def test_large_against_small_takes_a_large_and_a_small_one_that_have_learned():
    cases = {
        features.other_features: similarity([0, 0, 0]),
        features.larger_keeps_more: changed([LEVEL] * 3, [LEVEL] * 3),
    }
    for measure, results in cases.items():
        assert is_asked(measure, results, model="cbr_tiny")
        other = "random" if measure is features.other_features else "transfer"
        assert is_asked(measure, results, model=LARGE, init=other)
        assert not is_asked(measure, results, model=LARGE)
        assert not is_asked(measure, results.drop_sel(model="cbr_small"), model="cbr_tiny")


def test_foretelling_takes_a_large_and_a_small_one_that_have_learned_from_random_init():
    measure, results = features.foretelling, predicted([[1, 0]] * 2)
    for model in ("cbr_tiny", LARGE):
        assert is_asked(measure, results, model=model, init="transfer")
        assert not is_asked(measure, results, model=model, init="random")


def test_reuse_is_asked_of_networks_of_which_an_arm_has_learned():
    results = changed([LEVEL, LEVEL], [FALLING, FALLING], 0.01)
    one = ignorant(results, model="cbr_small", init="transfer")
    assert features.low_reuse(one).testable == {("cbr_small",), (LARGE,)}
    both = ignorant(results, model="cbr_small")
    assert features.low_reuse(both).testable == {(LARGE,)}


def test_first_layers_are_compared_where_these_very_arms_have_learned():
    results = first_layers(np.ones((2, 2)), np.zeros((2, 2, 2)))
    lost = ignorant(results, model="cbr_small", init="transfer")
    assert filters.moving(lost).testable == {("cbr_small", "random")}
    assert not filters.gabor_changes(lost, "transfer").testable
    assert filters.gabor_changes(lost, "random").testable == {("cbr_small",)}


# --- first layers ----------------------------------------------------------------------------


def test_movements_are_percent_and_gabors_are_counted():
    still, none = [[0.1, 0.05], [0.01, 0.01]], [0, 0]
    results = first_layers(still, [[none, [0.5, 0.25]], [none, [0.8, 0.8]]])
    table = filters.movements(results)
    row = table.loc[("cbr_small", "transfer")]
    assert row["moved"] == pytest.approx(5, rel=0.05) and row["n"] == RUNS
    assert (row["gabors before"], row["gabors after"], row["change"]) == (50, 25, -25)
    further = contrasts.listed(filters.moving(results))
    assert further["verdict"].tolist() == ["holds", "holds"]
    assert further["further"].tolist() == pytest.approx([9, 4], rel=0.1)
    for init in gate.BOTH:
        found = contrasts.listed(filters.gabor_changes(results, init))
        assert found["verdict"].to_dict() == {"cbr_small": "holds"}
        assert ends(found.loc["cbr_small"]) == ends(table.loc[("cbr_small", init)])


def test_movements_are_decided_over_folds():
    results = first_layers([[0.1, 0.1], [0.08, 0.09]], np.zeros((2, 2, 2)), noise=0.3)
    far = 100 * results["moved"].mean("filter").mean("seed")
    values = (far.sel(model="cbr_small") - far.sel(model=LARGE)).mean("init")
    expected = stats.ttest_1samp(values, 0)
    found = contrasts.contrast(filters.moving(results))
    assert ends(found._asdict()) == pytest.approx(tuple(expected.confidence_interval()))


def test_gabors_that_are_learned_or_stay_speak_against_the_claim():
    results = first_layers([[0.1, 0.1], [0.1, 0.1]], [[[0, 0.5], [0.2, 0.5]], [[0, 0], [0, 0]]])
    for init in gate.BOTH:
        found = contrasts.decision(filters.gabor_changes(results, init))
        assert found.verdict == "differs"


def test_what_is_counted_in_filters_is_not_known_to_less_than_a_filter():
    """Runs that agree in a count of twenty filters have the error of a step of 5 %."""
    results = first_layers(np.ones((2, 2)), [[[0, 0], [0.5, 0.45]], [[0, 0], [0, 0]]], noise=0)
    effect = filters.gabor_changes(results, "transfer")
    agreed = contrasts.contrast(effect)
    assert agreed.mean == -5 and agreed.sd == 0 and agreed.se == 0
    se = 5 / np.sqrt(12 * RUNS)
    assert contrasts.decision(effect).p == pytest.approx(2 * stats.t.sf(5 / se, 4))
    none = filters.gabor_changes(results, "random")
    assert contrasts.decision(none).p == pytest.approx(2 * stats.t.sf(5 / se, 4))


# --- under no effect -------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0.0, 0.02])
@pytest.mark.parametrize("seeds", [4, 6])
def test_gaps_of_nothing_are_seldom_decided(rng, own, seeds):
    """Whether networks are more or less like all others, or only pairs differ."""
    names = [f"net{i}" for i in range(40)]
    pairs = made_up.in_both_states(made_up.networks(seeds))
    values = 0.5 + 0.01 * rng.normal(size=(len(names), 1, len(pairs)))
    values += made_up.likings(rng, pairs, len(names), own)
    table = features.gaps(made_up.compared(values, pairs, models=names))
    p = [intervals.p_positive(contrasts.as_interval(row, "added")) for _, row in table.iterrows()]
    p += [intervals.p_negative(contrasts.as_interval(row, "added")) for _, row in table.iterrows()]
    assert at_most_one_in_twenty(np.reshape(p, (2, -1)).min(0) < 0.05)


def test_what_is_kept_of_nothing_is_seldom_decided(rng, all_learned):
    names = [f"net{i}" for i in range(100)]
    pairs = [((*net, "initial"), (*net, "final")) for net in made_up.networks(4)]
    values = 0.5 + 0.05 * rng.normal(size=(100, 3, 8))
    effect = features.low_reuse(made_up.compared(values, pairs, models=names))
    assert len(effect.rows) == 100
    assert at_most_one_in_twenty(contrasts.listed(effect)["verdict"] != "inconclusive")


# --- what is missing -------------------------------------------------------------------------

OF_COMPARISONS = {
    "gaps": (features.gaps, lambda: similarity([0, 0.05])),
    "foretold": (features.foretold_r2, lambda: predicted([[1, 0], [1, 0]])),
    "reuse": (features.low_reuse, lambda: changed([FALLING, LEVEL], [LEVEL, LEVEL])),
    "size": (features.larger_keeps_more, lambda: changed([FALLING, LEVEL], [LEVEL, LEVEL])),
    "other features": (features.other_features, lambda: similarity([0, 0.05])),
    "foretelling": (features.foretelling, lambda: predicted([[1, 0], [1, 0]])),
}


def as_table(found):
    return contrasts.listed(found) if isinstance(found, contrasts.Effect) else found


@pytest.mark.parametrize("name", OF_COMPARISONS)
def test_comparisons_that_failed_have_no_rows(name, all_learned):
    measure, make = OF_COMPARISONS[name]
    results = make()
    whole = as_table(measure(results))
    lost = [n for n in results.data_vars if "pair" in results[n].dims]
    small = results.model.values[0]
    one = as_table(
        measure(results.assign({n: results[n].where(results.model != small) for n in lost}))
    )
    assert len(whole) and small not in one.index.get_level_values("model")
    assert not one[["low", "high"]].isna().any(axis=None)
    none = as_table(measure(results.assign({n: results[n] * np.nan for n in lost})))
    assert none.empty and list(none.index.names) == list(whole.index.names)


@pytest.mark.parametrize("name", OF_COMPARISONS)
def test_without_a_large_network_there_is_nothing_to_set_others_against(name, all_learned):
    measure, make = OF_COMPARISONS[name]
    left = as_table(measure(make().drop_sel(model=LARGE)))
    assert left.empty == (name in ("size", "other features", "foretelling"))
    layers = first_layers(np.ones((2, 2)), np.zeros((2, 2, 2))).drop_sel(model=LARGE)
    assert not filters.moving(layers).rows and len(filters.movements(layers)) == 2


def test_a_failed_run_moves_no_filter():
    results = first_layers([[0.1, 0.05], [0.01, 0.01]], np.zeros((2, 2, 2)))
    lost = failed(results, model="cbr_small", init="random", fold=2, seed=1)
    assert filters.movements(lost).loc[("cbr_small", "random"), "n"] == RUNS - 1
    assert contrasts.decision(filters.moving(lost)).verdict == "holds"
