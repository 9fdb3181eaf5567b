import json

import numpy as np
import pandas as pd
import pytest
from transfusion import claims, effects, metrics, paper
from transfusion.claims import CLAIMS, Claim, Finding

from . import made_up
from .made_up import FALLING, LARGE, LEVEL, SMALL, STAYING

FINDINGS = ("edema", "effusion", "cardiomegaly", "consolidation")
LOW, HIGH = [0.9, 0.9, 0.6, 0.6], [0.6, 0.6, 0.9, 0.9]  # similarity to the start, by block


def films(gains, noise=0.1):
    """Two networks that gain so much on each finding, in deviations of a positive's score."""
    shifts = {(m, "random"): [1.0] * 4 for m in ("cbr_tiny", LARGE)}
    shifts |= {(m, "transfer"): [1 + g for g in gains] for m in ("cbr_tiny", LARGE)}
    return made_up.scored(shifts, FINDINGS, noise, images=60)


def keeping_up(random, transfer, noise=0.001):
    """A small network ahead of a large one, by init."""
    small = {("cbr_tiny", "random"): 0.8 + random, ("cbr_tiny", "transfer"): 0.8 + transfer}
    return made_up.trained(small | {(LARGE, i): 0.8 for i in effects.BOTH}, noise)


def ahead(small, large, noise=0.001):
    """Mean Var ahead of batch norm alone, by model."""
    means = {}
    for model, more in (("cbr_tiny", small), (LARGE, large)):
        means |= {(model, "random"): 0.7, (model, "batch_norm"): 0.8}
        means[model, "mean_var"] = 0.8 + more
    return made_up.trained(means, noise)


def gabors(random, transfer, noise=0.01):
    """Shares of Gabors of a small network, before and after, by init."""
    return made_up.first_layers(np.full((2, 2), 0.1), [[random, transfer], [[0, 0], [0.8, 0.8]]],
                                noise)  # fmt: skip


V = (np.abs(np.arange(20) - 9.5) / 100 + 0.6).tolist()  # no rank correlation

# What must be true for a claim to come out so.
CASES = {
    "transfer": {
        "holds": lambda: made_up.performance([0, 0]),
        "holds in part": lambda: made_up.performance([0, 0.05]),
        "differs": lambda: made_up.performance([0.05, -0.05]),
        "inconclusive": lambda: made_up.performance([0, 0], noise=0.05),
    },
    "small_networks": {
        "holds": lambda: keeping_up(0, 0.05),
        "holds in part": lambda: keeping_up(0, -0.05),
        "differs": lambda: keeping_up(-0.05, -0.05),
        "inconclusive": lambda: keeping_up(0, 0, noise=0.05),
    },
    "source_accuracy": {
        "holds": lambda: made_up.sources(V),
        "differs": lambda: made_up.sources([0.7, 0.71, 0.72, 0.73, 0.74, 0.75]),
        "inconclusive": lambda: made_up.sources([0.7, 0.71, 0.72]),
    },
    "findings": {
        "holds": lambda: films([1, 1, -1, -1]),
        "holds in part": lambda: films([1, 1, 1, 1]),
        "differs": lambda: films([-1, -1, 1, 1]),
        "inconclusive": lambda: films([0, 0, 0, 0]),
    },
    "little_data": {
        "holds": lambda: made_up.small_data({100: [0, 0, 0.05], 400: [0.05, 0, 0]}),
        "holds in part": lambda: made_up.small_data({100: [0.05, 0, 0.05], 400: [0, 0, 0]}),
        "differs": lambda: made_up.small_data({100: [0.05, 0.05, 0], 400: [0, 0, 0.05]}),
        "inconclusive": lambda: made_up.small_data({100: [0, 0, 0], 400: [0, 0, 0]}, 0.02),
    },
    "shrinking": {
        "holds": lambda: made_up.small_data({100: [0.04] * 3, 200: [0.02] * 3, 400: [0] * 3}),
        "holds in part": lambda: made_up.small_data({100: [0.04, 0, 0.04], 400: [0, 0, 0]}),
        "differs": lambda: made_up.small_data({100: [0] * 3, 400: [0.04] * 3}),
        "inconclusive": lambda: made_up.small_data({100: [0] * 3, 400: [0] * 3}, 0.02),
    },
    "frozen_features": {
        "holds": lambda: made_up.frozen([[0.05, 0.05], [0.03, 0.03]]),
        "holds in part": lambda: made_up.frozen([[0.05, 0.05], [0, -0.05]]),
        "differs": lambda: made_up.frozen([[-0.05, -0.05], [-0.03, -0.03]]),
        "inconclusive": lambda: made_up.frozen([[0, 0], [0, 0]], noise=0.05),
    },
    "representations": {
        "holds": lambda: made_up.similarity([0, 0.05]),
        "holds in part": lambda: made_up.similarity([0.05, 0.05]),
        "differs": lambda: made_up.similarity([0.05, -0.05]),
        "inconclusive": lambda: made_up.similarity([0, 0], noise=0.2),
    },
    "size": {
        "holds": lambda: made_up.changed([FALLING, FALLING, STAYING], [LEVEL] * 3, 0.01),
        "holds in part": lambda: made_up.changed([FALLING, STAYING, STAYING], [LEVEL] * 3, 0.01),
        "differs": lambda: made_up.changed([STAYING, STAYING, FALLING], [LEVEL] * 3, 0.01),
        "inconclusive": lambda: made_up.changed([LEVEL] * 3, [LEVEL] * 3, 0.01),
    },
    "low_reuse": {
        "holds": lambda: made_up.changed([LEVEL] * 2, [LOW] * 2, 0.005),
        "holds in part": lambda: made_up.changed([LEVEL] * 2, [LOW, HIGH], 0.005),
        "differs": lambda: made_up.changed([LEVEL] * 2, [HIGH] * 2, 0.005),
        "inconclusive": lambda: made_up.changed([LEVEL] * 2, [LEVEL] * 2, 0.005),
    },
    "foretelling": {
        "holds": lambda: made_up.predicted([[0, 0], [1, 0]]),
        "holds in part": lambda: made_up.predicted([[1, 0], [1, 0]]),
        "differs": lambda: made_up.predicted([[1, 1], [0, 1]]),
        "inconclusive": lambda: made_up.predicted([[0, 0], [0, 0]]),
    },
    "moving": {
        "holds": lambda: made_up.first_layers([[0.1, 0.05], [0.01, 0.01]], np.zeros((2, 2, 2))),
        "holds in part": lambda: made_up.first_layers(
            [[0.1, 0.01], [0.01, 0.01]], np.zeros((2, 2, 2))
        ),
        "differs": lambda: made_up.first_layers([[0.01, 0.01], [0.1, 0.05]], np.zeros((2, 2, 2))),
        "inconclusive": lambda: made_up.first_layers(np.full((2, 2), 0.1), np.zeros((2, 2, 2))),
    },
    "gabor_filters": {
        "holds": lambda: gabors([0, 0], [0.5, 0.25]),
        "holds in part": lambda: gabors([0, 0], [0.5, 0.5]),
        "differs": lambda: gabors([0, 0.5], [0.2, 0.5]),
        "inconclusive": lambda: gabors([0.5, 0.5], [0.5, 0.5], noise=0.2),
    },
    "scaling": {
        "holds": lambda: made_up.two((300, 100), (300, 100)),
        "holds in part": lambda: made_up.two((300, 100), (100, 300)),
        "differs": lambda: made_up.two((100, 300), (100, 300)),
        "inconclusive": lambda: made_up.two((200, 200), (200, 200)),
    },
    "scale_alone": {
        "holds": lambda: ahead(0.05, 0.05),
        "holds in part": lambda: ahead(0, 0.05),
        "differs": lambda: ahead(-0.05, -0.05),
        "inconclusive": lambda: ahead(0, 0),
    },
    "first_layer_most": {
        "holds": lambda: made_up.blockwise([[0.06, 0.02, 0.02]] * 2),
        "holds in part": lambda: made_up.blockwise([[0.06, 0.02, 0.02], [0.02, 0.06, 0.06]]),
        "differs": lambda: made_up.blockwise([[0.02, 0.06, 0.06]] * 2),
        "inconclusive": lambda: made_up.blockwise([[0.03, 0.03, 0.03]] * 2, noise=0.02),
    },
    "low_layers": {
        "holds": lambda: made_up.blockwise([[0.06, 0, 0]] * 2, suffix=0.02),
        "holds in part": lambda: made_up.blockwise([[0.06, 0, 0], [0, 0, 0]], suffix=0.02),
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
        "holds in part": lambda: made_up.hybrids(gabor=(0, 0.05)),
        "differs": lambda: made_up.hybrids(gabor=(0.05, 0.05)),
        "inconclusive": lambda: made_up.hybrids(noise=0.05),
    },
    "small_in_size_alone": {
        "holds": lambda: made_up.efficiency({"cbr_tiny": (1, 30), "cbr_small": (2, 150)}),
        "holds in part": lambda: made_up.efficiency({"cbr_tiny": (1, 30), "narrow": (10, 60)}),
        "differs": lambda: made_up.efficiency({"cbr_tiny": (1, 5), "wide": (30, 150)}),
    },
    "any_recipe": {
        "holds": lambda: made_up.robustness({"wide": [0, 0.05], "slow": [0, 0.05]}),
        "differs": lambda: made_up.robustness({"wide": [0, 0.05], "slow": [0, 0]}),
        "inconclusive": lambda: made_up.robustness({"wide": [0, 0], "slow": [0, 0]}, 0.05),
    },
}
COUNTED = "parameters and operations are counted"
OUT_OF_REACH = {
    ("source_accuracy", "holds in part"): "one correlation over all networks",
    ("small_in_size_alone", "inconclusive"): COUNTED,
    ("slim_tops", "holds in part"): "one network against one",
    ("any_recipe", "holds in part"): "one answer on all networks and variants",
}


@pytest.mark.parametrize("verdict", metrics.VERDICTS)
@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_comes_out_with_each_verdict(name, verdict):
    if (name, verdict) in OUT_OF_REACH:
        assert verdict not in CASES[name]
        return
    found = claims.decide(name, CASES[name][verdict]())
    assert found.verdict == verdict
    assert np.isnan(found.p) or (found.p < metrics.LEVEL) == (verdict != "inconclusive")
    assert "nan" not in found.found


# --- what is made of chance ------------------------------------------------------------------


def inits(*labels):
    return lambda results, rng: made_up.exchanged(results, "init", labels, rng)


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
    path = effects.prefixes(results.isel(model=0))
    auc = results["auc"].sel(init=path)
    added = auc.diff("init").transpose("model", "seed", "step", "init")
    order = rng.permuted(np.tile(np.arange(3), (*added.shape[:2], 1, 1)), axis=-1)
    dealt = added.copy(data=np.take_along_axis(added.values, order, axis=-1))
    fresh = auc.sel(init="random") + dealt.cumsum("init")
    return results.assign(auc=fresh.combine_first(results["auc"]))


# The labels that a claim of a difference is about, and how they are dealt anew.
BY_CHANCE = {
    "findings": inits("random", "transfer"),
    "little_data": inits("random", "transfer"),
    "shrinking": inits("random", "transfer"),
    "frozen_features": inits("transfer", "frozen:block4"),
    "representations": made_up.relabelled,
    "size": lambda r, rng: made_up.exchanged(r, "model", [*SMALL, LARGE], rng, over="pair"),
    "low_reuse": made_up.relabelled,
    "foretelling": foretold_anew,
    "moving": lambda r, rng: made_up.exchanged(r, "model", ["cbr_small", LARGE], rng),
    "gabor_filters": lambda r, rng: made_up.exchanged(r, "state", ["initial", "final"], rng),
    "scaling": inits("random", "mean_var"),
    "scale_alone": inits("mean_var", "batch_norm"),
    "first_layer_most": blocks_anew,
    "low_layers": inits("transfusion:conv1", "suffix:block1"),
}
# A claim of no difference, and truths at twice its margin.
TWICE = {
    "transfer": lambda: made_up.performance([0.02, -0.02]),
    "small_networks": lambda: keeping_up(-0.02, -0.02),
    "source_accuracy": lambda: made_up.sources([0.7 + 0.01 * i for i in range(20)]),
    "representations": lambda: made_up.similarity([0.02, 0.05]),
    "gabor_filters": lambda: gabors([0.2, 0.3], [0.5, 0.25]),
    "slim_tops": lambda: made_up.hybrids((0.02, 0.02, 0.05)),
    "made_gabors": lambda: made_up.hybrids(gabor=(0.02, 0.02)),
}


def test_every_claim_is_of_a_difference_or_of_none():
    assert {*BY_CHANCE, *TWICE, "small_in_size_alone", "any_recipe"} == set(CLAIMS)


@pytest.mark.parametrize("name", BY_CHANCE)
def test_what_chance_has_dealt_does_not_hold(name, rng):
    results = CASES[name]["holds"]()
    times = 40 if "seed" in results.dims else 20  # comparisons take longer
    dealt = [claims.decide(name, BY_CHANCE[name](results, rng)).verdict for _ in range(times)]
    lost = ["inconclusive", "differs"]
    # The half that claims no difference is true of any labels.
    lost += ["holds in part"] if name in ("representations", "gabor_filters") else []
    assert sum(verdict in lost for verdict in dealt) >= 0.95 * len(dealt)


@pytest.mark.parametrize("name", TWICE)
def test_no_difference_is_not_claimed_at_twice_the_margin(name):
    assert claims.decide(name, TWICE[name]()).verdict != "holds"


# --- what is missing -------------------------------------------------------------------------


def first_seed(results):
    if "pair" in results.dims:
        return results.isel(pair=((results.seed_a == "0") & (results.seed_b == "0")).values)
    return results.isel(seed=[0])


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


NEEDS_LARGE = ("small_networks", "little_data", "representations", "foretelling", "moving",
               "slim_tops", "small_in_size_alone")  # fmt: skip
NEEDS_OTHER = [
    n
    for n in CLAIMS
    if n not in (*("small_networks", "size", "foretelling", "moving", "small_in_size_alone"),)
]
ESTIMATED = [n for n in CLAIMS if n not in ("source_accuracy", "small_in_size_alone")]


@pytest.mark.parametrize("name", ESTIMATED)
def test_one_seed_decides_nothing(name):
    found = claims.decide(name, first_seed(CASES[name]["holds"]()))
    assert found.verdict == "inconclusive" and (np.isnan(found.p) or found.p == 1)


@pytest.mark.parametrize("name", [*ESTIMATED, "source_accuracy"])
def test_nothing_is_said_where_every_run_failed(name):
    assert claims.decide(name, none_done(CASES[name]["holds"]())) is claims.NOTHING


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("lack", ["model", "inits"])
def test_a_claim_can_do_without_some_arms(name, lack):
    results = CASES[name]["holds"]()
    left = results.drop_sel(model=LARGE, errors="ignore")
    found = claims.decide(name, left if lack == "model" else from_random_alone(results))
    assert found.verdict in metrics.VERDICTS and "nan" not in found.found
    assert found is claims.NOTHING or name not in (NEEDS_LARGE if lack == "model" else NEEDS_OTHER)


@pytest.mark.parametrize("name", [n for n in CLAIMS if n not in ("source_accuracy",)])
def test_one_failed_run_decides_no_other_way(name):
    results = CASES[name]["holds"]()
    if "pair" in results.dims:
        lost = (results.init_a == "random") & (results.seed_a == "2")
        lost |= (results.init_b == "random") & (results.seed_b == "2")
        names = [n for n in results.data_vars if "pair" in results[n].dims]
        left = results.assign({n: results[n].where(~lost) for n in names})
    else:
        left = made_up.failed(results, model=LARGE, init="random", seed=2)
    found = claims.decide(name, left)
    assert found.verdict == "holds" and "nan" not in found.found


def test_a_claim_names_the_row_that_decides():
    found = claims.decide("transfer", made_up.performance([0.05, 0.1]))
    assert (
        found.found.endswith(f"(n = {made_up.SEEDS}), ResNet-50") and "+10.0 points" in found.found
    )
    worst = claims.decide("small_networks", keeping_up(0, -0.05))
    assert worst.found.endswith("CBR-Tiny, transfer")


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
    own; None has no collected results."""

    def open_(study, chapter):
        if chapter == "None":
            raise FileNotFoundError(chapter)

    def table(**found):
        monkeypatch.setattr(claims.studies, "results", open_)
        made = {
            name: Claim(str(result), name, str, lambda _, result=result: result)
            for name, result in found.items()
        }
        monkeypatch.setattr(claims, "CLAIMS", made)
        return claims.table("any")

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


def test_what_is_counted_is_not_a_test_among_others(study):
    counted = {f"counted{i}": found("holds", np.nan) for i in range(20)}
    table = study(lone=found("differs", 0.04), **counted)
    assert (table["verdict"] == table["alone"]).all()
    assert table.loc["lone", "adjusted"] == 0.04 and np.isnan(table.loc["counted0", "adjusted"])


def test_claims_that_nothing_speaks_to_are_absent(study):
    table = study(one=found("holds", 0.01), none=None, nothing=claims.NOTHING)
    assert list(table.index) == ["one"]
    empty = study(none=None)
    assert len(empty) == 0 and {"verdict", "p", "found", "adjusted", "alone"} <= set(empty)


def test_the_table_of_a_study_decides_each_claim_by_its_chapter(monkeypatch):
    chapters = {
        "performance": CASES["transfer"]["holds"](),
        "weight_scaling": CASES["scaling"]["holds"](),
        "efficiency": CASES["small_in_size_alone"]["holds"](),
    }

    def open_(study, chapter):
        if chapter not in chapters:
            raise FileNotFoundError(chapter)
        return chapters[chapter]

    monkeypatch.setattr(claims.studies, "results", open_)
    table = claims.table("any")
    # No source was trained here, no chest film shown, and no batch norm alone.
    assert list(table.index) == ["transfer", "small_networks", "scaling", "small_in_size_alone"]
    assert (table["verdict"] == "holds").all()


def test_another_task_is_no_other_recipe():
    results = made_up.robustness({"wide": [0, 0], "objects": [0.05, 0.05]})
    assert claims.decide("any_recipe", results).verdict == "differs"
    variants = {"wide": {}, "objects": {"target": "objects"}}
    told = results.assign_attrs(parameters=json.dumps({"variants": variants}))
    found = claims.decide("any_recipe", told)
    assert "objects" not in found.found and found.verdict != "differs"


@pytest.mark.parametrize(
    ("verdicts", "shown"),
    [
        (["holds", "inconclusive"], "CBR-Tiny"),
        (["differs", "inconclusive"], "CBR-Tiny"),
        (["holds", "holds"], "ResNet-50"),
        (["inconclusive", "inconclusive"], "ResNet-50"),
        (["differs", "holds"], "ResNet-50"),
    ],
)
def test_the_number_shown_is_one_that_the_verdict_rests_on(verdicts, shown):
    """Not that of the network asked for, where it has no part in the verdict."""
    rows = [
        {"model": model, "gain": 1.0, "low": 0.5, "high": 1.5, "n": 4, "verdict": v, "p": 0.01}
        for model, v in zip(["cbr_tiny", effects.LARGE], verdicts, strict=True)
    ]
    table = pd.DataFrame(rows).set_index("model")
    assert claims._finding(table, "gain", "", 1, effects.LARGE).found.endswith(shown)
