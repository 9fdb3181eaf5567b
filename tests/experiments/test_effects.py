import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats
from sklearn.metrics import roc_auc_score
from transfusion.experiments import accuracy, alternatives, filters, learning, tuning
from transfusion.statistics import contrasts, gate, intervals, metrics

from .. import made_up
from ..made_up import (
    BASELINE,
    FOLDS,
    LARGE,
    RUNS,
    SEEDS,
    at_most_one_in_twenty,
    ends,
    failed,
    first_layers,
    ignorant,
    performance,
    trained,
)

FINDINGS = ("edema", "effusion", "cardiomegaly", "consolidation")
SHIFTS = {
    ("cbr_tiny", "random"): 1.0,
    ("cbr_tiny", "transfer"): 1.1,
    (LARGE, "random"): 0.9,
    (LARGE, "transfer"): 1.3,
}


@pytest.fixture
def all_learned(monkeypatch):
    made_up.taught(monkeypatch)


def said(findings=FINDINGS, **how):
    return made_up.scores({m: [s] * len(findings) for m, s in SHIFTS.items()}, findings, **how)


def films(findings=FINDINGS, **how):
    return made_up.collected(said(findings, **how))


def sizes(said):
    """After training on more images random init does better; the test images are the same."""
    parts = {}
    for i, n in enumerate((100, 200, 400)):
        more = 0.1 * i * said["target"] * (said.init == "random")
        score = (said["score"] + more).transpose(*said["score"].dims)
        parts[n] = made_up.collected(said.assign(score=score))
    return made_up.stacked(parts, "train_images").assign(patients=parts[100].patients)


def decided(effect):
    """Verdict and p of each row as if all its networks had learned."""
    return contrasts.listed(effect._replace(testable=set(effect.rows)))


# --- sums of arms ----------------------------------------------------------------------------


def test_gains_are_paired_differences_in_points():
    results = performance([0.02, -0.03], noise=0.01)
    table = contrasts.listed(accuracy.gains(results))
    by_hand = 100 * (results.test_auc[:, 1] - results.test_auc[:, 0]).mean(["fold", "seed"])
    np.testing.assert_allclose(table["gain"], by_hand)
    assert (table["n"] == RUNS).all() and (table["patients"] == FOLDS * made_up.PATIENTS).all()
    assert contrasts.contrast(accuracy.gains(results)).mean == pytest.approx(float(by_hand.mean()))


def test_the_contrast_of_scores_is_that_of_sklearns_aucs():
    images = said(("edema",))
    target, score = images["target"].isel(finding=0).values, images["score"].isel(finding=0)
    auc = np.empty(score.shape[:-1])
    for place in np.ndindex(auc.shape):
        auc[place] = roc_auc_score(target[place[2]], score.values[place])
    gain = 100 * (auc[:, 1] - auc[:, 0]).mean((1, 2))
    effect = accuracy.gains(made_up.collected(images))
    np.testing.assert_allclose(contrasts.listed(effect)["gain"], gain)
    assert contrasts.contrast(effect).mean == pytest.approx(gain.mean())


def within(values):
    """Variance of a mean (fold, repetition) that the repetitions show."""
    folds, repeated = values.shape
    squares = ((values - values.mean(1, keepdims=True)) ** 2).sum()
    return squares / (folds * (repeated - 1)) / values.size


@pytest.fixture(scope="module")
def left_out():
    """Results of all patients, and without each; every fold lacks one of its own."""
    images = said(FINDINGS[:2], images=40)
    patients = np.unique(images.patient)
    kept = [images.patient.values != p for p in (-1, *patients)]
    return [sizes(images.isel(image=each)) for each in kept]


def first_size(measure):
    return lambda results: measure(results.isel(train_images=0))


def probed(results):
    """With a regression on frozen features, which says what a random network does."""
    names = {"test_auc": "probe_auc", "influence": "probe_influence"}
    frozen = results[list(names)].sel(init="random", drop=True).mean("seed").rename(names)
    return accuracy.fine_tuning(results.merge(frozen.expand_dims(probe=["transfer"])))


MEASURES = {
    "gains": first_size(accuracy.gains),
    "keeping up": first_size(accuracy.keeping_up),
    "findings": first_size(accuracy.findings),
    "fine tuning": first_size(probed),
    "little data": accuracy.little_data,
    "shrinking": accuracy.shrinking,
}


@pytest.mark.parametrize("name", MEASURES)
def test_patients_part_is_what_leaving_each_out_gives(name, left_out, all_learned):
    """Of the very contrast, whatever arms, findings and numbers of images it is a sum of."""
    all_, *lost = [contrasts.mean(MEASURES[name](r).rows.values()) for r in left_out]
    found, patients = contrasts.combined(all_), len(lost)
    spread = np.var([contrasts.summed(arms)[0].mean(1) for arms in lost], axis=0)
    expected = (patients - 1) * spread.sum() / FOLDS**2
    assert found.se**2 - within(contrasts.summed(all_)[0]) == pytest.approx(expected, rel=0.15)
    assert found.patients == FOLDS * patients


def test_with_one_training_a_fold_the_excess_between_folds_is_that_of_training():
    """And the degrees of freedom are those of Welch and Satterthwaite."""
    results = made_up.scored({m: [s] for m, s in SHIFTS.items()}, seeds=1, uneven=0.5, images=60)
    arms = accuracy.gain(results, LARGE)
    auc, influence = (100 * results[n].sel(model=LARGE) for n in ("test_auc", "influence"))
    gains = (auc.sel(init="transfer") - auc.sel(init="random")).values[:, 0]
    parts = (influence.sel(init="transfer") - influence.sel(init="random")).values
    patients = parts.shape[1]
    shared = (parts**2).sum(1).mean() * patients / (patients - 1) / FOLDS
    between = gains.var(ddof=1) / FOLDS
    assert between > shared
    found = contrasts.combined(arms)
    assert found.mean == pytest.approx(gains.mean()) and found.se**2 == pytest.approx(between)
    equal = (parts**2).sum() ** 2 / (parts**4).sum()
    freedom = between**2 / (shared**2 / equal + between**2 / (FOLDS - 1))
    assert found.df == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(between)
    assert ends(found._asdict()) == pytest.approx((gains.mean() - half, gains.mean() + half))


def test_folds_that_agree_more_than_their_patients_leave_the_patients_part():
    results = performance([0.02, 0.02], noise=0.01, seeds=1)
    results["test_auc"] = results["test_auc"].mean("fold") + 0 * results["test_auc"]
    found = contrasts.combined(accuracy.gain(results, LARGE))
    # Two independent arms, of an error of a point in each of five folds.
    parts = 100 * results["influence"].sel(model=LARGE)
    total = metrics.patients_variance((parts[1] - parts[0]).values, made_up.PATIENTS)
    assert found.se**2 == pytest.approx(total.mean() / FOLDS) and found.mean == pytest.approx(2)


def test_without_scores_the_interval_is_students_over_folds():
    results = performance([0.02, -0.03], noise=0.02).drop_vars("influence")
    for model, row in decided(accuracy.gains(results)).iterrows():
        auc = 100 * results.test_auc.sel(model=model).mean("seed")
        gains = auc.sel(init="transfer") - auc.sel(init="random")
        found = stats.ttest_1samp(gains, 0)
        assert ends(row) == pytest.approx(tuple(found.confidence_interval()))
        assert contrasts.above(contrasts.as_interval(row, "gain")).p == pytest.approx(found.pvalue)


def test_on_one_fold_it_is_students_over_repetitions():
    results = performance(0.02, noise=0.02, folds=1, seeds=5).drop_vars("influence")
    row = decided(accuracy.gains(results)).loc[LARGE]
    random, transfer = (
        100 * results.test_auc.sel(model=LARGE, init=i).values.ravel() for i in gate.BOTH
    )
    expected = stats.ttest_rel(transfer, random).confidence_interval()
    assert ends(row) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("init", gate.BOTH)
def test_a_failed_run_counts_in_no_pair(init):
    images = said(("edema",), seeds=3)
    results = made_up.collected(images)
    lost = failed(results, model=LARGE, init=init, fold=1, seed=2)
    table, whole = (decided(accuracy.gains(r)) for r in (lost, results))
    pd.testing.assert_series_equal(table.loc["cbr_tiny"], whole.loc["cbr_tiny"])
    gains = 100 * results.test_auc.sel(model=LARGE).diff("init").isel(init=0)
    there = (gains.fold != 1) | (gains.seed != 2)
    means = gains.where(there).mean("seed")
    assert table.loc[LARGE, "n"] == 3 * FOLDS - 1
    assert table.loc[LARGE, "gain"] == pytest.approx(float(means.mean()))


def test_a_fold_in_which_an_arm_never_ended_is_left_out():
    results = performance([0.02, 0.03], noise=0.01)
    lost = failed(results, model=LARGE, init="random", fold=3)
    table = decided(accuracy.gains(lost))
    left = decided(accuracy.gains(results.sel(fold=results.fold != 3)))
    pd.testing.assert_series_equal(table.loc[LARGE], left.loc[LARGE])
    assert table["n"].to_dict() == {"cbr_tiny": RUNS, LARGE: RUNS - SEEDS}


def test_too_few_patients_decide_nothing():
    images = said(("edema",), noise=0, images=4)
    images["target"][:] = [0, 0, 0, 1]
    table = decided(accuracy.gains(made_up.collected(images)))
    assert np.isinf(table["high"]).all() and (table["verdict"] == "inconclusive").all()


def test_nets_that_share_their_images_are_compared_more_sharply():
    """The paired interval of a difference is narrower than what two arms apart would give."""
    results = films(("edema",), noise=0.1)
    found = contrasts.combined(accuracy.gain(results, LARGE))
    apart = [contrasts.combined([(100, contrasts.arm(results, model=LARGE, init=i))])
             for i in gate.BOTH]  # fmt: skip
    assert found.se < 0.5 * np.hypot(*(one.se for one in apart))


@pytest.mark.parametrize(
    ("gain", "noise", "verdicts"),
    [
        (0.0, 0.001, ["holds", "holds"]),
        (0.05, 0.001, ["differs", "differs"]),
        (0.0, 0.05, ["inconclusive", "inconclusive"]),
    ],
)
def test_gains_come_out_with_each_verdict(gain, noise, verdicts):
    table = contrasts.listed(accuracy.gains(performance([gain, gain], noise)))
    assert table["verdict"].tolist() == verdicts
    assert ((table["p"] < intervals.LEVEL) == (table["verdict"] != "inconclusive")).all()


def test_keeping_up_is_not_being_worse():
    table = contrasts.listed(accuracy.keeping_up(performance([0.0, 0.05])))
    assert table.loc[("cbr_tiny", "random"), "verdict"] == "holds"
    better = contrasts.listed(accuracy.keeping_up(made_up.keeping_up(0.05, -0.05)))
    assert better["verdict"].tolist() == ["holds", "differs"]


def test_inception_is_not_a_small_network():
    models = ("cbr_tiny", "inception_v3", "resnet50")
    rows = accuracy.keeping_up(performance(0.0, models=models)).rows
    assert {model for model, _ in rows} == {"cbr_tiny"}


def test_fine_tuning_is_set_against_each_networks_own_features():
    table = contrasts.listed(accuracy.fine_tuning(made_up.frozen([0.05, -0.03])))
    assert table["difference"].tolist() == pytest.approx([5, -3], abs=0.2)
    assert table["verdict"].tolist() == ["holds", "differs"]
    assert accuracy.fine_tuning(performance(0.0)).rows == {}


# --- findings --------------------------------------------------------------------------------


def test_findings_are_told_apart_by_p_for_their_number():
    results = films()
    table = accuracy.finding_gains(results)
    assert list(table.index) == [(m, f) for m in results.model.values for f in FINDINGS]
    expected = stats.false_discovery_control(table["p"])
    np.testing.assert_allclose(table["adjusted"], expected)
    auc = results["finding_auc"].sel(model=LARGE, finding="edema").mean(["fold", "seed"])
    by_hand = 100 * float(auc.sel(init="transfer") - auc.sel(init="random"))
    assert table.loc[(LARGE, "edema"), "gain"] == pytest.approx(by_hand)
    assert set(table.loc[LARGE, "verdict"]) == {"up"}


def test_the_sign_of_a_finding_is_the_papers():
    results = films((*FINDINGS, "atelectasis", "Pleural Effusion"))
    table = contrasts.listed(accuracy.findings(results))
    expected = ["holds", "holds", "differs", "differs", "holds"]  # all gain; two should lose
    assert table["verdict"].tolist() == expected and "atelectasis" not in table.index
    by_model = accuracy.finding_gains(results)["gain"].groupby("finding").mean()
    signs = [1, 1, -1, -1, 1]
    np.testing.assert_allclose(table.iloc[:, 0], signs * by_model[table.index])


def test_a_task_without_findings_has_no_gains_of_findings():
    for results in (performance([0, 0]), films(FINDINGS[:1])):
        assert accuracy.finding_gains(results).empty and not accuracy.findings(results).rows


def test_findings_are_a_mean_over_networks_that_have_learned():
    results = ignorant(films(), model="cbr_tiny")
    table = contrasts.listed(accuracy.findings(results)).iloc[:, 0]
    large = accuracy.finding_gains(results)["gain"][LARGE]
    np.testing.assert_allclose(table, [1, 1, -1, -1] * large[table.index])
    none = accuracy.findings(ignorant(films()))
    assert len(none.rows) == 4 and contrasts.contrast(none) is None


# --- the gate --------------------------------------------------------------------------------


def test_an_arm_has_learned_where_it_is_above_both_baselines():
    results = performance([0.0, 0.05])
    every = {(m, i) for m in ("cbr_tiny", LARGE) for i in gate.BOTH}
    assert gate.learned(results) == every
    assert gate.learned(ignorant(results)) == set()
    assert gate.learned(ignorant(results, model=LARGE, init="random")) == every - {
        (LARGE, "random")
    }
    for name in gate.SIMPLE:
        one = results["baseline_auc"].where(results.baseline != name, 0.82)
        assert gate.learned(results.assign(baseline_auc=one)) == {(LARGE, "transfer")}


@pytest.mark.parametrize("lack", [*gate.SIMPLE, "both"])
def test_where_a_baseline_is_missing_nothing_is_known_to_have_learned(lack):
    results = performance(0.0)
    lost = [n for n in results.data_vars if n.startswith("baseline")]
    left = results.drop_vars([*lost, "baseline"]) if lack == "both" else results.drop_sel(
        baseline=lack
    )  # fmt: skip
    assert gate.learned(left) == set()
    assert contrasts.decision(accuracy.gains(left)) == ("not testable", 1)


def test_an_arm_above_a_baseline_by_its_mean_alone_has_not_learned():
    clear, vague = (
        trained({(LARGE, "random"): BASELINE + 0.02}, noise).assign(
            baseline_auc=(("baseline", "fold"), np.full((2, FOLDS), BASELINE))
        )
        for noise in (0.001, 0.05)
    )
    rows = [gate.levels(results).loc[(LARGE, "random")] for results in (clear, vague)]
    assert [row["above statistics"] for row in rows] == pytest.approx([2, 2])
    assert rows[0]["learned"] and rows[0]["above statistics from"] > 0
    assert not rows[1]["learned"] and rows[1]["above statistics from"] < 0


def test_levels_are_means_in_percent_and_lie_within_their_intervals():
    table = gate.levels(performance([0.1, 0.15], noise=0.02))
    assert table["AUC"].tolist() == pytest.approx([80, 90, 80, 95])
    assert ((table["low"] < table["AUC"]) & (table["AUC"] < table["high"])).all()
    above, below = table["high"] - table["AUC"], table["AUC"] - table["low"]
    assert (above < below).all()  # on log odds
    base = gate.baseline_levels(made_up.frozen([0.05, 0.05]))
    assert list(base.index)[:2] == [("", name) for name in gate.SIMPLE]
    assert set(base.index[2:]) == {(m, f"probe:{i}") for m in ("cbr_small", LARGE)
                                   for i in gate.BOTH}  # fmt: skip


def test_a_network_that_has_not_learned_leaves_the_contrast():
    results = performance([0.0, 0.05])
    whole = accuracy.gains(results)
    assert contrasts.contrast(whole).mean == pytest.approx(2.5)
    lost = accuracy.shrinking(ignorant(two_sizes(), model="cbr_tiny"))
    assert lost.testable == {("cbr_small",), (LARGE,)} and len(contrasts.listed(lost)) == 3
    assert contrasts.contrast(lost).mean == pytest.approx(-2)
    table = contrasts.listed(lost)
    assert table.loc["cbr_tiny", "verdict"] == "not testable" and table.loc["cbr_tiny", "p"] == 1


def two_sizes():
    return made_up.small_data({100: [0.04] * 3, 200: [0.02] * 3}, noise=0.0005)


def test_no_difference_takes_all_compared_arms_and_a_difference_one():
    for init in gate.BOTH:
        lost = ignorant(performance([0.0, 0.0]), model=LARGE, init=init)
        assert accuracy.gains(lost).testable == {("cbr_tiny",)}
        assert accuracy.keeping_up(lost).testable == {("cbr_tiny", i) for i in gate.BOTH
                                                     if i != init}  # fmt: skip
        lost = ignorant(two_sizes(), model=LARGE, init=init)
        assert (LARGE,) in accuracy.shrinking(lost).testable
        assert len(accuracy.little_data(lost).testable) == 2


def test_large_against_small_takes_a_large_one():
    lost = ignorant(two_sizes(), model=LARGE)
    assert accuracy.little_data(lost).testable == set()
    assert (
        contrasts.decision(accuracy.keeping_up(lost.isel(train_images=0))).verdict == "not testable"
    )
    assert accuracy.little_data(ignorant(two_sizes(), model="cbr_tiny")).testable == {
        ("cbr_small",)
    }


def test_a_claim_on_speed_is_gated_by_the_test_auc_of_the_same_runs():
    results = made_up.two((300, 100), (300, 100))
    lost = ignorant(results, model="cbr_tiny")
    assert learning.scaling(lost).testable == {(LARGE,)}
    table = learning.speedups(lost)
    assert table["verdict"].to_dict() == {("cbr_tiny", "mean_var"): "not testable",
                                          (LARGE, "mean_var"): "holds"}  # fmt: skip


# --- an effect, decided ----------------------------------------------------------------------


def test_the_contrast_is_decided_by_itself_and_rows_are_counted_beside():
    effect = accuracy.gains(performance([0.0, 0.05]))
    assert contrasts.decision(effect).verdict == "differs"
    assert contrasts.count_rows(effect) == (1, 1, 2)
    cancelling = accuracy.gains(performance([0.03, -0.03]))
    assert contrasts.decision(cancelling).verdict == "holds" and contrasts.count_rows(
        cancelling
    ) == (
        0,
        2,
        2,
    )


def test_the_interval_of_the_contrast_is_that_of_the_mean_in_each_fold():
    results = made_up.ahead(0.05, 0.02, noise=0.02)
    area = learning.area(results).mean("seed")
    values = (area.sel(init="mean_var") - area.sel(init="batch_norm")).mean("model")
    found = contrasts.contrast(learning.scale_alone(results))
    expected = stats.ttest_1samp(values, 0)
    assert ends(found._asdict()) == pytest.approx(tuple(expected.confidence_interval()))
    assert contrasts.decision(learning.scale_alone(results)).p == pytest.approx(expected.pvalue)


def test_nothing_testable_is_no_number():
    effect = accuracy.gains(ignorant(performance([0.0, 0.0])))
    assert contrasts.contrast(effect) is None and len(contrasts.listed(effect)) == 2
    assert contrasts.decision(effect) == ("not testable", 1)


def test_without_a_fold_the_rest_speak():
    results = performance([0.0, 0.02], noise=0.01)
    left = contrasts.without_fold(accuracy.gains(results), 1)
    rest = results.sel(fold=results.fold != 1)
    expected = contrasts.contrast(accuracy.gains(rest))
    assert contrasts.contrast(left) == pytest.approx(expected)
    assert expected.n == RUNS - SEEDS and expected.patients == (FOLDS - 1) * made_up.PATIENTS
    assert contrasts.without_fold(accuracy.gains(results.isel(fold=[0, 1])), 1) is None
    assert contrasts.without_fold(accuracy.gains(results.isel(fold=[0])), 1) is None


@pytest.mark.parametrize(
    ("random", "expected"), [(0.8, 1), (0.96, 1), (0.98, 0.5), (0.996, 0.1), (0.5, 1)]
)
def test_the_margin_is_a_point_or_a_quarter_of_the_error_that_is_left(random, expected):
    results = trained({(LARGE, "random"): random, (LARGE, "transfer"): 0.7})
    assert accuracy.margin(results, [LARGE]) == pytest.approx(expected)
    assert accuracy.margin(results, ["inception_v3"]) == 1


def test_what_makes_no_difference_hangs_on_the_error_that_is_left():
    for random, verdict in ((0.9, "holds"), (0.985, "differs")):
        means = {(LARGE, "random"): random, (LARGE, "transfer"): random + 0.006}
        effect = accuracy.gains(trained(means, noise=0.0005))
        assert contrasts.decision(effect).verdict == verdict


@pytest.mark.parametrize("n", [4, 16, 40])
def test_a_correlation_is_loose_where_its_interval_says_so(n, rng):
    verdicts = set()
    for mix in (0, 0.3, 3):
        for _ in range(5):
            x = rng.normal(size=n)
            rho = intervals.rank_correlation(x, mix * x + rng.normal(size=n))
            found = accuracy.loose(rho)
            assert (found.verdict == "holds") == (max(-rho.low, rho.high) < 0.5)
            assert (found.p < 0.05) == (found.verdict != "inconclusive")
            verdicts.add(found.verdict)
    assert ("holds" in verdicts) == (n >= 40) or n == 16


def test_source_rank_is_spearmans_over_networks_that_have_learned():
    target = [0.7, 0.72, 0.71, 0.75, 0.73, 0.78]
    results = made_up.sources(target)
    rho = accuracy.source_rank(results)
    assert rho.mean == pytest.approx(stats.spearmanr(range(6), target).statistic) and rho.n == 6
    lost = accuracy.source_rank(ignorant(results, model="net5", init="transfer"))
    assert lost.n == 5 and lost.mean == pytest.approx(
        stats.spearmanr(range(5), target[:5]).statistic
    )


# --- learning rates --------------------------------------------------------------------------


def rates():
    """Three rates of 0.001, 0.01 and 0.1: transfer is best at the least, random in the middle."""
    parts = [(0.7, 0.9), (0.8, 0.6), (0.6, 0.5)]
    found = [
        trained({("cbr_tiny", "random"): random, ("cbr_tiny", "transfer"): transfer}, folds=1)
        for random, transfer in parts
    ]
    return made_up.stacked(dict(zip((0.001, 0.01, 0.1), found, strict=True)), "lr")


def test_the_best_rate_is_that_of_the_best_last_validation_auc():
    results = rates()
    assert tuning.best_rates(results) == {"cbr_tiny random": 0.01, "cbr_tiny transfer": 0.001}
    peaked = results["auc"] + 0.5 * (results.lr == 0.1) * (results.step == 20)
    assert tuning.best_rates(results.assign(auc=peaked.transpose(*results["auc"].dims))) == (
        tuning.best_rates(results)
    )


def test_a_rate_at_which_a_run_failed_is_none():
    lost = failed(rates(), init="random", lr=0.01, seed=1)
    assert tuning.best_rates(lost)["cbr_tiny random"] == 0.001


def test_where_the_best_rate_lies_at_an_end_the_grid_must_grow():
    assert tuning.at_an_end(rates()) == ["cbr_tiny transfer"]
    assert tuning.at_an_end(rates().sel(lr=[0.01, 0.1])) == [
        "cbr_tiny random", "cbr_tiny transfer"
    ]  # fmt: skip


# --- little data -----------------------------------------------------------------------------


def test_slopes_are_points_a_doubling(all_learned):
    results = made_up.small_data({100: [0.04] * 3, 200: [0.03] * 3, 400: [0.02] * 3}, noise=0)
    table = contrasts.listed(accuracy.shrinking(results))
    np.testing.assert_allclose(table["slope"], -1, atol=1e-9)
    uneven = made_up.small_data({100: [0.05, 0, 0.01], 300: [0.02, 0, 0.04], 450: [0, 0.01, 0]})
    gains = accuracy.gains_by_size(uneven)["gain"]
    for model, row in decided(accuracy.shrinking(uneven)).iterrows():
        expected = stats.linregress(np.log2([100, 300, 450]), gains[model])
        assert row["slope"] == pytest.approx(expected.slope)
    assert accuracy.shrinking(results.sel(train_images=[100])).rows == {}


def test_a_size_at_which_a_network_never_ended_is_left_out_of_its_slope(all_learned):
    some = made_up.small_data({100: [0.04] * 3, 200: [0.5] * 3, 400: [0.02] * 3})
    lost = failed(some, train_images=200, model="cbr_tiny", init="transfer")
    table = contrasts.listed(accuracy.shrinking(lost))
    assert table.loc["cbr_tiny", "slope"] == pytest.approx(-1) and len(table) == 3


def test_with_little_data_gains_are_set_against_each_other(all_learned):
    results = made_up.small_data({100: [0.01, 0.02, 0.05], 400: [0, 0, 0]}, noise=0)
    for images, expected in ((None, [4, 3]), (100, [4, 3]), (400, [0, 0])):
        table = contrasts.listed(accuracy.little_data(results, images))
        assert table["difference"].tolist() == pytest.approx(expected, abs=1e-9)


# --- convergence -----------------------------------------------------------------------------


def curves(slow, fast, final=0.9):
    return made_up.curves({LARGE: {"random": slow, "mean_var": fast}}, final, noise=0)


def test_area_is_the_trapezium_over_the_logarithm_of_steps():
    results = made_up.curves({LARGE: {"random": 300, "mean_var": 100}}, noise=0.2)
    place = np.log(results.step.values)
    expected = np.trapezoid(100 * results["auc"].values, place, axis=-1) / np.ptp(place)
    np.testing.assert_allclose(learning.area(results), expected)
    one = learning.area(results.isel(step=[-1]))
    np.testing.assert_allclose(one, 100 * results["auc"].isel(step=-1))


def test_learning_twice_as_fast_adds_the_same_area_early_and_late():
    step = 2.0 ** np.arange(10)
    parts = [0.5 + 0.4 * (step >= 2**k) for k in (3, 4, 7, 8)]
    auc = xr.Dataset({"auc": (("run", "step"), parts)}, {"step": step})
    early, next_, late, last = learning.area(auc).values
    assert early - next_ == pytest.approx(late - last) and early > next_


def test_speedup_is_the_ratio_of_steps():
    row = learning.speedups(curves(300, 100)).iloc[0]
    assert row["level"] == pytest.approx(0.86) and row["never"] == 0
    assert row["speed-up"] == pytest.approx(3, rel=1e-6) and row["verdict"] == "holds"
    assert learning.speedups(curves(100, 300)).iloc[0]["verdict"] == "differs"
    assert contrasts.contrast(learning.scaling(curves(300, 100))).mean == pytest.approx(np.log2(3))


def test_the_interval_of_a_speedup_is_students_over_folds():
    results = made_up.two((300, 100), (300, 200), noise=0.1)
    row = learning.speedups(results).loc[(LARGE, "mean_var")]
    level = learning.start_level(results, LARGE)
    reached = [
        [[learning.steps_to(level, results.step.values, run) for run in fold] for fold in
         results["auc"].sel(model=LARGE, init=init).values] for init in ("random", "mean_var")
    ]  # fmt: skip
    ratios = (np.log2(reached[0]) - np.log2(reached[1])).mean(1)
    expected = stats.ttest_1samp(ratios, 0)
    assert ends(row) == pytest.approx(tuple(2 ** np.array(expected.confidence_interval())))
    assert row["p"] == pytest.approx(expected.pvalue)


def test_a_run_that_never_arrives_counts_with_its_length():
    row = learning.speedups(curves(300, 5000)).iloc[0]
    assert (row["never"], row["bound"], row["verdict"], row["p"]) == (
        RUNS, "at most", "inconclusive", 1
    )  # fmt: skip
    assert learning.ratio(row) == f"at most {row['speed-up']:.1f} times (n = {RUNS})"
    slow = curves(300, 100)
    late = slow["auc"].where((slow.init != "random") | (slow.fold != 0) | (slow.seed != 0), 0.6)
    row = learning.speedups(slow.assign(auc=late.transpose(*slow["auc"].dims))).iloc[0]
    assert (row["never"], row["bound"], row["verdict"]) == (1, "at least", "holds")
    assert row["level"] < 0.86  # that of all random runs
    both = slow.assign(auc=slow["auc"].where(slow.seed != 0, 0.5).transpose(*slow["auc"].dims))
    row = learning.speedups(both).iloc[0]
    assert row["bound"] == "unknown" and "10 of 20 runs never" in learning.ratio(row)


def test_scaling_is_undecided_where_mean_var_never_arrives():
    results = made_up.two((300, 100), (300, 100))
    hit = (results.model == LARGE) & (results.init == "mean_var") & (results.fold == 0)
    late = results.assign(auc=results["auc"].where(~hit, 0.6).transpose(*results["auc"].dims))
    assert contrasts.decision(learning.scaling(results)).verdict == "holds"
    assert contrasts.decision(learning.scaling(late)) == ("inconclusive", 1)
    # A network that has not learned is not asked how fast it does.
    assert contrasts.decision(learning.scaling(ignorant(late, model=LARGE))).verdict == "holds"


def test_a_failed_run_is_not_one_that_never_arrives():
    row = learning.speedups(failed(curves(300, 100), init="mean_var", fold=0, seed=0)).iloc[0]
    assert (row["never"], row["bound"], row["n"]) == (0, "", RUNS - 1)
    assert row["speed-up"] == pytest.approx(3, rel=1e-6)


def test_the_level_is_nine_tenths_of_what_random_init_gains_over_chance():
    results = trained({(LARGE, "random"): 0.8, (LARGE, "transfer"): 0.9}, noise=0.01)
    assert learning.start_level(results, LARGE) == pytest.approx(0.77)


def test_variants_of_different_lengths_are_each_measured_on_their_own(all_learned):
    short = curves(100, 50).isel(step=slice(0, 20))
    results = made_up.stacked({"long": curves(300, 100), "short": short}, "variant")
    table = alternatives.speedups_by_variant(results)
    assert table.loc[(LARGE, "long"), "speed-up"] == pytest.approx(3, rel=1e-6)
    assert table.loc[(LARGE, "short"), "speed-up"] == pytest.approx(2, rel=1e-6)


# --- transfusion and hybrids -----------------------------------------------------------------


def test_each_block_adds_to_those_below_it(all_learned):
    results = made_up.blockwise([[0.06, 0.02, 0.01], [0.03, 0.02, 0.01]], suffix=0.02, noise=0)
    np.testing.assert_allclose(learning.marginal(results)["added"], [6, 2, 1, 3, 2, 1])
    first, low = (
        contrasts.listed(f(results)) for f in (learning.first_block, learning.low_against_many)
    )
    np.testing.assert_allclose(first["difference"], [6 - 1.5, 3 - 1.5])
    np.testing.assert_allclose(low["difference"], [4, 1])


def test_a_network_without_cuts_adds_everything_at_once(all_learned):
    means = {("cbr_tiny", "random"): 0.7, ("cbr_tiny", "transfer"): 0.75}
    means |= {(LARGE, "random"): 0.7, (LARGE, "transfer"): 0.8, (LARGE, "transfusion:conv1"): 0.77}
    results = trained(means, noise=0)
    assert learning.prefixes(results, "cbr_tiny") == ["random", "transfer"]
    assert learning.marginal(results)["added"].tolist() == pytest.approx([5, 7, 3])
    assert set(learning.first_block(results).rows) == {(LARGE,)}
    assert not learning.low_against_many(results).rows  # no block alone


def test_slim_and_gabors_are_set_against_each_of_the_others(all_learned):
    results = made_up.hybrids((0.02, 0.01, 0.05), gabor=(0.03, 0.04), noise=0)
    np.testing.assert_allclose(contrasts.listed(alternatives.slim(results))["difference"], [-2])
    np.testing.assert_allclose(alternatives.slim_beside(results)["difference"], [-2, -1, 5])
    table = alternatives.gabors_beside(results)["difference"]
    np.testing.assert_allclose(table["cbr_tiny"], [-3, 2, 7])
    np.testing.assert_allclose(table[LARGE], [-4, 1, 6])
    own = contrasts.listed(alternatives.synthetic_gabors(results))
    assert own["difference"].to_dict() == pytest.approx({"cbr_tiny": -3, LARGE: -4})
    assert own["verdict"].tolist() == ["differs", "differs"]


# --- other conditions ------------------------------------------------------------------------


def test_another_recipe_is_the_difference_of_the_mean_gains():
    results = made_up.robustness({"own": [0, 0.04], "wide": [0.02, 0.03], "slow": [0, 0.04]})
    effect = alternatives.any_recipe(results, "own", ["wide", "slow"])
    table = contrasts.listed(effect)
    assert table["difference"].tolist() == pytest.approx([0.5, 0], abs=1e-9)
    lost = results["test_auc"].where((results.variant != "own") | (results.model != LARGE), 0.5)
    lost = results.assign(test_auc=lost.transpose(*results["test_auc"].dims))
    assert alternatives.any_recipe(lost, "own", ["wide"]).testable == set()


def test_equal_rates_are_told_one_below_the_other(all_learned):
    results = made_up.at_rates(performance(0.02, noise=0), performance(0.03, noise=0))
    assert list(contrasts.rates(results)) == [0.0003, 0.001]
    table = contrasts.by_rate(accuracy.gains, results)
    assert table.index.names == ["lr", "model"]
    assert table["gain"].tolist() == pytest.approx([2, 2, 3, 3])
    assert list(contrasts.rates(performance(0.02))) == [None]
    one = contrasts.by_rate(accuracy.gains, performance(0.02))
    assert one.index.names == ["model"]


# --- under no effect -------------------------------------------------------------------------

NETS = [f"net{i}" for i in range(50)]


def p_of_no_gain(results):
    return [
        contrasts.above(contrasts.combined(accuracy.gain(results, model))).p
        for model in results.model.values
    ]


@pytest.mark.parametrize(
    ("seeds", "noise", "uneven"), [(1, 0.5, 0), (1, 0.2, 0.4), (2, 0.5, 0), (2, 0.2, 0.4)]
)
def test_gains_of_nothing_are_seldom_decided(seeds, noise, uneven):
    """Whether networks differ in what they say of single images or in all that they learned."""
    p = []
    for seed in range(2):
        shifts = {(net, init): [1.0] for net in NETS for init in gate.BOTH}
        p += p_of_no_gain(
            made_up.scored(shifts, noise=noise, uneven=uneven, seeds=seeds, seed=seed)
        )
    assert at_most_one_in_twenty(np.array(p) < 0.05) and min(p) < 0.2


def test_gains_at_the_margin_are_seldom_decided(rng, all_learned):
    results = performance(0.0, noise=0.0, models=[f"net{i}" for i in range(100)])
    drawn = 0.02 * rng.normal(size=results["test_auc"].shape)
    gain = 0.01 * (results.init == "transfer")
    results = results.assign(test_auc=results["test_auc"] + gain + drawn)
    assert at_most_one_in_twenty(contrasts.listed(accuracy.gains(results))["p"] < 0.05)


def learners(rng, nets):
    """Curves of three inits alike, with a speed and a final AUC of each run."""
    step, inits = np.arange(10, 410, 10), ["random", "mean_var", "batch_norm"]
    shape = (nets, len(inits), FOLDS, SEEDS, 1)
    half, final = 60 * 2 ** (0.5 * rng.normal(size=shape)), 0.3 + 0.01 * rng.normal(size=shape)
    auc = 0.5 + final * (1 - np.exp(-step / half))
    coords = {"model": [f"net{i}" for i in range(nets)], "init": inits}
    coords |= {"fold": range(FOLDS), "seed": range(SEEDS), "step": step}
    auc = xr.DataArray(auc, coords, tuple(coords))
    return made_up.tested(auc.isel(step=-1, drop=True), auc)


def test_areas_of_nothing_are_seldom_decided(rng, all_learned):
    effect = learning.scale_alone(learners(rng, 80))
    assert len(effect.rows) == 80
    assert at_most_one_in_twenty([contrasts.above(contrasts.combined(a)).p < 0.05
                                  for a in effect.rows.values()])  # fmt: skip


def test_speedups_of_nothing_are_seldom_decided(rng, all_learned):
    table = learning.speedups(learners(rng, 30))
    assert len(table) == 60 and (table["never"] > 0).any() and (table["never"] == 0).any()
    assert at_most_one_in_twenty(table["verdict"] != "inconclusive")


def test_networks_like_the_baselines_have_seldom_learned():
    shifts = {(net, "random"): [0.0] for net in NETS}
    results = made_up.scored(shifts, noise=0.3, uneven=0.2)
    assert at_most_one_in_twenty(gate.levels(results)["learned"])


# --- what is missing -------------------------------------------------------------------------


def layers():
    return first_layers(np.ones((2, 2)), np.zeros((2, 2, 2)))


def blocks():
    return made_up.blockwise([[0.01, 0.02, 0.03]] * 2)


OF_RUNS = {
    "gain": (accuracy.gains, lambda: performance([0, 0.05])),
    "keeping up": (accuracy.keeping_up, lambda: performance([0, 0.05])),
    "findings": (accuracy.findings, lambda: films(images=20)),
    "little data": (accuracy.little_data, two_sizes),
    "shrinking": (accuracy.shrinking, two_sizes),
    "fine tuning": (accuracy.fine_tuning, lambda: made_up.frozen([0, 0])),
    "scaling": (learning.scaling, lambda: made_up.two((300, 100), (300, 100))),
    "scale alone": (learning.scale_alone, lambda: made_up.ahead(0, 0)),
    "first block": (learning.first_block, blocks),
    "low, many": (learning.low_against_many, blocks),
    "slim": (alternatives.slim, made_up.hybrids),
    "synthetic": (alternatives.synthetic_gabors, made_up.hybrids),
    "moving": (filters.moving, layers),
    "gabors": (lambda r: filters.gabor_changes(r, "transfer"), layers),
}


@pytest.mark.parametrize("name", OF_RUNS)
def test_arms_that_never_ran_have_no_rows_and_one_run_decides_nothing(name, all_learned):
    measure, make = OF_RUNS[name]
    results = make()
    whole = measure(results)
    assert len(whole.rows) and contrasts.contrast(whole).n > 1
    one = measure(results.isel(fold=[0], seed=[0]))
    assert list(one.rows) == list(whole.rows)
    assert contrasts.decision(one).verdict == "inconclusive" and contrasts.decision(one).p == 1
    needed = {"slim": alternatives.CUT, "synthetic": "gabor", "first block": "transfer"}
    arm = {"init": needed.get(name, results.init.values[-1])}
    rest, absent = measure(failed(results, **arm)), measure(results.drop_sel(**arm))
    # Never asked for is as never done.
    pd.testing.assert_frame_equal(
        contrasts.listed(rest), contrasts.listed(absent), check_dtype=False
    )
    assert len(rest.rows) < len(whole.rows)
    nothing = contrasts.listed(measure(failed(results)))
    assert nothing.empty and list(nothing.index.names) == list(whole.keys)
    assert {"low", "high", "n", "verdict", "p"} <= set(nothing)


TABLES = {
    "by size": (accuracy.gains_by_size, two_sizes),
    "finding gains": (accuracy.finding_gains, lambda: films(images=20)),
    "speed-ups": (learning.speedups, lambda: made_up.two((300, 100), (300, 100))),
    "marginal": (learning.marginal, blocks),
    "slim beside": (alternatives.slim_beside, made_up.hybrids),
    "gabors beside": (alternatives.gabors_beside, made_up.hybrids),
    "by variant": (alternatives.gains_by_variant, lambda: made_up.robustness({"a": [0, 0.05]})),
    "speed by variant": (alternatives.speedups_by_variant,
                         lambda: made_up.stacked({"a": curves(300, 100)}, "variant")),
    "movements": (filters.movements, layers),
    "levels": (gate.levels, lambda: performance([0, 0])),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_nothing_has_its_columns_all_the_same(name):
    measure, make = TABLES[name]
    results = make()
    whole, nothing = measure(results), measure(failed(results))
    assert len(whole) and whole["n"].min() > 1 and nothing.empty
    assert list(nothing.index.names) == list(whole.index.names)
    assert {"low", "high", "n"} <= set(nothing)


def test_without_a_large_network_there_is_nothing_to_set_others_against(all_learned):
    small = performance([0, 0], models=("cbr_tiny", "cbr_small"))
    assert not accuracy.keeping_up(small).rows and len(accuracy.gains(small).rows) == 2
    data = two_sizes().drop_sel(model=LARGE)
    assert not accuracy.little_data(data).rows and len(accuracy.shrinking(data).rows) == 2


# --- effects as rows -------------------------------------------------------------------------


def test_a_row_gives_back_its_interval():
    for results in (films(("edema",)), films(("edema",)).drop_vars("influence")):
        effect = contrasts.combined(accuracy.gain(results, LARGE))
        row = pd.Series(contrasts.effect_row("gain", effect))
        assert contrasts.as_interval(row, "gain") == effect


def test_a_number_never_travels_alone():
    one = intervals.Interval(0.44, -0.12, 1, 0.5, 4)
    assert contrasts.interval_text(one, unit=" points") == "+0.4 points [-0.1, +1.0] (n = 4)"
    many = one._replace(mean=-0.04, low=-1.1, high=0.04, patients=1400)
    assert contrasts.interval_text(many) == "+0.0 [-1.1, +0.0] (n = 4, 1,400 patients)"
    narrow = one._replace(mean=0.081, low=0.021, high=0.141)
    assert contrasts.interval_text(narrow) == "+0.08 [+0.02, +0.14] (n = 4)", (
        "else it seems to reach 0"
    )
    assert learning.ratio(learning.speedups(curves(300, 100)).iloc[0]) == (
        f"3.0 times [3.0, 3.0] (n = {RUNS})"
    )


def test_below_is_above_turned_round(rng):
    for mean, half in itertools.product((-2, 0, 2), (1, 3)):
        effect = intervals.students(mean, half / 2, 1.0, 10, 9)
        turned = intervals.students(-mean, half / 2, 1.0, 10, 9)
        assert contrasts.below(effect) == contrasts.above(turned)
        assert contrasts.equivalent(1.0)(effect) == contrasts.equivalent(1.0)(turned)
