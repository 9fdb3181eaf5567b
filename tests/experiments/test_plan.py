import json
import shutil

import numpy as np
import pytest
import xarray as xr
import yaml
from transfusion import config, experiments, machine, store, studies
from transfusion.experiments import plan
from transfusion.images import ingest, tasks
from transfusion.statistics import metrics
from transfusion.studies import collected, grouping, params, schedule, status

from ..conftest import KNOBS, poison, results_of


def trainings(chapter, **knobs):
    """The networks among what a chapter asks for."""
    return [s for s in experiments.runs(chapter, **knobs) if isinstance(s, config.Run)]


def test_runs_are_the_grid():
    runs = trainings("performance", **{**KNOBS, "models": ["cbr_tiny", "resnet50"]})
    assert len({run.key for run in runs}) == 2 * 2 * 2
    assert {(run.model, run.init.name, run.seed) for run in runs} == {
        (m, i, s) for m in ("cbr_tiny", "resnet50") for i in ("random", "transfer") for s in (0, 1)
    }


def test_chapters_share_their_runs():
    performance = {run.key for run in trainings("performance", **KNOBS)}
    inits = {**KNOBS, "inits": ["random", "mean_var", "transfer"]}
    scaling = {run.key for run in trainings("weight_scaling", **inits)}
    asked = experiments.runs("representations", **KNOBS)
    assert performance < scaling and len(scaling) == 6
    assert {run.key for run in asked[-1].runs} == performance
    shown = {spec.key for spec in asked if not isinstance(spec, config.Comparison)}
    assert shown < {spec.key for spec in experiments.runs("performance", **KNOBS)}


def test_each_chapter_has_the_baselines_that_its_networks_must_exceed():
    """Two simple ones a fold; where features are probed, two more a network."""
    knobs = {**KNOBS, "models": ["cbr_tiny", "resnet18"], "folds": 3}
    simple, probes = 3 * 2, 3 * 2 * 2
    for chapter, more, expected in (
        ("performance", {}, simple + probes),
        ("small_data", {"train_sizes": [16, None]}, 2 * (simple + probes)),
        ("weight_scaling", {}, simple),
        ("data", {"targets": ["fundus", "cxr"]}, 2 * simple),
        ("robustness", {"variants": {"as it is": {}, "two": {"image_size": 48}}}, 2 * simple),
        ("representations", {}, 2),
        ("tuning", {"rates": [0.1]}, 0),
    ):
        if None in more.get("train_sizes", []):
            more = {"train_sizes": [16, 32]}
        found = experiments.runs(chapter, **knobs, **more)
        baselines = [spec for spec in found if isinstance(spec, config.Baseline)]
        assert len({spec.key for spec in baselines}) == len(baselines) == expected, chapter
        trained = {spec.data for spec in found if isinstance(spec, config.Run)}
        assert not baselines or {spec.data for spec in baselines} == trained, chapter
    starts = {spec.init for spec in experiments.runs("performance", **knobs) if spec.data.fold}
    probed = experiments.runs("performance", **knobs)
    frozen = [s for s in probed if isinstance(s, config.Baseline) and s.features == "frozen"]
    assert {spec.init for spec in frozen} == starts, "those of the networks"


def test_folds_are_shared_by_all_arms():
    runs = trainings("performance", **KNOBS, folds=5)
    assert len(runs) == len({run.key for run in runs}) == 2 * 5 * 2
    assert {(run.data.folds, run.data.fold) for run in runs} == {(5, fold) for fold in range(5)}
    one = trainings("performance", **KNOBS, folds=5, fold=3)
    assert {run.data.fold for run in one} == {3} and {r.key for r in one} < {r.key for r in runs}
    (source,) = {run.init.source for run in runs if run.init.source}
    assert source.data.folds is None, "has a split of its own"


def test_a_comparison_is_of_one_fold():
    for fold in (None, 2):
        *_, found = experiments.runs("representations", **KNOBS, folds=5, fold=fold)
        assert {run.data.fold for run in found.runs} == {fold or 0}


def test_rates_of_a_chapter_are_equal_for_all_arms_whatever_was_tuned():
    tuned = {"cbr_tiny transfer": 0.5}
    for chapter in ("weight_scaling", "representations"):
        found = experiments.runs(chapter, **KNOBS, rates=[0.1, 0.01], tuned=tuned)
        runs = [spec for spec in found if isinstance(spec, config.Run)]
        assert {(run.init.name, run.optim.lr) for run in runs} == {
            (init, lr) for init in KNOBS["inits"] for lr in (0.1, 0.01)
        }
        compared = [spec for spec in found if isinstance(spec, config.Comparison)]
        assert [{run.optim.lr for run in each.runs} for each in compared] == (
            [{0.1}, {0.01}] if chapter == "representations" else []
        )


def test_a_source_is_trained_with_all_augmentation_and_evaluated_evenly():
    knobs = {**KNOBS, "evaluate_at": [1, 3], "augmentation": "mirror"}
    run = trainings("performance", **knobs)[-1]
    assert (run.optim.evaluate_at, run.optim.augmentation) == ((1, 3), "mirror")
    source = run.init.source.optim
    assert (source.evaluate_at, source.augmentation) == ((), "mirror and crops")
    with pytest.raises(ValueError, match="evaluate_at"):
        experiments.runs("performance", **{**knobs, "evaluate_at": [5]})


def test_a_prepared_source_may_be_taken_whole(cache, photographs):
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    for size in (None, 20):
        run = trainings("performance", **{**KNOBS, "source": name, "source_size": size})[-1]
        source = run.init.source.data
        assert (source.train, source.valid, source.test) == (size, None, None)


def test_named_weights_take_the_place_of_pretraining():
    weights = {**KNOBS, "weights": {"cbr_tiny": "imagenet@1"}}
    transferred = [r for r in trainings("performance", **weights) if r.init.name != "random"]
    assert {run.init.source for run in transferred} == {"imagenet@1"}


def test_source_is_the_same_for_all_seeds_and_starts_unlike_any_of_them():
    runs = trainings("performance", **KNOBS)
    assert {run.init.source.seed for run in runs if run.init.source}.isdisjoint(range(1000))
    assert len({run.init.source.key for run in runs if run.init.source}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "unknown parameter 'learning_rate'"),
        ({"step": 3}, "Did you mean 'steps'"),
        ({"inits": ["meanvar"]}, "unknown init 'meanvar'; possible: random, transfer, mean_var"),
        ({"own_inits": {"cbr_tinny": ["random"]}}, "Did you mean 'cbr_tiny'"),
        ({"lr": "1e-3"}, "lr: Input should be a valid number, got '1e-3'"),
        ({"lr": -1.0}, "lr: Input should be greater than 0"),
        ({"seeds": 0}, "seeds: "),
        ({"precision": "half"}, "precision: "),
        ({"target": "eyepac"}, "neither synthetic nor prepared"),
        ({"weights": None}, "weights: "),
        ({"inits": ["transfuson:block1"]}, "inits.0: .*Did you mean 'transfusion'"),
        ({"inits": ["transfusion"]}, "needs a block, such as transfusion:block2"),
        ({"inits": ["transfer:block1"]}, "'transfer:block1': possible are transfusion, suffix"),
        ({"own_inits": {"cbr_tiny": ["transfr"]}}, "Did you mean 'transfer'"),
        ({"optimizer": "lion"}, "optimizer: Input should be 'adam' or 'sgd'"),
        ({"tuned": {"cbr_tiny": 0.1}}, "tuned: 'cbr_tiny': expected `model init`"),
        ({"tuned": {"cbr_tiny transfr": 0.1}}, "Did you mean 'transfer'"),
        ({"tuned": {"cbr_tiny transfusion": 0.1}}, "needs a block"),
        ({"tuned": {"cbr_tiny transfer": -1.0}}, "tuned.cbr_tiny transfer: .*greater than 0"),
        ({"folds": 2}, "folds: "),
        ({"fold": 1}, "fold 1: expected 0 to 0"),
        ({"folds": 5, "fold": 5}, "fold 5: expected 0 to 4"),
        ({"augmentation": "crops"}, "augmentation: "),
        ({"evaluate_at": [0]}, "evaluate_at.0: "),
        ({"train_sizes": [0]}, "train_sizes.0: "),
    ],
)
def test_bad_knobs_are_named(cache, changes, message):
    with pytest.raises(ValueError, match=message):
        experiments.runs("performance", **{**KNOBS, **changes})


# --- the chapters' grids ---------------------------------------------------------------------


def test_a_grid_grows_for_the_arms_whose_best_rate_lay_at_its_end():
    knobs = {**KNOBS, "rates": [0.1, 0.01], "grown": {"cbr_tiny transfer": [0.3]}}
    found = [run for run in experiments.runs("tuning", **knobs) if isinstance(run, config.Run)]
    asked = {(run.model, run.init.name, run.optim.lr) for run in found}
    assert {(model, init) for model, init, lr in asked if lr == 0.3} == {("cbr_tiny", "transfer")}
    assert len(asked) == 2 * len(KNOBS["models"]) * len(KNOBS["inits"]) + 1
    with pytest.raises(ValueError, match="arm of grown"):
        experiments.runs("tuning", **knobs | {"grown": {"cbr_tiny": [0.3]}})


def rates(runs):
    return {(run.model, run.init.name): run.optim.lr for run in runs}


def test_tuned_rates_are_those_of_their_arms_and_not_of_the_source():
    tuned = {"cbr_tiny transfer": 0.01, "resnet18 random": 0.02, "absent random": 1.0}
    knobs = {**KNOBS, "models": ["cbr_tiny", "resnet18"], "tuned": tuned}
    runs, plain = (trainings("performance", **k) for k in (knobs, {**knobs, "tuned": {}}))
    assert rates(runs) == {
        ("cbr_tiny", "random"): 0.001,
        ("cbr_tiny", "transfer"): 0.01,
        ("resnet18", "random"): 0.02,
        ("resnet18", "transfer"): 0.001,
    }
    assert [run.init for run in runs] == [run.init for run in plain]


@pytest.mark.parametrize(
    ("init", "rate"),
    [
        *(("random", 0.1), ("mean_var", 0.2), ("transfer", 0.3)),
        *(("permuted", 0.2), ("mean_var_bn_redrawn", 0.2)),
        *(("frozen:block4", 0.3), ("transfusion:block1", 0.3), ("gabor", 0.3)),
        *(("only:block2", 0.4), ("mean_var:conv1", 0.3)),
    ],
)
def test_an_init_that_was_not_tuned_takes_the_rate_of_what_it_is_compared_with(init, rate):
    tuned = {"random": 0.1, "mean_var": 0.2, "transfer": 0.3, "only:block2": 0.4}
    tuned = {f"cbr_tiny {name}": value for name, value in tuned.items()}
    knobs = {**KNOBS, "models": ["cbr_tiny"], "inits": ["random", init], "tuned": tuned}
    assert rates(trainings("performance", **knobs))["cbr_tiny", init] == rate


def test_tuning_tries_every_rate_in_every_repetition_from_one_source():
    knobs = {**KNOBS, "rates": [0.1, 0.01], "tuned": {"cbr_tiny transfer": 0.5}, "folds": 5}
    runs = experiments.runs("tuning", **knobs, fold=0)
    assert {(r.init.name, r.optim.lr, r.data.fold, r.seed) for r in runs} == {
        (init, lr, 0, seed) for init in KNOBS["inits"] for lr in (0.1, 0.01) for seed in (0, 1)
    }
    source = trainings("performance", **KNOBS)[-1].init.source
    assert {run.init.source for run in runs} == {None, source}
    chosen = {**KNOBS, "tuned": {"cbr_tiny transfer": 0.1, "cbr_tiny random": 0.01}, "folds": 5}
    first = {run.key for run in trainings("performance", **chosen) if run.data.fold == 0}
    assert len(first) == 4 and first < {run.key for run in runs}


def test_models_may_have_inits_of_their_own():
    own = {"resnet50_slim": ["random", "transfusion:block2"]}
    knobs = {**KNOBS, "models": ["resnet50", "resnet50_slim"], "own_inits": own}
    runs = trainings("hybrids", **knobs)
    assert set(rates(runs)) == {
        ("resnet50", "random"),
        ("resnet50", "transfer"),
        ("resnet50_slim", "random"),
        ("resnet50_slim", "transfusion:block2"),
    }
    (source,) = {run.init.source for run in runs if run.init.source}
    assert source.model == "resnet50"
    named = trainings("hybrids", **{**knobs, "weights": {"resnet50": "imagenet@1"}})
    assert {run.init.source for run in named} == {None, "imagenet@1"}


def test_sources_may_have_images_of_their_own_size():
    runs = trainings("performance", **KNOBS, source_image_size=48)
    assert {(run.data.size, run.init.source.data.size) for run in runs if run.init.source} == {
        (32, 48)
    }


def test_small_training_sets_lie_within_larger_ones(cache, photographs):
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    whole = {"target": name, "train_size": None, "valid_size": None, "test_size": None, "folds": 4}
    runs = trainings("small_data", **{**KNOBS, **whole, "fold": 1}, train_sizes=[3, 6, None])
    assert len(runs) == 3 * 4
    assert len({run.init.source for run in runs if run.init.source}) == 1
    images = {run.data.train: tasks.load(run.data) for run in runs}
    train = {n: tasks.split_of(found, "train") for n, found in images.items()}
    pixels = {n: {p.tobytes() for p in part.pixels.values} for n, part in train.items()}
    assert [len(pixels[n]) for n in (3, 6)] == [3, 6]
    assert pixels[3] < pixels[6] < pixels[None]
    for split in ("valid", "test"):
        assert tasks.split_of(images[3], split).equals(tasks.split_of(images[None], split))


def test_variants_replace_knobs():
    variants = {
        "as it is": {},
        "SGD": {"optimizer": "sgd", "lr": 0.1},
        "larger": {"image_size": 48, "seeds": 1},
    }
    runs = trainings("robustness", **KNOBS, variants=variants)
    plain = trainings("performance", **KNOBS)
    assert runs[:4] == plain and len(runs) == 4 + 4 + 2
    assert {(run.optim.optimizer, run.optim.lr) for run in runs[4:8]} == {("sgd", 0.1)}
    assert {run.data.size for run in runs[8:]} == {48}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "unknown parameter 'learning_rate'"),
        ({"step": 3}, "Did you mean 'steps'"),
        ({"lr": "fast"}, "lr: Input should be a valid number"),
        ({"inits": ["transfusion"]}, "needs a block"),
    ],
)
def test_bad_knobs_of_a_variant_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        experiments.runs("robustness", **KNOBS, variants={"other": changes})


@pytest.mark.parametrize("chapter", ["tuning", "small_data", "robustness"])
def test_a_chapter_without_its_own_list_is_an_error(chapter):
    knobs = {**KNOBS, "models": []} if chapter == "tuning" else KNOBS
    with pytest.raises(ValueError, match=f"chapter '{chapter}' asks for no run: one of"):
        experiments.runs(chapter, **knobs)


def test_no_test_image_reaches_the_choice_of_a_rate(cache, photographs, monkeypatch, tmp_path):
    """What tuning collects of validation is the same bits whatever the test images are."""
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    own = {"target": name, "train_size": None, "valid_size": None, "test_size": None}
    knobs = {**KNOBS, **own, "inits": ["random"], "rates": [0.01, 0.001], "batch": 8}
    honest = results_of("tuning", **knobs)
    sizes = {"lr": 2, "model": 1, "init": 1, "fold": 1, "seed": 2, "step": 2}
    assert honest.auc.sizes == sizes
    shutil.copytree(cache / "datasets", tmp_path / "other/datasets")
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    poison(name, 32)
    poisoned = results_of("tuning", afresh=True, **knobs)
    xr.testing.assert_equal(poisoned[["auc", "loss"]], honest[["auc", "loss"]])
    assert (poisoned.test_auc != honest.test_auc).any()


# --- studies ---------------------------------------------------------------------------------


def test_a_notebook_names_its_study_and_what_is_to_be_otherwise(capsys):
    notebook = {"study": "quick", "setting": {"steps": 5}, "table": None, "images": len}
    stated = params.knobs("quick", "performance")
    assert collected._asked("performance", notebook) == stated | {"steps": 5}
    assert "not as params/quick has it: steps=5" in capsys.readouterr().err
    assert collected._asked("performance", stated) == stated, "as papermill gives a study's files"
    assert not capsys.readouterr().err
    assert collected._asked("performance", stated | {"batch": 8})["batch"] == 8
    assert "batch=8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notebook", "message"),
    [
        ({"setting": {"stpes": 5}}, "unknown parameter 'stpes'.*Did you mean 'steps'"),
        ({"setting": {"steps": "5"}}, "steps: Input should be a valid integer, got '5'"),
        ({"setting": {"train_sizes": [1]}}, "chapter 'performance' has no 'train_sizes'; small"),
        ({"setting": {"study": "cells"}}, "setting names study 'cells', the notebook 'quick'"),
        ({"study": "quik"}, "unknown study 'quik'.*Did you mean 'quick'"),
        ({"study": None}, "unknown study None"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(cache, notebook, message):
    with pytest.raises(ValueError, match=message):
        studies.collect("performance", {"study": "quick", "setting": {}} | notebook)
    with pytest.raises(ValueError, match="unknown chapter 'performances'"):
        studies.collect("performances", {"study": "quick"})


def test_a_study_says_everything():
    with pytest.raises(ValueError, match="steps: Field required"):
        experiments.runs("performance", **{k: v for k, v in KNOBS.items() if k != "steps"})


def test_unknown_chapter_and_study():
    with pytest.raises(ValueError, match="Did you mean 'performance'"):
        experiments.runs("performances", **KNOBS)
    with pytest.raises(ValueError, match="unknown study 'quik'"):
        params.knobs("quik", "performance")


def test_a_study_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "HOME", tmp_path)
    (tmp_path / "params/mine").mkdir(parents=True)
    (tmp_path / "params/mine/common.yml").write_text("study: mine\n")
    (tmp_path / "params/mine/data.yml").write_text("")
    with pytest.raises(ValueError, match=r"'mine' has no performance.yml; it has data"):
        params.knobs("mine", "performance")


def test_collect_computes_once_and_then_reads(cache, monkeypatch):
    first = studies.collect("performance", **KNOBS)
    assert first.auc.sizes == {"model": 1, "init": 2, "fold": 1, "seed": 2, "step": 2}
    assert first.init.values.tolist() == ["random", "transfer"]
    assert np.isfinite(first.test_auc).all() and first.attrs["train_images"] == 32
    runs = json.loads(first.attrs["runs"])
    specs = experiments.runs("performance", **KNOBS)
    assert [run["key"] for run in runs] == [spec.key for spec in specs]
    one = metrics.scored(store.read(specs[3].key))
    assert first.test_auc.sel(model="cbr_tiny", init="transfer", fold=0, seed=1) == one.test_auc
    assert [run.get("lr") for run in runs] == [0.001] * 4 + [None] * 4, "a baseline has none"
    monkeypatch.setattr(schedule, "compute", None)
    assert studies.collect("performance", **KNOBS).identical(first)


def test_a_simulated_chapter_needs_no_runs():
    assert experiments.runs("methods", **params.knobs("quick", "methods")) == []
    assert collected.is_collected("quick", "methods")
    assert "target" not in params.knobs("quick", "methods")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes the parameter files of a study called `made_up`: knobs by chapter."""

    def write(**chapters):
        folder = tmp_path / "home/params/made_up"
        folder.mkdir(parents=True)
        for name, knobs in {"common": KNOBS, **chapters}.items():
            (folder / f"{name}.yml").write_text(yaml.safe_dump(knobs))
        monkeypatch.setattr(store, "HOME", tmp_path / "home")

    return write


def test_a_plan_counts_each_run_once_with_its_source(cache, study):
    scaling = {"inits": ["random", "mean_var", "transfer"]}
    study(performance={}, weight_scaling=scaling, representations={})
    planned = status.plan("made_up")
    assert planned.index.tolist() == ["performance", "representations", "weight_scaling", "all"]
    assert planned["runs"].tolist() == [5, 0, 2, 7]
    assert planned["comparisons"].tolist() == [0, 1, 0, 1]
    assert planned["baselines"].tolist() == [4, 0, 0, 4]
    # What all need, baselines that all need and that one needs; comparison; what one needs.
    assert planned["groups"].tolist() == [3, 1, 1, 5]
    for column in planned:
        assert planned[column]["all"] == pytest.approx(planned[column][:-1].sum())
    *_, comparison = experiments.runs("representations", **KNOBS)
    probes = experiments.runs("performance", **KNOBS)
    everything = [*experiments.runs("weight_scaling", **{**KNOBS, **scaling}), *probes]
    every = grouping.everything([*everything, comparison])
    seconds = sum(map(schedule.cost, every)) / grouping.CORE
    assert planned["core-hours"]["all"] == pytest.approx(seconds / 3600)
    twice = status.plan("made_up", core=grouping.CORE / 2, gpu=grouping.GPU / 2)
    for column in ("core-hours", "GPU-hours", "of these missing"):
        assert twice[column]["all"] == pytest.approx(2 * planned[column]["all"])


def test_what_is_missing_of_a_plan_falls_to_nothing(cache, study):
    study(performance={"seeds": 1}, weight_scaling={"inits": ["random", "mean_var"], "seeds": 1})
    before = status.plan("made_up")
    assert before["of these missing"].equals(before["core-hours"].rename("of these missing"))
    results_of("performance", **{**KNOBS, "seeds": 1})
    after = status.plan("made_up")
    assert after["core-hours"].equals(before["core-hours"])
    scaling = before["core-hours"]["weight_scaling"]
    assert after["of these missing"].tolist() == [0, scaling, scaling]


def test_a_plan_refuses_unknown_parameters(cache, study):
    study(performance={"step": 3})
    with pytest.raises(ValueError, match="Did you mean 'steps'"):
        status.plan("made_up")


def test_status_counts_runs(cache):
    table = status.status("smoke")
    performance = params.specs("smoke", "performance")
    sources = {s.init.source for s in performance if isinstance(s.init.source, config.Run)}
    assert table.loc["performance", "missing"] == len(performance) + len(sources)
    counts = table[list(store.STATES)]
    assert counts.drop(columns="missing").to_numpy().sum() == 0
    assert counts.loc["all", "missing"] < counts.drop(index="all")["missing"].sum(), "shared"
    assert table.loc["all", "to come"] > 0 == table.loc["all", "MB"] == table.loc["all", "hours"]
    chapters = table.drop(index="all")
    without = chapters.index.isin(plan.WITHOUT_RUNS)
    assert (chapters["collected"] == np.where(without, "yes", "no")).all()


def test_status_tells_what_another_version_made_what_runs_and_what_it_cost(cache, tiny_run):
    run = tiny_run(steps=2, evaluations=1)
    assert store.state(run.key) == "missing"
    with store.lease(run.key):
        assert store.state(run.key) == "running"
    schedule.compute_here([run])
    assert store.state(run.key) == "done"
    assert store.seconds(run.key) > 0 and store.disk_size(run.key) > 1_000_000
    done = store.run_folder(run.key) / "done.json"
    store.write_json(done, {**json.loads(done.read_text()), "schema": "result/0", "seal": None})
    assert store.state(run.key) == "stale"  # and so for whoever asks
    assert store.read(run.key) is None and not store.complete(run.key)
    assert run in schedule.missing([run])
    schedule.compute_here([run])
    assert store.state(run.key) == "done" and run not in schedule.missing([run])


@pytest.mark.parametrize("study", params.studies())
def test_parameter_files_are_understood(study):
    for chapter in params.chapters(study):
        parameters = params.knobs(study, chapter)
        assert parameters["study"] == study
        assert bool(experiments.runs(chapter, **parameters)) != (chapter in plan.WITHOUT_RUNS)


def test_precision_follows_the_machine(monkeypatch):
    (auto,) = {
        run.optim.precision for run in trainings("performance", **{**KNOBS, "precision": "auto"})
    }
    assert auto == machine.precision() and auto in ("float32", "bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.precision() == "float32"
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    assert machine.precision() == "bfloat16"
