import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from transfusion import config, experiments, records, store
from transfusion.experiments import baselines
from transfusion.images import folds, ingest, tasks
from transfusion.similarity import activations, comparison
from transfusion.studies import collected, schedule
from transfusion.training import fit

from ..conftest import KNOBS, poison, results_of

DRAWN = config.Data(name="fundus", size=32, train=120, valid=60, test=40)


def baseline(features="statistics", images=DRAWN, **more):
    return config.Baseline(data=images, features=features, **more)


# --- features --------------------------------------------------------------------------------


def test_statistics_of_a_constant_image_are_its_colour():
    colour = np.array([51, 102, 204], np.uint8)
    pixels = np.broadcast_to(colour[:, None, None], (1, 3, 16, 16))
    (found,) = baselines.statistics(pixels)
    assert found.shape == (18,) and found.dtype == np.float32
    expected = [0.2, 0.4, 0.8, *[0] * 6, *[1.4 / 3] * 3, *[0] * 6]
    assert found == pytest.approx(expected, abs=1e-5)


def test_statistics_of_an_image_of_two_halves():
    """Mean and deviation of a fair coin, skewness of an unfair one, the steps of its edge."""
    pixels = np.zeros((2, 3, 8, 8), np.uint8)
    pixels[0, :, :, 4:] = 255
    pixels[1, :, :, 6:] = 255  # a quarter
    fair, unfair = baselines.statistics(pixels)
    assert fair[:9] == pytest.approx([0.5] * 6 + [0] * 3, abs=1e-5)
    assert unfair[:9] == pytest.approx([1 / 4] * 3 + [3**0.5 / 4] * 3 + [2 / 3**0.5] * 3, rel=1e-4)
    assert fair[9:12] == pytest.approx([0, 0.5, 1])
    # Two of eight columns have a slope of a half, of four, of which the edge parts the inner two,
    # two, and of two both, and these a slope of one.
    assert fair[12::2] == pytest.approx([1 / 8, 1 / 4, 1])
    assert fair[13::2] == pytest.approx([3**0.5 / 8, 1 / 4, 0], abs=1e-5)


def test_a_slope_has_its_gradient_in_every_direction():
    """A ramp of b in x and of c in y has one gradient, twice as steep at half the resolution."""
    y, x = np.mgrid[:16, :16]
    pixels = np.broadcast_to((3 * x + 4 * y).astype(np.uint8), (1, 3, 16, 16))
    (found,) = baselines.statistics(pixels)
    assert found[12::2] == pytest.approx(np.array([5, 10, 20]) / 255, rel=1e-4)
    assert found[13::2] == pytest.approx([0, 0, 0], abs=1e-5)


def test_statistics_are_those_of_numpy(rng):
    pixels = rng.integers(0, 256, (4, 3, 20, 20), dtype=np.uint8)
    flat = pixels.reshape(4, 3, -1) / 255
    found = baselines.statistics(pixels)
    np.testing.assert_allclose(found[:, :3], flat.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:6], flat.std(-1), rtol=1e-5)
    grey = np.percentile(flat.mean(1), (5, 50, 95), axis=-1)
    np.testing.assert_allclose(found[:, 9:12], grey.T, rtol=1e-5)
    assert baselines.statistics(pixels[:, :, :, :15]).shape == (4, 18), "not square, nor even"


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_thumbnail_is_the_means_of_its_blocks(size, rng):
    pixels = rng.integers(0, 256, (3, 3, size, size), dtype=np.uint8)
    blocks = pixels.reshape(3, 3, 8, size // 8, 8, size // 8).mean((3, 5)) / 255
    found = baselines.thumbnails(pixels)
    assert found.shape == (3, 192)
    np.testing.assert_allclose(found, blocks.reshape(3, -1), rtol=1e-5)


@pytest.mark.parametrize("model", ["cbr_tiny", "resnet18"])
@pytest.mark.parametrize("probe", ["random", "transfer"])
def test_frozen_features_are_means_of_what_every_block_shows(
    cache, tiny_run, tmp_path, model, probe
):
    source = tiny_run(model=model, steps=2, evaluations=1)
    start = config.Init(name=probe, source=None if probe == "random" else source)
    small = replace(DRAWN, train=20, valid=10, test=10)
    spec = baseline("frozen", small, model=model, init=start)
    images = tasks.load(spec.data)
    found = baselines.frozen(spec, images)
    run = config.Run(data=small, model=model, init=start, optim=config.Optim(steps=1))
    net = fit.network(run, trained=False)
    if probe == "random":
        net = comparison.calibrate(net, tasks.split_of(images, "train"))
    else:
        before = {n: t.clone() for n, t in net.state_dict().items()}
        assert all(
            torch.equal(t, before[n])
            for n, t in fit.source_state(start).items()
            if not n.startswith(("head", "fc"))
        )
    maps = activations.capture(net, images, tmp_path / "maps", dtype="float32")
    means = [maps[block].activation.values.mean((2, 3)) for block in maps.children]
    assert found.shape == (40, sum(part.shape[1] for part in means))
    np.testing.assert_allclose(found, np.hstack(means), rtol=1e-4, atol=1e-5)


# --- the regression --------------------------------------------------------------------------


def made(rng, target, task, features=6, **attrs):
    """Images that are nothing but features with some of the target in them, a patient each."""
    target = np.asarray(target)
    known = target.reshape(len(target), -1)
    values = rng.normal(size=(len(target), features))
    values[:, : known.shape[1]] += known
    split = np.resize(["train", "train", "valid", "test"], len(target))
    attrs = {"task": task, "outputs": int(target.max()) + 1, **attrs}
    images = tasks.dataset(
        np.zeros((len(target), 3, 1, 1)), target, range(len(target)), split, attrs
    )
    return values, images


def test_the_regression_is_that_of_scikit_learn_at_the_strength_of_the_best_validation(rng):
    values, images = made(rng, rng.integers(0, 2, 400), "grades", positive_from=1)
    kept, strength = baselines.said(values, images)
    parts = {s: images.split.values == s for s in folds.SPLITS}
    scale = StandardScaler().fit(values[parts["train"]])
    target = images.target.values
    aucs, said = {}, {}
    for c in baselines.STRENGTHS:
        model = LogisticRegression(C=c, max_iter=1000, tol=1e-8)
        model.fit(scale.transform(values[parts["train"]]), target[parts["train"]])
        logit = {s: model.decision_function(scale.transform(values[parts[s]])) for s in parts}
        said[c] = logit["test"]
        aucs[c] = roc_auc_score(target[parts["valid"]], logit["valid"])
    assert aucs[strength] == pytest.approx(max(aucs.values()), abs=0.002)
    assert kept.test_logit.shape == (100, 1)
    np.testing.assert_allclose(kept.test_logit.values[:, 0], said[strength], rtol=0.02, atol=0.01)
    expected = roc_auc_score(target[parts["test"]], said[strength])
    found = roc_auc_score(kept.test_target.values, kept.test_logit.values[:, 0])
    assert found == pytest.approx(expected, abs=0.002) and found > 0.6


def test_every_strength_of_a_path_is_a_fit_of_its_own(rng):
    target = rng.integers(0, 3, 200)
    values = rng.normal(size=(200, 5)) + target[:, None]
    path = baselines._path(values, target, 3)
    assert len(path) == len(baselines.STRENGTHS)
    for (slope, level), strength in zip(path, baselines.STRENGTHS, strict=True):
        alone = LogisticRegression(C=strength, max_iter=1000, tol=1e-8).fit(values, target)
        expected = alone.predict_proba(values)
        odds = np.exp(values @ slope + level)
        np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), expected, atol=0.01)


@pytest.mark.parametrize("present", [(0, 1, 3), (1, 3), (1, 2, 4), (2,)])
def test_a_class_without_a_training_image_is_less_likely_than_all_others(rng, present):
    target = rng.choice(present, 200)
    values = rng.normal(size=(200, 4))
    values[:, 0] += target
    for slope, level in baselines._path(values, target, 5):
        said = values @ slope + level
        absent = [c for c in range(5) if c not in present]
        assert said[:, absent].max() < said[:, list(present)].min()


def test_two_classes_of_more_are_told_apart_in_their_own_columns(rng):
    target = rng.choice([1, 3], 300)
    values = rng.normal(size=(300, 2))
    values[:, 0] += 2 * target
    slope, level = baselines._path(values, target, 5)[-1]
    assert ((values @ slope + level).argmax(1) == target).mean() > 0.9


def test_unknown_labels_of_findings_teach_nothing(rng):
    """Each finding is that of the images of which it is known, as if there were no others."""
    target = rng.integers(0, 2, (400, 2))
    unknown = target.copy()
    unknown[rng.random(400) < 0.3, 0] = -1
    values, images = made(rng, target, "findings")
    images["target"] = images.target.copy(data=unknown.astype(np.int16))
    kept, strength = baselines.said(values, images)
    rows = images.split.values == "train"
    scaled = StandardScaler().fit(values[rows]).transform(values)
    for finding in range(2):
        known = rows & (unknown[:, finding] >= 0)
        assert known.sum() < rows.sum() or finding == 1
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-8)
        model.fit(scaled[known], unknown[known, finding])
        expected = model.decision_function(scaled[images.split.values == "test"])
        found = kept.test_logit.values[:, finding]
        np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02)
    assert kept.test_logit.shape == (100, 2) and set(np.unique(kept.test_target)) == {-1, 0, 1}


def test_a_finding_of_one_label_or_none_says_nothing_of_any_image(rng):
    target = rng.integers(0, 2, (200, 3))
    values, images = made(rng, target, "findings")
    train_rows = images.split.values == "train"
    target[train_rows, 1], target[train_rows, 2] = 1, -1
    images["target"] = images.target.copy(data=target.astype(np.int16))
    kept, _ = baselines.said(values, images)
    assert len(np.unique(kept.test_logit[:, 0])) > 10
    assert np.unique(kept.test_logit[:, 1]).tolist() == [10]
    assert np.unique(kept.test_logit[:, 2]).tolist() == [0]


# --- what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fundus", "cxr", "objects"])
def test_a_baseline_is_scored_as_a_run(cache, name):
    spec = baseline(images=replace(DRAWN, name=name))
    found = baselines.compute(spec)
    outputs = tasks.attrs(spec.data)["outputs"]
    assert found.test_score.shape == (40, outputs) and 0 <= found.test_auc <= 1
    assert found.valid_logit.shape == (60, outputs - (name != "cxr"))
    assert "auc" not in found and found.attrs["train_images"] == 120
    assert found.attrs["strength"] in baselines.STRENGTHS
    assert (found.attrs["status"], found.attrs["precision"]) == ("done", "float32")


@pytest.mark.parametrize("features", ["statistics", "thumbnail", "frozen"])
def test_same_key_same_bits_and_the_second_time_it_is_read(cache, monkeypatch, tmp_path, features):
    spec = baseline(features, model="cbr_tiny" if features == "frozen" else None)
    first = baselines.compute(spec)
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "_fit", None)
        xr.testing.assert_identical(baselines.compute(spec), first)
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    torch.manual_seed(99)
    np.random.seed(99)
    xr.testing.assert_equal(baselines.compute(spec), first)


@pytest.mark.parametrize("features", ["statistics", "thumbnail", "frozen"])
def test_no_test_image_reaches_a_baseline(cache, photographs, monkeypatch, tmp_path, features):
    """Other test images with other labels, under the same key: all the rest is bit for bit."""
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    images = config.Data(name=name, size=32)
    spec = baseline(features, images, model="cbr_tiny" if features == "frozen" else None)
    honest = baselines.compute(spec)
    shutil.copytree(cache / "datasets", tmp_path / "other/datasets")
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    poison(name, 32)
    found = baselines.compute(spec)
    assert found.attrs["strength"] == honest.attrs["strength"]
    xr.testing.assert_equal(found.valid_logit, honest.valid_logit)
    assert (found.test_logit != honest.test_logit).any("logit").all()


def test_folds_and_seeds_of_a_random_network_have_features_of_their_own(cache):
    small = replace(DRAWN, train=20, valid=10, test=10)
    images = tasks.load(small)
    specs = [baseline("frozen", small, model="cbr_tiny", seed=seed) for seed in (0, 0, 1)]
    first, same, other = (baselines.frozen(spec, images) for spec in specs)
    assert np.array_equal(first, same) and not np.array_equal(first, other)


# --- what is refused, and who asks -----------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"features": "frozen"},
        {"features": "statistics", "model": "cbr_tiny"},
        {"features": "thumbnail", "model": "cbr_tiny"},
        {"features": "colours"},
    ],
)
def test_features_and_model_belong_together(fields):
    with pytest.raises(ValidationError):
        config.Baseline(data=DRAWN, **fields)


def test_a_baseline_survives_the_trip_to_a_worker(tiny_run):
    start = config.Init(name="transfer", source=tiny_run())
    specs = [baseline(), baseline("frozen", model="cbr_tiny", init=start)]
    for spec in specs:
        again = config.load(json.loads(json.dumps(config.dump(spec))))
        assert again == spec and again.key == spec.key
    assert len({s.key for s in [*specs, baseline("thumbnail"), baseline(seed=1)]}) == 4
    assert [need.key for need in schedule.needs(specs[1])] == [
        tiny_run().data.key,
        tiny_run().key,
        DRAWN.key,
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (baseline(images=replace(DRAWN, name="eyepacs@1")), "not prepared at 32 px"),
        (baseline("frozen", model="cbr_tini"), "Did you mean 'cbr_tiny'"),
        (
            baseline("frozen", model="cbr_tiny", init=config.Init(name="transfer")),
            "needs a source",
        ),
        (
            baseline("frozen", model="cbr_tiny", init=config.Init(name="transfer", source="i@1")),
            "no pretrained weights",
        ),
    ],
)
def test_what_cannot_be_computed_is_told_before(cache, spec, message):
    for check in (baselines.check, lambda spec: schedule.check([spec])):
        with pytest.raises(ValueError, match=message):
            check(spec)
    with pytest.raises(ValueError, match=message):
        schedule.compute_here([baseline(), spec])
    assert not (cache / "runs").exists()


def test_baselines_are_computed_recorded_and_come_back(cache):
    knobs = {**KNOBS, "inits": ["random"], "seeds": 1}
    results_of("performance", **knobs)
    specs = [s for s in experiments.runs("performance", **knobs) if isinstance(s, config.Baseline)]
    assert [s.features for s in specs] == ["statistics", "thumbnail", "frozen"]
    facts = records.facts("made_up")
    for spec in specs:
        told = facts[spec.key]
        assert told["kind"] == "Baseline" and config.load(told["spec"]) == spec
        xr.testing.assert_equal(collected.result("made_up", spec), baselines.compute(spec))
        assert store.weights_path(spec.key) is None
        assert not records.leaves_precision(spec)
    run = experiments.runs("performance", **knobs)[0]
    assert facts[run.key]["shares"][0] == facts[specs[0].key]["shares"][0], "one task for all"


def test_a_baseline_asks_for_its_source_alone(cache):
    probe = experiments.runs("performance", **KNOBS)[-1]
    missing = schedule.missing([probe])
    assert [type(task).__name__ for task in missing] == ["Data", "Run", "Data", "Baseline"]
    assert missing[1] == probe.init.source
    schedule.compute_here([probe], "made_up")
    assert schedule.missing([probe], "made_up") == []
    assert set(records.recorded("made_up", [probe])) == {probe.key}


def test_what_reads_more_images_costs_more():
    costs = [
        schedule.cost(spec)
        for spec in (
            baseline(),
            baseline("frozen", model="cbr_tiny"),
            baseline("frozen", model="resnet50"),
        )
    ]
    images = sum([baseline().data.train, baseline().data.valid, baseline().data.test])
    assert costs == sorted(costs) and costs[0] == images * schedule.BASELINE["statistics"]
