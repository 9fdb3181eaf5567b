import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from transfusion import data, experiments, models, store, tables, train

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
    np.testing.assert_allclose(shown.transpose("filter", "y", "x"), before.mean(1), rtol=1e-6)


def test_first_layers_of_failed_runs_are_holes(cache):
    half = {**KNOBS, "tuned": {"cbr_tiny random": 1e30}}
    result = collect("first_layer", **half)
    assert np.isnan(result.moved.sel(init="random")).all()
    assert (result.moved.sel(init="transfer") > 0).all()
    with pytest.raises(ValueError, match="every run of this chapter failed"):
        collect("first_layer", **{**half, "inits": ["random"]})


@pytest.mark.parametrize("inits", [["random", "transfer"], ["transfer", "random"], ["random"]])
def test_a_failed_run_is_a_hole_not_an_end(cache, inits):
    knobs = {**KNOBS, "inits": inits, "tuned": {"cbr_tiny random": 1e30}}
    result = collect("performance", **knobs)
    status = {run["init"]: run["status"] for run in json.loads(result.attrs["runs"])}
    assert status["random"] == "failed" and result.init.values.tolist() == inits
    failed = result.sel(init="random")
    assert np.isnan(failed.auc).all() and np.isnan(failed.test_auc).all()
    if "transfer" in inits:
        assert np.isnan(failed.score).all()
        done = result.sel(init="transfer")
        assert np.isfinite(done.test_auc).all() and np.isfinite(done.score).all()


@pytest.mark.parametrize("target", ["fundus", "cxr", "objects"])
def test_scores_are_those_that_the_test_auc_was_taken_of(cache, target):
    """As scikit-learn takes it: of grades one, of findings and classes the mean over all."""
    result = collect("hybrids", **{**KNOBS, "target": target, "inits": ["random"]})
    runs = experiments.runs("hybrids", **{**KNOBS, "target": target, "inits": ["random"]})
    test = data.split_of(data.load(runs[0].data), "test")
    for run in runs:
        found = result.sel(model=run.model, init=run.init.name, seed=run.seed)
        scores = found.score.transpose("image", ...).values.reshape(40, -1).T
        asked = result.target.transpose("image", ...).values.reshape(40, -1).T
        both = [(t, s) for t, s in zip(asked, scores, strict=True) if 0 < t.sum() < len(t)]
        auc = np.mean([roc_auc_score(t, s) for t, s in both])
        assert auc == pytest.approx(store.read(run.key).test_auc.item())
        assert auc == pytest.approx(found.test_auc.item())
    assert result.patient.values.tolist() == test.patient.values.tolist()
    attrs = data.attrs(runs[0].data)
    if target == "fundus":
        assert result.target.dims == ("image",)
        assert (result.target.values == (test.target.values >= attrs["positive_from"])).all()
    elif target == "cxr":
        assert result.finding.values.tolist() == attrs["names"]
        assert (result.target.values == test.target.values).all()
    else:
        assert (result.target.values.argmax(1) == test.target.values).all()


def test_performance_has_what_each_network_reached_on_its_source(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "seeds": 1}
    result = collect("performance", **knobs, own_inits={"cbr_small": ["random"]})
    source = experiments.runs("performance", **knobs)[1].init.source
    kept = store.read(source.key)
    for name in ("auc", "top1", "top5"):
        assert result[f"source_{name}"].sel(model="cbr_tiny") == kept[f"test_{name}"]
        assert np.isnan(result[f"source_{name}"].sel(model="cbr_small"))
    done = [(labels, run, store.read(run.key)) for labels, run in labelled("performance", knobs)]
    shutil.rmtree(store.run_folder(source.key))
    assert "source_auc" not in tables.performance_table(done[:2])


def labelled(chapter, knobs):
    return experiments._labelled(chapter, experiments._knobs(knobs))


def test_costs_are_those_of_the_networks(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "inits": ["random"], "steps": 2}
    result = collect("efficiency", **knobs)
    for name in knobs["models"]:
        costs = result.sel(model=name)
        assert costs.parameters == models.parameters(name)
        assert 2 * costs.multiply_adds == models.flops(name, 32)
        assert costs.memory == models.memory(name, 32)
    for run in experiments.runs("efficiency", **knobs):
        seconds = result.seconds.sel(model=run.model, init="random", seed=run.seed)
        assert seconds == store.read(run.key).attrs["seconds"] > 0


def test_chapters_have_a_dimension_of_their_own(cache):
    knobs = {**KNOBS, "inits": ["random"], "seeds": 1, "steps": 2}
    sizes = collect("small_data", **knobs, train_sizes=[32, 16])
    assert sizes.train_images.values.tolist() == [32, 16]
    assert sizes.score.sizes == {"train_images": 2, "model": 1, "init": 1, "seed": 1, "image": 40}
    variants = {"small": {"batch": 8}, "as it is": {}, "SGD": {"optimizer": "sgd"}}
    result = collect("robustness", **knobs, variants=variants)
    assert result.variant.values.tolist() == list(variants)
    run = experiments.runs("robustness", **knobs, variants=variants)[2]
    assert result.test_auc.sel(variant="SGD").item() == store.read(run.key).test_auc
