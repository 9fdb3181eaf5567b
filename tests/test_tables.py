import json

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import roc_auc_score
from transfusion import data, experiments, metrics, models, store, tables, train

from .conftest import KNOBS, collect


def test_comparisons_name_their_networks(cache):
    compared = {**KNOBS, "images": 40, "positions": 4, "neurons": 8}
    trained = collect("representations", **compared)
    assert dict(trained.sizes) == {"measure": 3, "model": 1, "block": 4, "other": 4, "pair": 6}
    assert set(trained.state_a.values) == set(trained.state_b.values) == {"final"}
    assert trained.depth.values[0].tolist() == [0, 1, 2, 3]
    change = collect("overparametrization", **compared)
    own = ((change.init_a == change.init_b) & (change.seed_a == change.seed_b)).values
    assert change.sizes["pair"] == 6 + 6 + 4 and own.sum() == 4
    assert change.parameters.item() == 1_079_845
    assert change.explained.sizes["neuron"] == 8


def test_first_layers_are_those_of_the_runs(cache):
    result = collect("first_layer", **KNOBS)
    assert result.moved.sizes == {"filter": 32, "model": 1, "init": 2, "seed": 2}
    assert (result.moved > 0).all() and ((result.gabor >= 0) & (result.gabor <= 1)).all()
    run = experiments.runs("performance", **KNOBS)[0]  # random, seed 0
    before = next(train.network(run, trained=False).parameters()).detach().numpy()
    shown = result.grey.sel(model="cbr_tiny", init="random", state="initial")
    # Records hold filters in half precision.
    np.testing.assert_allclose(shown.transpose("filter", "y", "x"), before.mean(1), atol=1e-3)


def test_first_layers_of_failed_runs_are_holes(cache):
    half = {**KNOBS, "seeds": 1, "tuned": {"cbr_tiny random": 1e30}}
    result = collect("first_layer", **half)
    assert np.isnan(result.moved.sel(init="random")).all()
    assert (result.moved.sel(init="transfer") > 0).all()
    with pytest.raises(ValueError, match="every run of this chapter failed"):
        collect("first_layer", **{**half, "inits": ["random"]})


@pytest.mark.parametrize("inits", [["random", "transfer"], ["transfer", "random"], ["random"]])
def test_a_failed_run_is_a_hole_not_an_end(cache, inits):
    knobs = {**KNOBS, "seeds": 1, "inits": inits, "tuned": {"cbr_tiny random": 1e30}}
    result = collect("performance", **knobs)
    status = {run["init"]: run["status"] for run in json.loads(result.attrs["runs"])}
    assert status["random"] == "failed" and result.init.values.tolist() == inits
    failed = result.sel(init="random")
    assert np.isnan(failed.auc).all() and np.isnan(failed.test_auc).all()
    if "transfer" in inits:
        assert np.isnan(failed.covariance).all()
        done = result.sel(init="transfer")
        assert np.isfinite(done.test_auc).all()
        assert np.isfinite(done.covariance.sel(init_="transfer")).all()


def questions(run):
    """Target and scores (question, image) of a run, patients and names, from its own result."""
    result, attrs = kept(run.key), data.attrs(run.data)
    target, score = result.test_target.values, result.test_score.values
    if attrs["task"] == "grades":
        first = attrs["positive_from"]
        return (target >= first)[None], score[:, first:].sum(1)[None], ["severe"]
    if attrs["task"] == "classes":
        names = [str(i) for i in range(score.shape[1])]
        return target == np.arange(len(names))[:, None], score.T, names
    return target.T, score.T, attrs["names"]


@pytest.mark.parametrize("target", ["fundus", "cxr", "objects"])
def test_test_aucs_are_those_of_scikit_learn(cache, target):
    """Of grades one, of findings and classes each one's, and their mean."""
    knobs = {**KNOBS, "target": target, "inits": ["random"]}
    result = collect("hybrids", **knobs)
    for run in experiments.runs("hybrids", **knobs):
        found = result.sel(model=run.model, init=run.init.name, seed=run.seed)
        asked = dict(zip(questions(run)[2], zip(*questions(run)[:2], strict=True), strict=True))
        aucs = {n: roc_auc_score(t, s) for n, (t, s) in asked.items() if 0 < t.sum() < len(t)}
        assert np.mean(list(aucs.values())) == pytest.approx(found.test_auc.item())
        assert found.test_auc == kept(run.key).test_auc
        if target != "fundus":
            assert found.finding_auc.finding.values.tolist() == list(asked)
            expected = [aucs.get(name, np.nan) for name in asked]
            assert found.finding_auc.values == pytest.approx(expected, nan_ok=True)
    assert ("finding" in result.dims) == (target != "fundus")
    assert result.patients == len(np.unique(kept(run.key).test_patient))


@pytest.mark.parametrize("target", ["fundus", "cxr"])
def test_the_covariance_gives_the_error_of_a_difference_over_test_patients(cache, target):
    knobs = {**KNOBS, "target": target}
    result = collect("hybrids", **knobs)
    runs, placed = experiments.runs("hybrids", **knobs), {"random": 0, "transfer": 0}
    for run in runs:
        asked, scores, _ = questions(run)
        placed[run.init.name] = placed[run.init.name] + metrics.placements(asked, scores) / 2
    patient = kept(runs[0].key).test_patient.values
    covariance = result.covariance.sel(model="cbr_tiny", model_="cbr_tiny")
    if target == "cxr":
        covariance = covariance.mean(["finding", "finding_"])
    for a, b in (("transfer", "random"), ("transfer", None)):
        weights = xr.DataArray([(i == a) - (i == b) for i in KNOBS["inits"]], dims="init")
        variance = (covariance * weights * weights.rename(init="init_")).sum()
        error, _ = metrics.patients_error(asked, placed[a] - placed.get(b, 0), patient)
        assert float(variance) ** 0.5 == pytest.approx(error)


def test_performance_has_what_each_network_reached_on_its_source(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "seeds": 1}
    result = collect("performance", **knobs, own_inits={"cbr_small": ["random"]})
    source = experiments.runs("performance", **knobs)[1].init.source
    reached = kept(source.key)
    for name in ("auc", "top1", "top5"):
        assert result[f"source_{name}"].sel(model="cbr_tiny") == reached[f"test_{name}"]
        assert np.isnan(result[f"source_{name}"].sel(model="cbr_small"))
    done = [(labels, run, kept(run.key)) for labels, run in labelled("performance", knobs)[:1]]
    assert "source_auc" not in tables.performance_table(done)


def kept(key):
    """A result of the cache, with what its scores say."""
    return metrics.scored(store.read(key))


def labelled(chapter, knobs):
    return experiments._labelled(chapter, experiments._knobs(knobs))


def test_costs_are_those_of_the_networks(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "inits": ["random"], "seeds": 1}
    result = collect("efficiency", **knobs)
    for name in knobs["models"]:
        costs = result.sel(model=name)
        assert costs.parameters == models.parameters(name)
        assert 2 * costs.multiply_adds == models.flops(name, 32)
        assert costs.memory == models.memory(name, 32)
    for run in experiments.runs("efficiency", **knobs):
        seconds = result.seconds.sel(model=run.model, init="random", seed=run.seed)
        assert seconds == kept(run.key).attrs["seconds"] > 0


def test_chapters_have_a_dimension_of_their_own(cache):
    knobs = {**KNOBS, "inits": ["random"], "seeds": 1, "steps": 2}
    sizes = collect("small_data", **knobs, train_sizes=[32, 16])
    assert sizes.train_images.values.tolist() == [32, 16]
    assert sizes.covariance.sizes["train_images"] == 2
    for run in experiments.runs("small_data", **knobs, train_sizes=[32, 16]):
        found = sizes.sel(train_images=run.data.train)
        assert found.test_auc.item() == kept(run.key).test_auc
        error, _ = metrics.patients_error(
            questions(run)[0],
            metrics.placements(*questions(run)[:2]),
            kept(run.key).test_patient.values,
        )
        assert found.covariance.item() == pytest.approx(error**2)
    variants = {"small": {"batch": 8}, "as it is": {}, "SGD": {"optimizer": "sgd"}}
    result = collect("robustness", **knobs, variants=variants)
    assert result.variant.values.tolist() == list(variants)
    run = experiments.runs("robustness", **knobs, variants=variants)[2]
    assert result.test_auc.sel(variant="SGD").item() == kept(run.key).test_auc
