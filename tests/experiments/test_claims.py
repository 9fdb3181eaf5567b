import json

import numpy as np
import pytest
from scipy import stats
from transfusion import pages
from transfusion.experiments import accuracy, claims, deciding, features, filters, learning, paper
from transfusion.experiments.claims import CLAIMS
from transfusion.experiments.deciding import Claim, Finding
from transfusion.pages import verdicts
from transfusion.statistics import contrasts, intervals
from transfusion.studies import collected

from .. import made_up
from ..made_up import FALLING, LARGE, LEVEL, MODELS, STAYING, at_rates, ignorant

FINDINGS = ("edema", "effusion", "cardiomegaly", "consolidation")
LOW, HIGH = [0.9, 0.9, 0.6, 0.6], [0.6, 0.6, 0.9, 0.9]  # similarity to the start, by block


@pytest.fixture
def all_learned(monkeypatch):
    made_up.taught(monkeypatch)


def said(gains, noise=0.1, images=40):
    """Two networks that gain so much on each finding, in deviations of a positive's score."""
    shifts = {(m, "random"): [1.0] * 4 for m in ("cbr_tiny", LARGE)}
    shifts |= {(m, "transfer"): [1 + g for g in gains] for m in ("cbr_tiny", LARGE)}
    return made_up.scores(shifts, FINDINGS, noise, images)


def films(gains, noise=0.1):
    return made_up.collected(said(gains, noise))


def gabors(random, transfer, noise=0.01):
    """Shares of Gabors of a small network, before and after, by init."""
    return made_up.first_layers(np.full((2, 2), 0.1), [[random, transfer], [[0, 0], [0.8, 0.8]]],
                                noise)  # fmt: skip


def moved(small, large, noise=0.1):
    return made_up.first_layers([small, large], np.zeros((2, 2, 2)), noise)


V = (np.abs(np.arange(20) - 9.5) / 100 + 0.7).tolist()  # no rank correlation
LOOSER = [0.7 + 0.01 * x for x in (5, 0, 9, 2, 7, 1, 12, 4, 3, 10, 6, 16, 8, 19, 11, 13, 17, 0.5,
                                   1.5, 2.5)]  # fmt: skip

# What must be true for a claim to come out so; it is not testable where nothing has learned.
CASES = {
    "transfer": {
        "holds": lambda: made_up.performance([0, 0]),
        "differs": lambda: made_up.performance([0.05, 0.02]),
        "inconclusive": lambda: made_up.performance([0, 0], noise=0.05),
    },
    "small_networks": {
        "holds": lambda: made_up.keeping_up(0, 0.05),
        "differs": lambda: made_up.keeping_up(-0.05, -0.05),
        "inconclusive": lambda: made_up.keeping_up(0, 0, noise=0.05),
    },
    "source_accuracy": {
        "holds": lambda: made_up.sources(V),
        "differs": lambda: made_up.sources([0.7 + 0.01 * i for i in range(20)]),
        "inconclusive": lambda: made_up.sources(LOOSER),
    },
    "findings": {
        "holds": lambda: films([1, 1, -1, -1]),
        "differs": lambda: films([-1, -1, 1, 1]),
        "inconclusive": lambda: films([1, 1, 1, 1]),
    },
    "little_data": {
        "holds": lambda: made_up.small_data({100: [0, 0, 0.05], 400: [0.05, 0, 0]}),
        "differs": lambda: made_up.small_data({100: [0.05, 0.05, 0], 400: [0, 0, 0.05]}),
        "inconclusive": lambda: made_up.small_data({100: [0, 0, 0], 400: [0, 0, 0]}, 0.02),
    },
    "shrinking": {
        "holds": lambda: made_up.small_data({100: [0.04] * 3, 200: [0.02] * 3}),
        "differs": lambda: made_up.small_data({100: [0] * 3, 400: [0.04] * 3}),
        "inconclusive": lambda: made_up.small_data({100: [0] * 3, 400: [0] * 3}, 0.02),
    },
    "frozen_features": {
        "holds": lambda: made_up.frozen([0.05, 0.03]),
        "differs": lambda: made_up.frozen([-0.05, -0.03]),
        "inconclusive": lambda: made_up.frozen([0, 0], noise=0.05),
    },
    "representations": {
        "holds": lambda: made_up.similarity([0, 0.05]),
        "differs": lambda: made_up.similarity([0.05, -0.05]),
        "inconclusive": lambda: made_up.similarity([0, 0.05], before=[0, 0.05]),
    },
    "size": {
        "holds": lambda: made_up.changed([FALLING, FALLING, STAYING], [LEVEL] * 3, 0.01),
        "differs": lambda: made_up.changed([STAYING, STAYING, FALLING], [LEVEL] * 3, 0.01),
        "inconclusive": lambda: made_up.changed([LEVEL] * 3, [LEVEL] * 3, 0.01),
    },
    "low_reuse": {
        "holds": lambda: made_up.changed([LEVEL] * 2, [LOW] * 2, 0.005),
        "differs": lambda: made_up.changed([LEVEL] * 2, [HIGH] * 2, 0.005),
        "inconclusive": lambda: made_up.changed([LEVEL] * 2, [LOW, HIGH], 0.005),
    },
    "foretelling": {
        "holds": lambda: made_up.predicted([[0, 0], [1, 0]]),
        "differs": lambda: made_up.predicted([[1, 1], [0, 1]]),
        "inconclusive": lambda: made_up.predicted([[0, 0], [0, 0]]),
    },
    "moving": {
        "holds": lambda: moved([0.1, 0.05], [0.01, 0.01]),
        "differs": lambda: moved([0.01, 0.01], [0.1, 0.05]),
        "inconclusive": lambda: moved([0.1, 0.1], [0.1, 0.1]),
    },
    "gabor_filters": {
        "holds": lambda: gabors([0, 0], [0.5, 0.25]),
        "differs": lambda: gabors([0, 0.5], [0.2, 0.5]),
        "inconclusive": lambda: gabors([0, 0], [0.2, 0.5]),
    },
    "scaling": {
        "holds": lambda: made_up.two((300, 100), (300, 100)),
        "differs": lambda: made_up.two((100, 300), (100, 300)),
        "inconclusive": lambda: made_up.two((300, 5000), (300, 100)),
    },
    "scale_alone": {
        "holds": lambda: made_up.ahead(0.05, 0.05),
        "differs": lambda: made_up.ahead(-0.05, -0.05),
        "inconclusive": lambda: made_up.ahead(0.05, -0.05),
    },
    "first_layer_most": {
        "holds": lambda: made_up.blockwise([[0.06, 0.02, 0.02]] * 2),
        "differs": lambda: made_up.blockwise([[0.02, 0.06, 0.06]] * 2),
        "inconclusive": lambda: made_up.blockwise([[0.03, 0.03, 0.03]] * 2, noise=0.02),
    },
    "low_layers": {
        "holds": lambda: made_up.blockwise([[0.06, 0, 0]] * 2, suffix=0.02),
        "differs": lambda: made_up.blockwise([[0.06, 0, 0]] * 2, suffix=0.1),
        "inconclusive": lambda: made_up.blockwise([[0.06, 0, 0]] * 2, suffix=0.06),
    },
    "slim_tops": {
        "holds": lambda: made_up.hybrids(),
        "differs": lambda: made_up.hybrids((0.05, 0, 0.05)),
        "inconclusive": lambda: made_up.hybrids((0, 0, 0), noise=0.05),
    },
    "made_gabors": {
        "holds": lambda: made_up.hybrids(),
        "differs": lambda: made_up.hybrids(gabor=(0.05, 0.05)),
        "inconclusive": lambda: made_up.hybrids(noise=0.05),
    },
    "small_in_size_alone": {
        "holds": lambda: made_up.efficiency({"cbr_tiny": (1, 30), "cbr_small": (2, 150)}),
        "differs": lambda: made_up.efficiency({"cbr_tiny": (1, 30), "narrow": (10, 60)}),
    },
    "any_recipe": {
        "holds": lambda: made_up.robustness({"own": [0, 0.05], "slow": [0, 0.05]}),
        "differs": lambda: made_up.robustness({"own": [0, 0.05], "slow": [0, 0]}),
        "inconclusive": lambda: made_up.robustness({"own": [0, 0], "slow": [0, 0]}, 0.05),
    },
}
COUNTED = "parameters and operations are counted"
OUT_OF_REACH = {
    ("small_in_size_alone", "inconclusive"): COUNTED,
    ("small_in_size_alone", "not testable"): COUNTED,
}
TUNED = ("transfer", "small_networks", "source_accuracy", "findings", "little_data", "shrinking",
         "frozen_features", "small_in_size_alone", "any_recipe")  # fmt: skip
AT_EQUAL_RATES = [name for name in CLAIMS if name not in TUNED]


def case(name, verdict):
    if verdict == "not testable":
        return ignorant(CASES[name]["holds"]())
    return CASES[name][verdict]()


@pytest.mark.parametrize("verdict", intervals.VERDICTS)
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_comes_out_with_each_verdict(name, verdict):
    if (name, verdict) in OUT_OF_REACH:
        assert verdict not in CASES[name]
        return
    found = claims.decide(name, case(name, verdict))
    assert found.verdict == verdict
    decided = verdict in ("holds", "differs")
    assert np.isnan(found.p) or (found.p < intervals.LEVEL) == decided
    assert "nan" not in found.found + found.beside


# --- what is made of chance ------------------------------------------------------------------


def inits(*labels):
    return lambda results, rng: made_up.exchanged(results, "init", labels, rng)


def models(*labels, over="seed"):
    return lambda results, rng: made_up.exchanged(results, "model", labels, rng, over)


def states(results, rng):
    return made_up.exchanged(results, "state", ["initial", "final"], rng)


def foretold_anew(results, rng):
    """Models and blocks exchanged, for each pair of networks in both states."""
    shares = results["explained"].values.reshape(4, 2, -1, results.sizes["neuron"])
    order = rng.permuted(np.tile(np.arange(4), (shares.shape[2], 1)), axis=1).T
    dealt = shares[order, :, np.arange(shares.shape[2])].transpose(0, 2, 1, 3)
    return results.assign(
        explained=(results["explained"].dims, dealt.reshape(results["explained"].shape))
    )


def blocks_anew(results, rng):
    """What each further block adds, exchanged."""
    path = learning.prefixes(results, "cbr_tiny")
    auc = results["auc"].sel(init=path)
    added = auc.diff("init").transpose("model", "fold", "seed", "step", "init")
    order = rng.permuted(np.tile(np.arange(3), (*added.shape[:3], 1, 1)), axis=-1)
    dealt = added.copy(data=np.take_along_axis(added.values, order, axis=-1))
    fresh = auc.sel(init="random") + dealt.cumsum("init")
    return results.assign(auc=fresh.combine_first(results["auc"]))


def frozen_anew(results, rng):
    """Fine-tuned and frozen features exchanged."""
    frozen = results["probe_auc"].sel(probe="transfer", drop=True)
    tuned = results["test_auc"]
    turned = rng.choice([-1, 1], tuned.shape) * (results.init == "transfer").values[:, None, None]
    return results.assign(test_auc=(frozen + turned * (tuned - frozen)).transpose(*tuned.dims))


# Of a claim of a difference what decides it, the labels that it is about, and how these are dealt
# anew.
BY_CHANCE = {
    "findings": (accuracy.findings, lambda r, rng: made_up.collected(
        inits("random", "transfer")(r, rng))),
    "little_data": (accuracy.little_data, inits("random", "transfer")),
    "shrinking": (accuracy.shrinking, inits("random", "transfer")),
    "frozen_features": (accuracy.fine_tuning, frozen_anew),
    "representations": (features.other_features, made_up.relabelled),
    "size": (features.larger_keeps_more, models(*MODELS, over="pair")),
    "low_reuse": (features.low_reuse, made_up.relabelled),
    "foretelling": (features.foretelling, foretold_anew),
    "moving": (filters.moving, models("cbr_small", LARGE)),
    "gabor_filters": (lambda r: filters.gabor_changes(r, "transfer"), states),
    "scaling": (learning.scaling, inits("random", "mean_var")),
    "scale_alone": (learning.scale_alone, inits("mean_var", "batch_norm")),
    "first_layer_most": (learning.first_block, blocks_anew),
    "low_layers": (learning.low_against_many, inits("transfusion:conv1", "suffix:block1")),
}  # fmt: skip
# A claim of no difference, and truths at twice its margin.
TWICE = {
    "transfer": lambda: made_up.performance([0.02, 0.02]),
    "small_networks": lambda: made_up.keeping_up(-0.02, -0.02),
    "source_accuracy": lambda: made_up.sources([0.7 + 0.01 * i for i in range(20)]),
    "gabor_filters": lambda: gabors([0.2, 0.3], [0.5, 0.25]),
    "slim_tops": lambda: made_up.hybrids((0.02, 0.02, 0.05)),
    "made_gabors": lambda: made_up.hybrids(gabor=(0.02, 0.02)),
    "any_recipe": lambda: made_up.robustness({"own": [0, 0], "slow": [0.02, 0.02]}),
}


def test_every_claim_is_of_a_difference_or_of_none():
    assert {*BY_CHANCE, *TWICE, "small_in_size_alone"} == set(CLAIMS)


@pytest.mark.parametrize("name", BY_CHANCE)
def test_what_chance_has_dealt_does_not_hold(name, rng, all_learned):
    measure, deal = BY_CHANCE[name]
    results = said([1, 1, -1, -1], images=20) if name == "findings" else CASES[name]["holds"]()
    if name == "representations":
        results = made_up.similarity([0, 0.05], before=[0.05, 0])
    times = 12 if "pair" in results.dims else 20  # comparisons take longer
    dealt = [contrasts.decision(measure(deal(results, rng))).verdict for _ in range(times)]
    assert made_up.at_most_one_in_twenty([verdict == "holds" for verdict in dealt])
    assert "inconclusive" in dealt


@pytest.mark.parametrize("name", TWICE)
def test_no_difference_is_not_claimed_at_twice_the_margin(name, all_learned):
    assert claims.decide(name, TWICE[name]()).verdict != "holds"


# --- equal rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", AT_EQUAL_RATES)
def test_a_claim_at_equal_rates_is_decided_where_both_agree(name, all_learned):
    holds, differs = (CASES[name][verdict]() for verdict in ("holds", "differs"))
    one = claims.decide(name, holds)
    both = claims.decide(name, at_rates(holds, holds))
    assert (both.verdict, both.p) == ("holds", one.p)
    assert both.found.count("at 0.0003: ") == both.found.count("at 0.001: ") == 1
    opposed = claims.decide(name, at_rates(holds, differs))
    assert (opposed.verdict, opposed.p) == ("inconclusive", 1)


def test_of_equal_rates_p_is_the_largest(all_learned):
    results = [made_up.performance([0, 0], noise) for noise in (0.001, 0.005, 0.03)]
    verdicts = [claims.decide("transfer", r) for r in results]
    assert [v.verdict for v in verdicts] == ["holds", "holds", "inconclusive"]
    for chosen, verdict in (([0, 1], "holds"), ([0, 1, 2], "inconclusive")):
        found = claims.decide("transfer", at_rates(*(results[i] for i in chosen)))
        assert found.p == max(verdicts[i].p for i in chosen) and found.verdict == verdict


def test_networks_that_learned_at_one_rate_alone_do_not_decide():
    holds = CASES["scale_alone"]["holds"]()
    results = at_rates(holds, holds)
    lost = results["test_auc"].where(results.lr != 0.001, 0.5).transpose(*results["test_auc"].dims)
    found = claims.decide("scale_alone", results.assign(test_auc=lost))
    assert (found.verdict, found.p) == ("inconclusive", 1)
    neither = claims.decide("scale_alone", ignorant(results))
    assert neither == Finding("not testable", 1, deciding.NOT_LEARNED)
    one = claims.decide("scale_alone", results.isel(lr=[0]))
    assert one.verdict == "holds" and "0.0003" not in one.found


# --- what is missing -------------------------------------------------------------------------


def first_run(results):
    if "pair" in results.dims:
        return results.isel(pair=((results.seed_a == "0") & (results.seed_b == "0")).values)
    return results.isel(fold=[0], seed=[0])


def none_done(results):
    over = "pair" if "pair" in results.dims else "seed"
    lost = [n for n in results.data_vars if over in results[n].dims]
    return results.assign({n: results[n] * np.nan for n in lost})


def from_random_alone(results):
    if "pair" in results.dims:
        return results.isel(
            pair=((results.init_a == "random") & (results.init_b == "random")).values
        )
    return results.sel(init=["random"])


NEEDS_LARGE = ("small_networks", "little_data", "representations", "size", "foretelling", "moving",
               "slim_tops", "small_in_size_alone")  # fmt: skip
NEEDS_OTHER = [
    n
    for n in CLAIMS
    if n not in ("small_networks", "size", "foretelling", "moving", "small_in_size_alone")
]
ESTIMATED = [n for n in CLAIMS if n not in ("source_accuracy", "small_in_size_alone")]


@pytest.mark.parametrize("name", ESTIMATED)
def test_one_run_decides_nothing(name, all_learned):
    found = claims.decide(name, first_run(CASES[name]["holds"]()))
    assert found.verdict == "inconclusive" and (np.isnan(found.p) or found.p == 1)


@pytest.mark.parametrize("name", [*ESTIMATED, "source_accuracy"])
def test_nothing_is_said_where_every_run_failed(name, all_learned):
    found = claims.decide(name, none_done(CASES[name]["holds"]()))
    assert found is deciding.NOTHING or name == "source_accuracy"
    assert found.verdict in ("inconclusive", "not testable")


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("lack", ["model", "inits"])
def test_a_claim_can_do_without_some_arms(name, lack, all_learned):
    results = CASES[name]["holds"]()
    left = results.drop_sel(model=LARGE, errors="ignore")
    found = claims.decide(name, left if lack == "model" else from_random_alone(results))
    assert found.verdict in intervals.VERDICTS and "nan" not in found.found
    needs = NEEDS_LARGE if lack == "model" else NEEDS_OTHER
    assert (found is deciding.NOTHING) == (name in needs) or name == "source_accuracy"


@pytest.mark.parametrize("name", ESTIMATED)
def test_one_failed_run_decides_no_other_way(name, all_learned):
    results = CASES[name]["holds"]()
    if "pair" in results.dims:
        lost = (results.init_a == "random") & (results.seed_a == "2")
        lost |= (results.init_b == "random") & (results.seed_b == "2")
        names = [n for n in results.data_vars if "pair" in results[n].dims]
        left = results.assign({n: results[n].where(~lost) for n in names})
    else:
        left = made_up.failed(results, model=LARGE, init="random", fold=2, seed=1)
    found = claims.decide(name, left)
    assert found.verdict == "holds" and "nan" not in found.found


# --- what is said ----------------------------------------------------------------------------


def test_a_claim_tells_the_number_that_decides_and_how_many_rows_are_for_it():
    found = claims.decide("transfer", made_up.performance([0, 0.05]))
    assert found.found == "+2.50 points [+2.40, +2.60] (n = 10, 150 patients)"
    assert found.beside.startswith("for 1, against 1 of 2; without the fold that chose the rates ")
    assert found.beside.endswith("(n = 8, 120 patients)")
    one = claims.decide("slim_tops", CASES["slim_tops"]["holds"]())
    assert one.beside == ""


def test_the_fold_that_chose_the_rates_is_named_only_where_it_chose():
    assert "without the fold" not in claims.decide("scale_alone", made_up.ahead(0, 0)).beside
    one = made_up.performance([0, 0], folds=1)
    assert "without the fold" not in claims.decide("transfer", one).beside


def test_speed_is_told_as_a_ratio_beside_the_doublings():
    found = claims.decide("scaling", made_up.two((300, 100), (300, 150), noise=0))
    assert found.found == "+1.292 doublings of speed [+1.292, +1.292] (n = 10)"
    assert "CBR-Tiny 3.0 times" in found.beside and "ResNet-50 2.0 times" in found.beside


def test_a_correlation_of_few_networks_is_not_asked_for(all_learned):
    found = claims.decide("source_accuracy", made_up.sources(V[:15]))
    assert found.verdict == "not testable" and found.found.startswith("15 networks of one source")
    rho = stats.spearmanr(range(20), LOOSER).statistic
    looser = claims.decide("source_accuracy", made_up.sources(LOOSER))
    assert f"{rho:+.2f} [" in looser.found


def test_recipes_must_all_agree(all_learned):
    own = {"own": [0.0, 0.0]}
    alike = made_up.robustness(own | {"slow": [0, 0], "wide": [0, 0]})
    found = claims.decide("any_recipe", alike)
    assert found.verdict == "holds" and "slow +0.00 points" in found.found
    one = claims.decide(
        "any_recipe", made_up.robustness(own | {"slow": [0, 0], "wide": [0.05] * 2})
    )
    assert (one.verdict, one.p) == ("inconclusive", 1)


def test_an_unknown_claim_is_named():
    with pytest.raises(ValueError, match="unknown claim 'transfr'.*Did you mean 'transfer'"):
        claims.decide("transfr", made_up.performance([0, 0]))


# --- the paper's numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_what_the_paper_says_is_of_numbers_that_a_source_confirms(name, monkeypatch):
    said = CLAIMS[name].paper()
    assert said
    every = paper.numbers

    def confirmed(*place):
        rows = every(*place)
        return rows[rows["confidence"] != "unconfirmed"]

    monkeypatch.setattr(paper, "numbers", confirmed)
    assert CLAIMS[name].paper() == said


# --- all claims together ---------------------------------------------------------------------


@pytest.fixture
def study(monkeypatch):
    """`study(claim=(verdict, p), ...)`: the table of made-up claims, each with a chapter of its
    own; None has no collected results, and names that begin with `e_` are exploratory."""

    def open_(study, chapter):
        if chapter == "None":
            raise FileNotFoundError(chapter)

    def table(asked=(), **found):
        monkeypatch.setattr(collected, "results", open_)
        monkeypatch.setattr(verdicts, "_chapters", lambda study: [*asked])
        made = {
            name: Claim(
                str(result), name, str, lambda _, result=result: result, name.startswith("e_")
            )
            for name, result in found.items()
        }
        monkeypatch.setattr(claims, "CLAIMS", made)
        monkeypatch.setattr(contrasts, "rates", lambda results: {None: results})
        return pages.all_verdicts("any")

    return table


def found(verdict, p):
    return Finding(verdict, p, "so much")


def test_a_lone_chance_find_among_many_claims_is_none(study):
    nulls = {f"null{i}": found("inconclusive", 0.1 + 0.08 * i) for i in range(10)}
    table = study(lone=found("differs", 0.04), **nulls)
    assert (table["verdict"] == "inconclusive").all()
    assert table.loc["lone", "alone"] == "differs" and table.loc["lone", "adjusted"] > 0.05
    assert table.loc["lone", "found"] == "so much"
    by_itself = study(lone=found("differs", 0.04)).loc["lone"]
    assert (by_itself["verdict"], by_itself["adjusted"]) == ("differs", 0.04)
    many = study(**{f"real{i}": found("holds", 0.04) for i in range(10)})
    assert (many["verdict"] == "holds").all()


def test_each_family_is_corrected_by_itself(study, rng):
    p = rng.uniform(0, 0.2, 12)
    names = [f"c{i}" if i < 7 else f"e_{i}" for i in range(12)]
    table = study(**{n: found("holds" if x < 0.05 else "inconclusive", x)
                     for n, x in zip(names, p, strict=True)})  # fmt: skip
    for family in (slice(0, 7), slice(7, 12)):
        expected = stats.false_discovery_control(p[family])
        np.testing.assert_allclose(table["adjusted"].iloc[family], expected)
    assert ((table["verdict"] == "holds") == (table["adjusted"] < 0.05)).all()


def test_what_is_not_testable_counts_and_stays_so(study):
    lost = {f"lost{i}": found("not testable", 1.0) for i in range(3)}
    table = study(lone=found("holds", 0.02), **lost)
    assert table.loc["lone", "adjusted"] == pytest.approx(0.08)
    assert table["verdict"].tolist() == ["inconclusive", *["not testable"] * 3]
    assert (table["alone"].iloc[1:] == "not testable").all()


def test_what_is_still_to_come_counts_as_if_nothing_were_found(study):
    one = {"one": found("holds", 0.02), "none": None}
    assert study(**one).loc["one", "adjusted"] == 0.02  # no such chapter in the study
    table = study(asked=["None"], **one)
    assert list(table.index) == ["one"] and table.loc["one", "adjusted"] == pytest.approx(0.04)


def test_what_is_counted_is_not_a_test_among_others(study):
    counted = {f"counted{i}": found("holds", np.nan) for i in range(20)}
    table = study(lone=found("differs", 0.04), **counted)
    assert (table["verdict"] == table["alone"]).all()
    assert table.loc["lone", "adjusted"] == 0.04 and np.isnan(table.loc["counted0", "adjusted"])


def test_claims_that_nothing_speaks_to_are_absent(study):
    table = study(one=found("holds", 0.01), none=None, nothing=deciding.NOTHING)
    assert list(table.index) == ["one"]
    empty = study(none=None)
    assert len(empty) == 0 and {"verdict", "p", "found", "adjusted", "alone"} <= set(empty)


def test_the_table_of_a_study_decides_each_claim_by_its_chapter(monkeypatch, all_learned):
    chapters = {
        "performance": CASES["transfer"]["holds"](),
        "weight_scaling": CASES["scaling"]["holds"](),
        "efficiency": CASES["small_in_size_alone"]["holds"](),
    }

    def open_(study, chapter):
        if chapter not in chapters:
            raise FileNotFoundError(chapter)
        return chapters[chapter]

    monkeypatch.setattr(collected, "results", open_)
    table = pages.all_verdicts("any")
    # No source was trained here, no chest film shown, and no batch norm alone.
    assert list(table.index) == ["transfer", "small_networks", "scaling", "small_in_size_alone"]
    assert (table["verdict"] == "holds").all()
    given = pages.all_verdicts("any", {"transfer": found("differs", 0.001)})
    assert given["verdict"].to_dict() == dict(table["verdict"]) | {"transfer": "differs"}


def test_another_task_is_no_other_recipe(all_learned):
    results = made_up.robustness({"own": [0, 0], "wide": [0, 0], "objects": [0.05, 0.05]})
    assert claims.decide("any_recipe", results).verdict == "inconclusive"
    variants = {"wide": {}, "objects": {"target": "objects"}}
    told = results.assign_attrs(parameters=json.dumps({"variants": variants}))
    found = claims.decide("any_recipe", told)
    assert "objects" not in found.found and found.verdict == "holds"


@pytest.mark.parametrize(
    ("verdicts", "p", "expected"),
    [
        (["holds", "holds"], [0.01, 0.03], ("holds", 0.03)),
        (["differs", "differs"], [0.01, 0.03], ("differs", 0.03)),
        (["holds", "inconclusive"], [0.01, 0.3], ("inconclusive", 0.3)),
        (["holds", "differs"], [0.01, 0.01], ("inconclusive", 1)),
        (["holds", "not testable"], [0.01, 1], ("inconclusive", 1)),
        (["not testable", "not testable"], [1, 1], ("not testable", 1)),
    ],
)
def test_findings_that_must_agree(verdicts, p, expected):
    parts = [Finding(*each, f"so {i}") for i, each in enumerate(zip(verdicts, p, strict=True))]
    both = deciding.all_of(("one", parts[0]), ("other", parts[1]))
    assert (both.verdict, both.p) == expected and both.found == "one so 0; other so 1"
    assert deciding.all_of(("one", parts[0]), ("other", deciding.NOTHING)) is deciding.NOTHING
