import json
import os

import numpy as np
import pytest
from transfusion import config, data, experiments, schedule, store, train

from .conftest import ROOT

KNOBS = {
    "study": "made_up",
    "target": "fundus",
    "source": "objects",
    "weights": {},
    "lr": 0.001,
    "precision": "float32",
    "models": ["cbr_tiny"],
    "inits": ["random", "transfer"],
    "seeds": 2,
    "image_size": 32,
    "train_size": 32,
    "valid_size": 32,
    "test_size": 40,
    "source_size": 40,
    "steps": 4,
    "source_steps": 2,
    "batch": 16,
    "evaluations": 2,
}


def test_runs_are_the_grid():
    runs = experiments.runs("performance", **{**KNOBS, "models": ["cbr_tiny", "resnet50"]})
    assert len({run.key for run in runs}) == 2 * 2 * 2
    assert {(run.model, run.init.name, run.seed) for run in runs} == {
        (m, i, s) for m in ("cbr_tiny", "resnet50") for i in ("random", "transfer") for s in (0, 1)
    }


def test_chapters_share_their_runs():
    performance = {run.key for run in experiments.runs("performance", **KNOBS)}
    inits = {**KNOBS, "inits": ["random", "mean_var", "transfer"]}
    scaling = {run.key for run in experiments.runs("weight_scaling", **inits)}
    (comparison,) = experiments.runs("representations", **KNOBS)
    assert performance < scaling and len(scaling) == 6
    assert {run.key for run in comparison.runs} == performance


def test_named_weights_take_the_place_of_pretraining():
    weights = {**KNOBS, "weights": {"cbr_tiny": "imagenet@1"}}
    transferred = [r for r in experiments.runs("performance", **weights) if r.init.name != "random"]
    assert {run.init.source for run in transferred} == {"imagenet@1"}


def test_source_is_the_same_for_all_seeds_and_starts_unlike_any_of_them():
    runs = experiments.runs("performance", **KNOBS)
    assert {run.init.source.seed for run in runs if run.init.source}.isdisjoint(range(1000))
    assert len({run.init.source.key for run in runs if run.init.source}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "unknown parameter 'learning_rate'"),
        ({"step": 3}, "Did you mean 'steps'"),
        ({"inits": ["meanvar"]}, "unknown init 'meanvar'; possible: random, transfer, mean_var"),
        ({"lr": "1e-3"}, "lr: Input should be a valid number, got '1e-3'"),
        ({"lr": -1.0}, "lr: Input should be greater than 0"),
        ({"seeds": 0}, "seeds: "),
        ({"precision": "half"}, "precision: "),
        ({"target": "eyepac"}, "neither synthetic nor prepared"),
        ({"weights": None}, "weights: "),
    ],
)
def test_bad_knobs_are_named(cache, changes, message):
    with pytest.raises(ValueError, match=message):
        experiments.runs("performance", **{**KNOBS, **changes})


def test_a_study_says_everything():
    with pytest.raises(ValueError, match="steps: Field required"):
        experiments.runs("performance", **{k: v for k, v in KNOBS.items() if k != "steps"})


def test_unknown_chapter_and_study():
    with pytest.raises(ValueError, match="Did you mean 'performance'"):
        experiments.runs("performances", **KNOBS)
    with pytest.raises(ValueError, match="unknown study 'quik'"):
        experiments.parameters("quik", "performance")


def test_a_study_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "HOME", tmp_path)
    (tmp_path / "params/mine").mkdir(parents=True)
    (tmp_path / "params/mine/common.yml").write_text("study: mine\n")
    (tmp_path / "params/mine/data.yml").write_text("")
    with pytest.raises(ValueError, match=r"'mine' has no performance.yml; it has data"):
        experiments.parameters("mine", "performance")


def test_collect_computes_once_and_then_reads(cache, monkeypatch):
    first = experiments.collect("performance", **KNOBS)
    assert dict(first.sizes) == {"step": 2, "model": 1, "init": 2, "seed": 2}
    assert first.init.values.tolist() == ["random", "transfer"]
    assert np.isfinite(first.test_auc).all() and first.attrs["train_images"] == 32
    runs = json.loads(first.attrs["runs"])
    specs = experiments.runs("performance", **KNOBS)
    assert [run["key"] for run in runs] == [spec.key for spec in specs]
    one = store.read(specs[3].key)
    assert first.test_auc.sel(model="cbr_tiny", init="transfer", seed=1) == one.test_auc
    monkeypatch.setattr(schedule, "compute", None)
    assert experiments.collect("performance", **KNOBS).identical(first)


def test_only_what_a_parameter_touches_is_missing(cache):
    experiments.collect("performance", **KNOBS)
    more = experiments.runs("performance", **{**KNOBS, "seeds": 3})
    assert {(s.init.name, s.seed) for s in schedule.missing(more)} == {
        ("random", 2),
        ("transfer", 2),
    }
    assert schedule.missing(experiments.runs("performance", **KNOBS)) == []


def test_comparisons_name_their_networks(cache):
    compared = {**KNOBS, "images": 40, "positions": 4, "neurons": 8}
    trained = experiments.collect("representations", **compared)
    assert dict(trained.sizes) == {"measure": 3, "model": 1, "block": 4, "other": 4, "pair": 6}
    assert set(trained.state_a.values) == set(trained.state_b.values) == {"final"}
    assert trained.depth.values[0].tolist() == [0, 1, 2, 3]
    change = experiments.collect("overparametrization", **compared)
    own = ((change.init_a == change.init_b) & (change.seed_a == change.seed_b)).values
    assert change.sizes["pair"] == 6 + 6 + 4 and own.sum() == 4
    assert change.parameters.item() == 1_079_845
    assert change.explained.sizes["neuron"] == 8


def test_first_layers_are_those_of_the_runs(cache):
    result = experiments.collect("first_layer", **KNOBS)
    assert result.moved.sizes == {"filter": 32, "model": 1, "init": 2, "seed": 2}
    assert (result.moved > 0).all() and ((result.gabor >= 0) & (result.gabor <= 1)).all()
    run = experiments.runs("performance", **KNOBS)[0]  # random, seed 0
    before = next(train.network(run, trained=False).parameters()).detach().numpy()
    shown = result.grey.sel(model="cbr_tiny", init="random", state="initial")
    np.testing.assert_allclose(shown.transpose("filter", "y", "x"), before.mean(1), rtol=1e-6)


def test_first_layers_of_failed_runs_are_holes(cache):
    with pytest.raises(schedule.Failed, match="every run of this chapter failed"):
        experiments.collect("first_layer", **{**KNOBS, "inits": ["random"], "lr": 1e30})


def test_a_simulated_chapter_needs_no_runs():
    assert experiments.runs("methods", **experiments.parameters("quick", "methods")) == []
    assert experiments.is_collected("quick", "methods", [])
    assert "target" not in experiments.parameters("quick", "methods")


def test_lost_weights_are_trained_again(cache):
    experiments.collect("performance", **KNOBS)
    run = experiments.runs("performance", **KNOBS)[0]
    before = store.weights_path(run.key).read_bytes()
    store.weights_path(run.key).write_bytes(b"cut")
    (comparison,) = experiments.runs("representations", **KNOBS)
    assert [spec.key for spec in schedule.missing([comparison])] == [run.key, comparison.key]
    schedule.compute([comparison])
    assert store.weights_path(run.key).read_bytes() == before


def test_a_failed_run_is_a_hole_not_an_end(cache):
    result = experiments.collect("performance", **{**KNOBS, "inits": ["random"], "lr": 1e30})
    assert np.isnan(result.auc).all()
    assert {run["status"] for run in json.loads(result.attrs["runs"])} == {"failed"}


def test_what_cannot_run_stops_everything_before_it_starts(cache):
    with pytest.raises(ValueError, match="Did you mean 'cbr_tiny'"):
        experiments.collect("performance", **{**KNOBS, "models": ["cbr_small", "cbr_tini"]})
    assert not (cache / "runs").exists()


def break_on_seed_1(fields):
    if fields["seed"] == 1:
        raise RuntimeError("broken")


def die_on_seed_1(fields):
    if fields["seed"] == 1:
        os._exit(9)


@pytest.mark.parametrize(
    ("accident", "message"), [(break_on_seed_1, "broken"), (die_on_seed_1, "")]
)
def test_accidents_are_reported_with_key_and_log(cache, monkeypatch, accident, message):
    monkeypatch.setattr(experiments, "_perform", accident)
    runs = experiments.runs("performance", **{**KNOBS, "inits": ["random"]})
    with pytest.raises(schedule.Failed, match=f"{runs[1].key}: .*{message}.*log"):
        schedule.compute(runs, jobs=1)


def test_a_killed_process_takes_only_its_own_run_along(cache, monkeypatch):
    monkeypatch.setattr(experiments, "_perform", die_on_seed_1)
    runs = experiments.runs("performance", **{**KNOBS, "inits": ["random"], "seeds": 4})
    with pytest.raises(schedule.Failed, match="1 of 5 could not") as failed:
        schedule.compute(runs, jobs=1)
    assert runs[1].key in str(failed.value) and runs[2].key not in str(failed.value)


def test_images_are_drawn_once_and_what_is_needed_goes_first(cache):
    runs = experiments.runs("performance", **KNOBS)
    tasks = schedule.missing(runs)
    drawn = [task for task in tasks if isinstance(task, config.Data)]
    assert sorted(images.name for images in drawn) == ["fundus", "objects"]
    ranks = schedule.ranks(tasks)
    for task in tasks:
        for need in schedule.needs(task):
            assert ranks[need.key] > ranks[task.key]
    data.load(drawn[0])
    again = schedule.missing(runs)
    assert [task for task in again if isinstance(task, config.Data)] == drawn[1:]


def test_long_runs_go_before_short_ones():
    long, short = (
        experiments.runs("performance", **{**KNOBS, "steps": steps})[0] for steps in (40, 4)
    )
    ranks = schedule.ranks([short, long])
    assert ranks[long.key] == pytest.approx(10 * ranks[short.key])


def test_status_counts_runs(cache):
    table = experiments.status("smoke")
    assert table.loc["performance"].to_dict() == {
        "collected": "no", "done": 0, "failed": 0, "started": 0, "missing": 8,
    }  # fmt: skip
    assert (table.drop(index="methods")["collected"] == "no").all()


@pytest.mark.parametrize("study", experiments.studies())
def test_parameter_files_are_understood(study):
    for chapter in experiments.chapters(study):
        parameters = experiments.parameters(study, chapter)
        assert parameters["study"] == study
        assert bool(experiments.runs(chapter, **parameters)) != (chapter in experiments.SIMULATED)


def tracked_studies():
    return [
        p.parent.name for p in sorted((ROOT / "data_cache/results").glob("retina/manifest.csv"))
    ]


@pytest.mark.parametrize("study", tracked_studies())
def test_tracked_results_are_those_of_the_parameter_files(study):
    """The published pages need no training: every run that they ask for is collected."""
    for chapter in experiments.chapters(study):
        specs = experiments.runs(chapter, **experiments.parameters(study, chapter))
        assert experiments.is_collected(study, chapter, specs), chapter


def test_precision_follows_the_machine(monkeypatch):
    (auto,) = {
        run.optim.precision
        for run in experiments.runs("performance", **{**KNOBS, "precision": "auto"})
    }
    assert auto == experiments.precision() and auto in ("float32", "bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert experiments.precision() == "float32"
    monkeypatch.setattr(experiments, "gpus", lambda: 1)
    assert experiments.precision() == "bfloat16"


def test_specifications_survive_the_trip_to_a_worker():
    for spec in experiments.runs("representations", **KNOBS):
        assert config.load(json.loads(json.dumps(config.dump(spec)))) == spec
