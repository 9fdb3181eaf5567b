import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from transfusion import config, experiments, store
from transfusion.experiments import plan, tables
from transfusion.images import ingest, tasks
from transfusion.networks import costs, models
from transfusion.statistics import metrics
from transfusion.studies import grouping, params, schedule
from transfusion.training import fit

from ..conftest import KNOBS, results_of


def test_comparisons_name_their_networks(cache):
    compared = {**KNOBS, "images": 40, "positions": 4, "neurons": 8}
    trained = results_of("representations", **compared)
    sizes = {n: trained.sizes[n] for n in ("measure", "model", "block", "other", "pair")}
    assert sizes == {"measure": 3, "model": 1, "block": 4, "other": 4, "pair": 6 + 6}
    assert trained.test_auc.sizes == {"model": 1, "init": 2, "fold": 1, "seed": 2}
    assert set(trained.baseline_auc.baseline.values) == {"statistics", "thumbnail"}
    assert trained.state_a.values.tolist() == trained.state_b.values.tolist()
    assert set(trained.state_a.values) == {"initial", "final"}
    assert trained.depth.sel(model="cbr_tiny").values.tolist() == [0, 1, 2, 3]
    change = results_of("overparametrization", **compared)
    own = ((change.init_a == change.init_b) & (change.seed_a == change.seed_b)).values
    assert change.sizes["pair"] == 6 + 6 + 4 and own.sum() == 4
    assert change.parameters.item() == 1_079_845
    assert change.explained.sizes["neuron"] == 8


def test_first_layers_are_those_of_the_runs(cache):
    result = results_of("first_layer", **KNOBS)
    assert result.moved.sizes == {"filter": 32, "model": 1, "init": 2, "fold": 1, "seed": 2}
    assert (result.moved > 0).all() and ((result.gabor >= 0) & (result.gabor <= 1)).all()
    run = trainings("performance", KNOBS)[0]  # random, seed 0
    before = next(fit.network(run, trained=False).parameters()).detach().numpy()
    shown = result.grey.sel(model="cbr_tiny", init="random", state="initial")
    # Records hold filters in half precision.
    np.testing.assert_allclose(shown.transpose("filter", "y", "x"), before.mean(1), atol=1e-3)


def test_first_layers_of_failed_runs_are_holes(cache):
    half = {**KNOBS, "seeds": 1, "tuned": {"cbr_tiny random": 1e30}}
    result = results_of("first_layer", **half)
    assert np.isnan(result.moved.sel(init="random")).all()
    assert (result.moved.sel(init="transfer") > 0).all()
    with pytest.raises(ValueError, match="every run of this chapter failed"):
        results_of("first_layer", **{**half, "inits": ["random"]})


@pytest.mark.parametrize("inits", [["random", "transfer"], ["transfer", "random"], ["random"]])
def test_a_failed_run_is_a_hole_not_an_end(cache, inits):
    knobs = {**KNOBS, "seeds": 1, "inits": inits, "tuned": {"cbr_tiny random": 1e30}}
    result = results_of("performance", **knobs)
    told = [run for run in json.loads(result.attrs["runs"]) if "init" in run]
    status = {run["init"]: run["status"] for run in told}
    assert status["random"] == "failed" and result.init.values.tolist() == inits
    failed = result.sel(init="random")
    assert np.isnan(failed.auc).all() and np.isnan(failed.test_auc).all()
    if "transfer" in inits:
        assert np.isnan(failed.influence).all()
        done = result.sel(init="transfer")
        assert np.isfinite(done.test_auc).all() and np.isfinite(done.influence).all()
    assert np.isfinite(result.baseline_auc).all() and np.isfinite(result.probe_auc).all()


def questions(run):
    """Target and scores (question, image) of a run, patients and names, from its own result."""
    result, attrs = kept(run.key), tasks.attrs(run.data)
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
    result = results_of("hybrids", **knobs)
    for run in trainings("hybrids", knobs):
        found = result.sel(model=run.model, init=run.init.name, fold=0, seed=run.seed)
        asked = dict(zip(questions(run)[2], zip(*questions(run)[:2], strict=True), strict=True))
        aucs = {n: roc_auc_score(t, s) for n, (t, s) in asked.items() if 0 < t.sum() < len(t)}
        assert np.mean(list(aucs.values())) == pytest.approx(found.test_auc.item())
        assert found.test_auc == kept(run.key).test_auc
        if target == "cxr":
            assert found.finding_auc.finding.values.tolist() == list(asked)
            expected = [aucs.get(name, np.nan) for name in asked]
            assert found.finding_auc.values == pytest.approx(expected, nan_ok=True)
    assert ("finding" in result.dims) == (target == "cxr")
    assert result.patients == len(np.unique(kept(run.key).test_patient))


@pytest.mark.parametrize("target", ["fundus", "cxr", "objects"])
def test_influence_gives_the_error_of_an_arm_and_of_a_difference(cache, target):
    """Of the mean over repetitions; of findings and classes, of the mean over these."""
    knobs = {**KNOBS, "target": target}
    result, placed = results_of("hybrids", **knobs), {"random": 0, "transfer": 0}
    for run in trainings("hybrids", knobs):
        asked, scores, _ = questions(run)
        placed[run.init.name] = placed[run.init.name] + metrics.placements(asked, scores) / 2
        patient = kept(run.key).test_patient.values
    influence = result.influence.sel(model="cbr_tiny", fold=0)
    assert influence.sizes == {"init": 2, "patient": len(np.unique(patient))}
    assert result.patients.sel(fold=0) == influence.sizes["patient"]
    for a, b in (("transfer", "random"), ("transfer", None)):
        error = metrics.patients_error(asked, placed[a] - placed.get(b, 0), patient)
        found = influence.sel(init=a) - (influence.sel(init=b) if b else 0)
        variance = metrics.patients_variance(found.values, influence.sizes["patient"])
        assert variance**0.5 == pytest.approx(error)
    if target == "cxr":
        findings = result.finding_influence.sel(model="cbr_tiny", fold=0)
        assert findings.finding.values.tolist() == tasks.attrs(run.data)["names"]
        np.testing.assert_allclose(findings.mean("finding").T, influence.T, atol=1e-12)
    else:
        assert "finding_influence" not in result and "finding_auc" not in result


def test_baselines_and_probes_stand_beside_the_networks(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "seeds": 1}
    result = results_of("performance", **knobs)
    assert result.baseline_auc.sizes == {"baseline": 2, "fold": 1}
    assert result.probe_auc.sizes == {"model": 2, "probe": 2, "fold": 1}
    for labels, spec in labelled("performance", knobs):
        if isinstance(spec, config.Run):
            continue
        name = "baseline" if "baseline" in labels else "probe"
        here = {n: labels[n] for n in ("baseline", "model", "probe", "fold") if n in labels}
        own = kept(spec.key)
        assert result[f"{name}_auc"].sel(here) == own.test_auc
        asked, scores, _ = questions(spec)
        found = metrics.influence(asked, metrics.placements(asked, scores), own.test_patient.values)
        np.testing.assert_allclose(result[f"{name}_influence"].sel(here), found[0], atol=1e-12)
    assert "probe_auc" not in results_of("hybrids", **knobs), "of the chapters that ask for them"


def test_folds_are_a_dimension_and_pad_their_patients(cache):
    knobs = {**KNOBS, "inits": ["random", "transfer"], "seeds": 1, "folds": 3}
    result = results_of("hybrids", **knobs)
    assert result.test_auc.sizes == {"model": 1, "init": 2, "fold": 3, "seed": 1}
    assert result.baseline_auc.sizes == {"baseline": 2, "fold": 3}
    runs = trainings("hybrids", knobs)
    assert len(runs) == 6 and {run.data.fold for run in runs} == {0, 1, 2}
    assert len({run.init.source for run in runs}) == 2, "all folds start from one source"
    for run in runs:
        here = {"init": run.init.name, "fold": run.data.fold}
        found, own = result.sel(model="cbr_tiny", **here), kept(run.key)
        assert found.test_auc.item() == own.test_auc
        count = len(np.unique(own.test_patient))
        assert found.patients == count
        assert (found.influence[:count] != 0).any() and (found.influence[count:] == 0).all()
        asked, scores, _ = questions(run)
        error = metrics.patients_error(
            asked, metrics.placements(asked, scores), own.test_patient.values
        )
        variance = metrics.patients_variance(found.influence.values, count)
        assert variance**0.5 == pytest.approx(error)
    (one,) = {r.data.fold for r in trainings("hybrids", {**knobs, "fold": 2})}
    single = results_of("hybrids", **knobs, fold=2)
    assert one == 2 and single.fold.values.tolist() == [2]
    assert single.test_auc.sel(fold=2).equals(result.test_auc.sel(fold=2))


def test_a_failed_fold_is_a_hole_beside_its_baselines(cache):
    """Even where it had the most patients: those are 0 in others, and not unknown."""
    knobs = {**KNOBS, "inits": ["random"], "seeds": 1, "folds": 3}
    results = []
    for labels, spec in labelled("hybrids", knobs):
        if isinstance(spec, config.Run) and labels["fold"] == 1:
            spec = replace(spec, optim=replace(spec.optim, lr=1e30))
        schedule.compute_here([spec])
        results.append((labels, spec, kept(spec.key)))
    table = tables.scored_table(results)
    holes = {name: table[name].isnull().squeeze(drop=True) for name in ("test_auc", "influence")}
    assert holes["test_auc"].values.tolist() == [False, True, False]
    for fold, patients in enumerate(holes["influence"].transpose("fold", "patient").values):
        assert patients.all() if fold == 1 else not patients.any()
    assert table.baseline_auc.notnull().all() and table.baseline_influence.notnull().all()
    assert table.patients.values.max() == table.sizes["patient"]


def test_what_a_first_layer_learned_is_shown_of_one_network_a_target(cache):
    knobs = {**KNOBS, "targets": ["fundus", "cxr"], "seeds": 1, "folds": 3}
    for fold in (None, 2):
        result = results_of("data", **knobs, fold=fold)
        assert result.conv1_change.sizes["target"] == 2
        assert result.baseline_auc.sizes == {
            "target": 2,
            "baseline": 2,
            "fold": 1 if fold else 3,
        }
    run = trainings("data", {**knobs, "fold": 2})[0]
    own = kept(run.key)
    change = own.first_after.values.astype("f4") - own.first_before.values.astype("f4")
    np.testing.assert_array_equal(result.conv1_change.sel(target="fundus"), change)


def test_performance_has_what_each_network_reached_on_its_source(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "seeds": 1}
    result = results_of("performance", **knobs, own_inits={"cbr_small": ["random"]})
    source = trainings("performance", knobs)[1].init.source
    reached = kept(source.key)
    for name in ("auc", "top1", "top5"):
        assert result[f"source_{name}"].sel(model="cbr_tiny") == reached[f"test_{name}"]
        assert np.isnan(result[f"source_{name}"].sel(model="cbr_small"))
    done = [(labels, run, kept(run.key)) for labels, run in labelled("performance", knobs)[:1]]
    assert "source_auc" not in tables.performance_table(done)


def trainings(chapter, knobs):
    specs = experiments.runs(chapter, **knobs)
    return [spec for spec in specs if isinstance(spec, config.Run)]


def kept(key):
    """A result of the cache, with what its scores say."""
    return metrics.scored(store.read(key))


def labelled(chapter, knobs):
    return plan.labelled(chapter, plan.knobs_from(knobs))


def test_costs_are_those_of_the_networks(cache):
    knobs = {**KNOBS, "models": ["cbr_tiny", "cbr_small"], "inits": ["random"], "seeds": 1}
    result = results_of("efficiency", **knobs)
    for name in knobs["models"]:
        found = result.sel(model=name)
        assert found.parameters == models.parameters(name)
        assert 2 * found.multiply_adds == models.flops(name, 32)
        assert found.memory == models.memory(name, 32)
    for run in trainings("efficiency", knobs):
        seconds = result.seconds.sel(model=run.model, init="random", fold=0, seed=run.seed)
        assert seconds == kept(run.key).attrs["seconds"] > 0


def test_chapters_have_a_dimension_of_their_own(cache):
    knobs = {**KNOBS, "inits": ["random"], "seeds": 1, "steps": 2}
    sizes = results_of("small_data", **knobs, train_sizes=[32, 16])
    assert sizes.train_images.values.tolist() == [32, 16]
    assert sizes.influence.sizes["train_images"] == 2
    assert sizes.baseline_auc.sizes["train_images"] == sizes.probe_auc.sizes["train_images"] == 2
    for run in trainings("small_data", {**knobs, "train_sizes": [32, 16]}):
        found = sizes.sel(train_images=run.data.train)
        assert found.test_auc.item() == kept(run.key).test_auc
    variants = {"small": {"batch": 8}, "as it is": {}, "SGD": {"optimizer": "sgd"}}
    result = results_of("robustness", **knobs, variants=variants)
    assert result.variant.values.tolist() == list(variants)
    run = trainings("robustness", {**knobs, "variants": variants})[2]
    assert result.test_auc.sel(variant="SGD").item() == kept(run.key).test_auc
    rates = results_of("hybrids", **knobs, rates=[0.01, 0.001])
    assert rates.lr.values.tolist() == [0.01, 0.001] and rates.test_auc.sizes["lr"] == 2
    assert "lr" not in rates.baseline_auc.dims


def test_all_images_of_a_fold_are_told_in_numbers(cache, photographs):
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    own = {"target": name, "train_size": None, "valid_size": None, "test_size": None, "folds": 4}
    knobs = {**KNOBS, **own, "inits": ["random"], "seeds": 1, "steps": 2, "batch": 8}
    result = results_of("small_data", **knobs, train_sizes=[8, None])
    runs = trainings("small_data", {**knobs, "train_sizes": [8, None]})
    whole = [kept(run.key).attrs["train_images"] for run in runs if run.data.train is None]
    assert result.train_images.values.tolist() == [8, round(np.mean(whole))]
    assert np.isfinite(result.test_auc).all() and len(whole) == 4


def test_parameters_are_those_of_the_networks():
    """Those that are kept, for reading without torch, and those of every study in git are there."""
    for name, size, *kept in costs._table().itertuples(index=False):
        counted = [count(name, size) for count in (models.flops, models.memory)]
        assert kept == [models.parameters(name), *counted], (name, size)
    there = set(costs._table()[["model", "size"]].itertuples(index=False, name=None))
    groups = [group for study in params.studies() for group in grouping.groups(study).values()]
    specs = [spec for group in groups for spec in group.specs if isinstance(spec, config.Run)]
    assert {(run.model, run.data.size) for run in specs} <= there
