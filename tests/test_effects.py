import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats
from transfusion import effects, metrics, representations

from . import made_up
from .made_up import (
    LARGE,
    SEEDS,
    at_most_one_in_twenty,
    ends,
    failed,
    first_layers,
    performance,
    predicted,
    trained,
)

FINDINGS = ("edema", "effusion", "cardiomegaly", "consolidation")
SHIFTS = {
    ("cbr_tiny", "random"): 1.0,
    ("cbr_tiny", "transfer"): 1.1,
    (LARGE, "random"): 0.9,
    (LARGE, "transfer"): 1.3,
}


def said(findings=FINDINGS, **how):
    return made_up.scores({m: [s] * len(findings) for m, s in SHIFTS.items()}, findings, **how)


def films(findings=FINDINGS, **how):
    return made_up.collected(said(findings, **how))


def many_sizes(said):
    """After training on more images random init does better; the test images are the same."""
    parts = {}
    for i, n in enumerate((100, 200, 400)):
        more = 0.1 * i * said["target"] * (said.init == "random")
        score = (said["score"] + more).transpose(*said["score"].dims)
        parts[n] = made_up.collected(said.assign(score=score))
    return made_up.stacked(parts, "train_images").assign(patients=parts[100].patients)


def sizes(**how):
    return many_sizes(said(FINDINGS[:2], **how))


# --- differences in test AUC -----------------------------------------------------------------


def test_gains_are_paired_differences_in_points():
    results = performance([0.02, -0.03])
    table = effects.gains(results)
    by_hand = 100 * (results.test_auc[:, 1] - results.test_auc[:, 0]).mean("seed")
    np.testing.assert_allclose(table["gain"], by_hand)
    assert (table["n"] == SEEDS).all()
    np.testing.assert_allclose(table["transfer"] - table["random"], table["gain"])


def test_without_scores_the_interval_is_the_paired_one_of_t():
    results = performance([0.02, -0.03], noise=0.02)
    for model, row in effects.gains(results).iterrows():
        random, transfer = (100 * results.test_auc.sel(model=model, init=i) for i in effects.BOTH)
        expected = stats.ttest_rel(transfer, random).confidence_interval()
        assert ends(row) == pytest.approx(tuple(expected))


def with_patients_and_without(effect, results):
    with_, without = effect(results), effect(results.drop_vars("covariance"))
    return with_["high"] - with_["low"], without["high"] - without["low"]


@pytest.mark.parametrize("noise", [0.001, 0.1, 1.0])
def test_other_patients_never_make_an_interval_narrower(noise):
    results, many = films(noise=noise, images=60), sizes(noise=noise, images=60)
    for effect in (effects.gains, effects.keeping_up):
        wide, narrow = with_patients_and_without(effect, results)
        assert (wide > narrow).all()
    for effect in (effects.interactions, effects.slopes, effects.gains_by_size):
        wide, narrow = with_patients_and_without(effect, many)
        assert (wide > narrow).all()


OF_ONE_SIZE = [
    (effects.gains, "gain"),
    (effects.keeping_up, "difference"),
    (effects.finding_gains, "gain"),
    (effects.mean_finding_gains, "gain"),
    (effects.interactions, "difference"),
]
OF_FINDINGS = (effects.finding_gains, effects.mean_finding_gains)


def as_collected(effect, said):
    results = made_up.collected(said)
    return results.expand_dims(train_images=[100]) if effect is effects.interactions else results


@pytest.mark.parametrize(("effect", "name"), OF_ONE_SIZE)
def test_the_error_over_patients_is_that_of_the_effect_itself(effect, name):
    """That which leaving out one patient at a time gives (two images each)."""
    images = said(images=60, seeds=2)
    table = effect(as_collected(effect, images))
    left_out = [
        effect(as_collected(effect, images.isel(image=(images.patient != p).values)))[name]
        for p in np.unique(images.patient)
    ]
    values = np.array([part[table.index] for part in left_out])
    jackknife = (len(values) - 1) * values.var(0)
    found = [effects.as_interval(row, name).se ** 2 for _, row in table.iterrows()]
    np.testing.assert_allclose(found - table["sd"] ** 2 / table["n"], jackknife, rtol=0.15)


def test_the_slopes_error_over_patients_is_at_least_its_own():
    """Sizes count as if their patients were others, as no covariance of sizes is kept."""
    images = said(FINDINGS[:2], images=40, seeds=2)
    table = effects.slopes(many_sizes(images))
    left_out = [
        effects.slopes(many_sizes(images.isel(image=(images.patient != p).values)))["slope"]
        for p in np.unique(images.patient)
    ]
    jackknife = (len(left_out) - 1) * np.array(left_out).var(0)
    found = [effects.as_interval(row, "slope").se ** 2 for _, row in table.iterrows()]
    assert (found - table["sd"] ** 2 / table["n"] > jackknife).all()


@pytest.mark.parametrize(("effect", "name"), OF_ONE_SIZE)
@pytest.mark.parametrize("init", effects.BOTH)
def test_a_seed_with_a_failed_run_counts_in_no_pair(effect, name, init):
    images = said(images=60, seeds=4)
    left = effect(as_collected(effect, failed(images, model=LARGE, init=init, seed=1)))
    expected = effect(as_collected(effect, images.drop_sel(seed=1)))
    lost = left["n"] == 3
    assert lost.any() and lost.all() == (effect in (effects.interactions, OF_FINDINGS[1]))
    exact = [name, "sd", "n"]
    pd.testing.assert_frame_equal(left.loc[lost, exact], expected.loc[lost, exact])
    # The patients' part is of all seeds that an arm has.
    se = [
        [effects.as_interval(row, name).se for _, row in t[lost].iterrows()]
        for t in (left, expected)
    ]
    np.testing.assert_allclose(*se, rtol=0.1)


def test_an_arm_without_scores_is_compared_over_seeds_alone():
    results = films()
    plain = effects.gains(results.drop_vars("covariance"))
    none = results["covariance"].where(results.init != "transfer")
    pd.testing.assert_frame_equal(effects.gains(results.assign(covariance=none)), plain)


def test_too_few_patients_decide_nothing():
    images = said(noise=0, images=4)
    images["target"][:] = [0, 0, 0, 1]
    table = effects.gains(made_up.collected(images))
    assert np.isinf(table["high"]).all() and (table["verdict"] == "inconclusive").all()


def test_intervals_of_patients_decide_less_often_than_those_of_seeds_alone():
    """Networks whose scores differ by chance, in all seeds alike: there is no effect."""
    rng = np.random.default_rng(0)
    alone, both = [], []
    for i in range(120):
        images = made_up.scores({("net", "random"): [1.0], ("net", "transfer"): [1.0]},
                                images=50, seeds=3, seed=i)  # fmt: skip
        own = rng.normal(size=(1, 2, 1, 1, 50))  # of an init on an image, in every seed
        results = made_up.collected(images.assign(score=images["score"] + own))
        for found, one in ((alone, results.drop_vars("covariance")), (both, results)):
            row = effects.gains(one).iloc[0]
            found.append(metrics.decide_positive(effects.as_interval(row, "gain")).p)
    assert np.mean(np.array(alone) < 0.05) > 0.4
    assert stats.binomtest(int(np.sum(np.array(both) < 0.05)), 120, 0.05, "greater").pvalue > 0.01


@pytest.mark.parametrize(
    ("gain", "noise", "verdicts"),
    [
        (0.0, 0.001, ["holds", "holds"]),
        (0.05, 0.001, ["differs", "differs"]),
        (0.0, 0.05, ["inconclusive", "inconclusive"]),
    ],
)
def test_gains_come_out_with_each_verdict(gain, noise, verdicts):
    assert effects.gains(performance([gain, gain], noise))["verdict"].tolist() == verdicts


def test_the_clearest_effect_is_the_one_that_decides():
    results = performance([0.03, 0.05])
    results["test_auc"][1, 1] += 0.1 * (-1.0) ** np.arange(SEEDS)  # larger in mean, and undecided
    table = effects.gains(results)
    assert table["verdict"].tolist() == ["differs", "inconclusive"]
    assert effects.clearest(table).name == "cbr_tiny"
    with pytest.raises(ValueError, match="a table without rows"):
        effects.clearest(table.iloc[:0])


def test_keeping_up_is_not_being_worse():
    table = effects.keeping_up(performance([0.0, 0.05]))
    assert table.loc[("cbr_tiny", "random"), "verdict"] == "holds"
    assert table.loc[("cbr_tiny", "transfer"), "verdict"] == "differs"


def test_findings_are_told_apart_by_p_for_their_number():
    results = films()
    table = effects.finding_gains(results)
    assert list(table.index) == [(m, f) for m in results.model.values for f in FINDINGS]
    np.testing.assert_allclose(table["adjusted"], metrics.adjusted(table["p"].to_numpy()))
    auc = results["finding_auc"].sel(model=LARGE, finding="edema").mean("seed")
    by_hand = 100 * float(auc.sel(init="transfer") - auc.sel(init="random"))
    assert table.loc[(LARGE, "edema"), "gain"] == pytest.approx(by_hand)
    assert set(table.loc[LARGE, "verdict"]) == {"up"}


def test_the_sign_of_a_finding_is_the_papers():
    results = films((*FINDINGS, "atelectasis", "Pleural Effusion"))
    table = effects.mean_finding_gains(results)
    expected = ["holds", "holds", "differs", "differs", "holds"]  # all gain; two should lose
    assert table["verdict"].tolist() == expected and "atelectasis" not in table.index
    by_model = effects.finding_gains(results)["gain"].groupby("finding").mean()
    np.testing.assert_allclose(table["gain"], by_model[table.index])


def test_a_task_without_findings_has_no_gains_of_findings():
    for results in (performance([0, 0]), films(FINDINGS[:1])):
        for effect in OF_FINDINGS:
            assert effect(results).empty


def test_a_loose_relation_is_one_whose_interval_lies_within_a_half():
    rng = np.random.default_rng(0)
    verdicts = set()
    for n, mix in ((4, 0), (6, 3), (20, 0), (20, 0.5), (60, 0.3), (60, 1)):
        for _ in range(5):
            x = rng.normal(size=n)
            rho = metrics.rank_correlation(x, mix * x + rng.normal(size=n))
            found = effects.loose(rho)
            within = max(-rho.low, rho.high) < 0.5
            assert (found.verdict == "holds") == within
            assert (found.p < 0.05) == (found.verdict != "inconclusive")
            verdicts.add(found.verdict)
    assert verdicts == {"holds", "differs", "inconclusive"}


# --- under no effect -------------------------------------------------------------------------

STUDIES = 300


def many(rng, models, inits=("random", "transfer"), between=0.02, **dims):
    """Test AUC of networks that differ by chance alone."""
    coords = {"model": list(models), "init": list(inits), "seed": range(4), **dims}
    auc = 0.8 + between * rng.normal(size=[len(v) for v in coords.values()])
    return xr.Dataset({"test_auc": (tuple(coords), auc)}, coords)


def test_gains_at_the_margin_are_seldom_decided_and_none_seldom_called_a_difference(rng):
    results = many(rng, [f"net{i}" for i in range(STUDIES)])
    assert at_most_one_in_twenty(effects.gains(results)["verdict"] == "differs")
    at_margin = results.assign(test_auc=results.test_auc + 0.01 * (results.init == "transfer"))
    assert at_most_one_in_twenty(effects.gains(at_margin)["verdict"] != "inconclusive")


def test_interactions_of_nothing_are_seldom_decided(rng):
    results = many(rng, ["cbr_tiny", LARGE], train_images=range(100, 100 + STUDIES // 2))
    table = effects.interactions(results)
    assert len(table) == STUDIES // 2
    assert at_most_one_in_twenty(table["verdict"] != "inconclusive")


def learning(rng, studies):
    """Curves of random init and Mean Var alike, with a speed and a final AUC of each run."""
    step = np.arange(10, 410, 10)
    shape = (studies, 2, 4, 1)
    half, final = 60 * 2 ** (0.5 * rng.normal(size=shape)), 0.3 + 0.01 * rng.normal(size=shape)
    auc = 0.5 + final * (1 - np.exp(-step / half))
    coords = {"model": [f"net{i}" for i in range(studies)], "init": ["random", "mean_var"]}
    coords |= {"seed": range(4), "step": step}
    return xr.Dataset({"auc": (tuple(coords), auc)}, coords)


def test_speedups_of_nothing_are_seldom_decided(rng):
    table = effects.speedups(learning(rng, STUDIES // 2))
    assert len(table) == STUDIES // 2 and (table["never"] > 0).any() and (table["never"] == 0).any()
    assert at_most_one_in_twenty(table["verdict"] != "inconclusive")


# --- little data -----------------------------------------------------------------------------


def test_slopes_are_points_a_doubling():
    results = made_up.small_data({100: [0.04] * 3, 200: [0.03] * 3, 400: [0.02] * 3}, noise=0)
    np.testing.assert_allclose(effects.slopes(results)["slope"], -1, atol=1e-9)
    some = made_up.small_data({100: [0.04] * 3, 200: [0.5] * 3, 400: [0.02] * 3})
    some["test_auc"].loc[{"train_images": 200, "model": "cbr_tiny", "init": "transfer"}] = np.nan
    table = effects.slopes(some)
    assert table.loc["cbr_tiny", "slope"] == pytest.approx(-1) and len(table) == 3
    one_size = some.sel(train_images=[100])
    assert effects.slopes(one_size).empty


def test_interactions_are_differences_of_gains():
    results = made_up.small_data({100: [0.01, 0.02, 0.05], 400: [0, 0, 0]})
    table, gains = effects.interactions(results), effects.gains_by_size(results)["gain"]
    assert set(table.index) == {(m, n) for m in ("cbr_tiny", "cbr_small") for n in (100, 400)}
    for (model, size), row in table.iterrows():
        expected = gains[LARGE, size] - gains[model, size]
        assert row["difference"] == pytest.approx(expected)


def test_each_network_has_frozen_features_of_its_own():
    means = {("cbr_tiny", "transfer"): 0.8, ("cbr_tiny", "frozen:block5"): 0.75}
    means |= {(LARGE, "transfer"): 0.8, (LARGE, "frozen:block4"): 0.7}
    results = made_up.stacked({100: trained(means), 400: trained(means)}, "train_images")
    table = effects.fine_tuning(results)
    np.testing.assert_allclose(table["difference"], [5, 5, 10, 10])
    assert (
        list(table.index.get_level_values("init")) == ["frozen:block5"] * 2 + ["frozen:block4"] * 2
    )


# --- convergence -----------------------------------------------------------------------------


def curves(slow, fast, final=0.9):
    return made_up.curves({LARGE: {"random": slow, "mean_var": fast}}, final, noise=0)


def test_speedup_is_the_ratio_of_steps():
    row = effects.speedups(curves(300, 100)).iloc[0]
    assert row["level"] == pytest.approx(0.86) and row["never"] == 0
    assert row["speed-up"] == pytest.approx(3, rel=1e-6) and row["verdict"] == "holds"
    assert effects.speedups(curves(100, 300)).iloc[0]["verdict"] == "differs"


def test_no_speedup_where_nothing_was_learned():
    row = effects.speedups(curves(300, 100, final=0.52)).iloc[0]
    assert row["verdict"] == "inconclusive" and np.isnan(row["speed-up"])
    assert effects.ratio(row) == "no level to reach, no init learned"


def test_runs_that_never_arrive_are_counted():
    row = effects.speedups(curves(300, 5000)).iloc[0]
    assert row["never"] == SEEDS and row["verdict"] == "differs" and row["bound"] == "at most"
    assert effects.ratio(row) == f"at most {row['speed-up']:.1f} times (n = {SEEDS})"
    neither = made_up.curves({LARGE: {"random": 300, "transfer": 5000, "mean_var": 5000}}, noise=0)
    assert list(effects.speedups(neither)["never"]) == [SEEDS] * 2


def test_a_failed_run_is_not_one_that_never_arrives():
    row = effects.speedups(failed(curves(300, 100), init="mean_var", seed=0)).iloc[0]
    assert (row["never"], row["bound"], row["n"]) == (0, "", SEEDS - 1)
    left = effects.speedups(curves(300, 100).drop_sel(seed=0)).iloc[0]
    assert ends(row) == pytest.approx(ends(left))


def test_the_level_is_that_of_transfer_where_random_init_did_not_learn():
    means = {(LARGE, "random"): 0.52, (LARGE, "transfer"): 0.9}
    assert effects.level(trained(means, noise=0), LARGE) == pytest.approx(0.86)
    means[LARGE, "random"] = 0.8
    assert effects.level(trained(means, noise=0), LARGE) == pytest.approx(0.77)


def test_variants_of_different_lengths_are_each_measured_on_their_own():
    short = curves(100, 50).isel(step=slice(0, 20))
    results = made_up.stacked({"long": curves(300, 100), "short": short}, "variant")
    table = effects.speedups_by_variant(results)
    assert table.loc[(LARGE, "long"), "speed-up"] == pytest.approx(3, rel=1e-6)
    assert table.loc[(LARGE, "short"), "speed-up"] == pytest.approx(2, rel=1e-6)


# --- transfusion and hybrids -----------------------------------------------------------------


def test_each_block_adds_to_those_below_it():
    results = made_up.blockwise([[0.06, 0.02, 0.01], [0.03, 0.02, 0.01]], suffix=0.02, noise=0)
    added = effects.marginal(results)["added"]
    np.testing.assert_allclose(added, [6, 2, 1, 3, 2, 1])
    np.testing.assert_allclose(effects.first_block(results)["difference"], [4, 5, 1, 2])
    np.testing.assert_allclose(effects.low_against_many(results)["difference"], [4, 1])


def test_a_network_without_cuts_adds_everything_at_once():
    means = {("cbr_tiny", "random"): 0.7, ("cbr_tiny", "transfer"): 0.75}
    means |= {(LARGE, "random"): 0.7, (LARGE, "transfer"): 0.8, (LARGE, "transfusion:conv1"): 0.77}
    results = trained(means, noise=0)
    assert effects.prefixes(results.sel(model="cbr_tiny")) == ["random", "transfer"]
    assert effects.marginal(results)["added"].tolist() == pytest.approx([5, 7, 3])
    assert list(effects.first_block(results).index) == [(LARGE, "transfer")]
    assert effects.low_against_many(results).empty  # no block alone


def test_slim_and_gabors_are_set_against_each_of_the_others():
    results = made_up.hybrids((0.02, 0.01, 0.05), gabor=(0.03, 0.04), noise=0)
    np.testing.assert_allclose(effects.slim(results)["difference"], [-2, -1, 5])
    table = effects.synthetic_gabors(results)
    np.testing.assert_allclose(table.loc["cbr_tiny", "difference"], [-3, 2, 7])
    np.testing.assert_allclose(table.loc[LARGE, "difference"], [-4, 1, 6])
    decided = ["differs", "holds", "holds"]
    assert table["verdict"].tolist() == 2 * decided


# --- other conditions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([["holds", "holds"], ["differs", "differs"]], "holds"),
        ([["holds", "differs"], ["differs", "differs"]], "differs"),
        ([["holds", "differs"], ["inconclusive", "differs"]], "differs"),
        ([["holds", "inconclusive"], ["differs", "differs"]], "inconclusive"),
        ([["holds"], ["holds"]], "inconclusive"),  # one variant is no test
        ([], "inconclusive"),
    ],
)
def test_an_answer_is_stable_where_all_variants_give_it(verdicts, expected):
    rows = [
        {"model": f"net{i}", "variant": j, "verdict": verdict}
        for i, of_model in enumerate(verdicts)
        for j, verdict in enumerate(of_model)
    ]
    table = pd.DataFrame(rows, columns=["model", "variant", "verdict"])
    found = effects.stable(table.set_index(["model", "variant"]))
    assert found.verdict == expected and np.isnan(found.p)


# --- what is missing -------------------------------------------------------------------------

OF_RUNS = {
    "gain": (effects.gains, lambda: performance([0, 0.05])),
    "sizes": (effects.gains_by_size, lambda: made_up.small_data({100: [0] * 3, 400: [0] * 3})),
    "keeping up": (effects.keeping_up, lambda: performance([0, 0.05])),
    "findings": (effects.finding_gains, lambda: films(images=20)),
    "mean findings": (effects.mean_finding_gains, lambda: films(images=20)),
    "interactions": (effects.interactions, lambda: made_up.small_data({100: [0] * 3})),
    "slopes": (effects.slopes, lambda: made_up.small_data({100: [0] * 3, 400: [0] * 3})),
    "fine tuning": (effects.fine_tuning, lambda: made_up.frozen([[0, 0], [0, 0]])),
    "speed-ups": (effects.speedups, lambda: made_up.two((300, 100), (300, 100))),
    "variants": (effects.variants, lambda: trained({("a", "mean_var"): 0.8,
                                                    ("a", "batch_norm"): 0.7})),
    "marginal": (effects.marginal, lambda: made_up.blockwise([[0.01, 0.02, 0.03]] * 2)),
    "first block": (effects.first_block, lambda: made_up.blockwise([[0.01, 0.02, 0.03]] * 2)),
    "low, many": (effects.low_against_many, lambda: made_up.blockwise([[0.01, 0.02, 0.03]] * 2)),
    "slim": (effects.slim, made_up.hybrids),
    "synthetic": (effects.synthetic_gabors, made_up.hybrids),
    "gains, variants": (effects.gains_by_variant, lambda: made_up.robustness({"a": [0, 0.05]})),
    "speed, variants": (effects.speedups_by_variant,
                        lambda: made_up.stacked({"a": curves(300, 100)}, "variant")),
    "movements": (representations.movements,
                  lambda: first_layers(np.ones((2, 2)), np.zeros((2, 2, 2)))),
    "further": (representations.further,
                lambda: first_layers(np.ones((2, 2)), np.zeros((2, 2, 2)))),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_RUNS)
def test_arms_that_never_ran_have_no_rows_and_one_seed_decides_nothing(name):
    effect, make = OF_RUNS[name]
    results = make()
    whole = effect(results)
    assert len(whole) and whole["n"].min() > 1
    one = effect(results.isel(seed=[0]))
    assert list(one.index) == list(whole.index)
    assert set(one.get("verdict", ["inconclusive"])) == {"inconclusive"}
    arm = {"init": results.init.values[-1]}
    rest = effect(failed(results, **arm))
    assert (rest["n"] > 0).all() and not rest[["low", "high", "n"]].isna().any(axis=None)
    # Never asked for is as never done.
    absent = effect(results.drop_sel(**arm))
    pd.testing.assert_frame_equal(absent, rest, check_dtype=False)
    nothing = effect(failed(results))
    assert nothing.empty and list(nothing.index.names) == list(whole.index.names)
    assert {"low", "high", "n"} <= set(nothing)


def test_without_a_large_network_there_is_nothing_to_set_others_against():
    small = performance([0, 0], models=("cbr_tiny", "cbr_small"))
    assert effects.keeping_up(small).empty and len(effects.gains(small)) == 2
    data = made_up.small_data({100: [0] * 3, 400: [0] * 3}).drop_sel(model=LARGE)
    assert effects.interactions(data).empty and len(effects.slopes(data)) == 2
    layers = first_layers(np.ones((2, 2)), np.zeros((2, 2, 2))).drop_sel(model=LARGE)
    assert representations.further(layers).empty and len(representations.movements(layers)) == 2
    pairs = predicted([[1, 0], [1, 0]]).drop_sel(model=LARGE)
    found = representations.foretold_decision(representations.foretold(pairs))
    assert found.verdict == "inconclusive" and np.isnan(found.p)


# --- effects as rows -------------------------------------------------------------------------


def test_a_row_gives_back_its_interval():
    effect = metrics.interval(np.array([1.0, 2.0, 4.0]))
    row = pd.Series(effects.effect_row("gain", effect, effects.equivalent))
    assert effects.as_interval(row, "gain") == effect
    assert (row["verdict"], row["p"]) == tuple(effects.equivalent(effect))


def rows(*decided):
    return pd.DataFrame(decided, columns=["verdict", "p"])


@pytest.mark.parametrize(
    ("decided", "verdict", "p"),
    [
        ([("holds", 0.01), ("holds", 0.03)], "holds", 0.03),  # all together
        ([("holds", 0.01), ("differs", 0.001)], "holds in part", 0.02),  # any of two
        ([("differs", 0.01), ("inconclusive", 0.3), ("inconclusive", 0.2)], "differs", 0.03),
        ([("inconclusive", 0.3), ("inconclusive", 0.8)], "inconclusive", 0.6),
        ([("inconclusive", 0.8)] * 3, "inconclusive", 1.0),
    ],
)
def test_one_p_for_a_claim_on_all_rows(decided, verdict, p):
    found = effects.overall(rows(*decided))
    assert found.verdict == verdict and found.p == pytest.approx(p)


def test_no_rows_decide_nothing():
    found = effects.overall(rows())
    assert found.verdict == "inconclusive" and np.isnan(found.p)


def test_a_number_never_travels_alone():
    assert effects.spread(0.44, -0.12, 1, 4, unit=" points") == "+0.4 points [-0.1, +1.0] (n = 4)"
    assert effects.spread(-0.04, -0.12, 0.04, 4) == "+0.0 [-0.1, +0.0] (n = 4)"
    assert effects.ratio(effects.speedups(curves(300, 100)).iloc[0]) == (
        f"3.0 times [3.0, 3.0] (n = {SEEDS})"
    )


def test_inception_is_not_a_small_network():
    models = ("cbr_tiny", "inception_v3", "resnet50")
    rows = effects.keeping_up(performance(0.0, models=models)).index.get_level_values("model")
    assert set(rows) == {"cbr_tiny"}


def test_the_best_rate_is_that_of_the_best_validation_auc():
    slow = trained({("cbr_tiny", "random"): 0.7, ("cbr_tiny", "transfer"): 0.9})
    fast = trained({("cbr_tiny", "random"): 0.8, ("cbr_tiny", "transfer"): 0.6})
    both = xr.concat([slow, fast], "lr").assign_coords(lr=[0.001, 0.01])
    assert effects.best_rates(both) == {"cbr_tiny random": 0.01, "cbr_tiny transfer": 0.001}
