import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from scipy import stats
from transfusion import config, store
from transfusion.images import ingest, tasks
from transfusion.networks import models
from transfusion.statistics import metrics
from transfusion.training import fit, loop

from bench import reference

from ..conftest import ROOT, poison


def weights(run):
    path = store.weights_path(run.key)
    assert path is not None
    return load_file(path)


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_gives_a_curve_weights_and_test_scores(cache, tiny_run):
    result = fit.fit(tiny_run())
    assert result.step.values.tolist() == [2, 4, 6]
    assert result.attrs["status"] == "done" and result.attrs["train_images"] == 48
    assert result.test_score.shape == (40, 5)
    np.testing.assert_allclose(result.test_score.sum("output"), 1, rtol=1e-5)
    assert np.isfinite([result.test_auc, result.test_ap]).all()


def test_same_key_same_bits(cache, tiny_run, monkeypatch, tmp_path):
    first, state = fit.fit(tiny_run()), weights(tiny_run())
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    torch.manual_seed(99)  # whatever the caller's generator holds
    second = fit.fit(tiny_run())
    xr.testing.assert_equal(first, second)
    assert same_weights(state, weights(tiny_run()))


def test_a_finished_run_is_read_not_trained(cache, tiny_run, monkeypatch):
    first = fit.fit(tiny_run())
    monkeypatch.setattr(fit, "_fit", None)
    xr.testing.assert_identical(fit.fit(tiny_run()), first)


def test_a_damaged_result_is_trained_again(cache, tiny_run):
    first = fit.fit(tiny_run())
    (store.run_folder(tiny_run().key) / "result.zarr/auc/c/0").write_bytes(b"")
    assert store.read(tiny_run().key) is None
    xr.testing.assert_equal(fit.fit(tiny_run()), first)


def test_two_inits_of_a_seed_see_the_same_batches(tiny_run):
    random = tiny_run(seed=3)
    transferred = tiny_run(seed=3, init=config.Init(name="transfer", source=tiny_run()))
    for step in range(6):
        assert torch.equal(loop._rows(random, 48, step), loop._rows(transferred, 48, step))
        assert loop._step_seed(random, step) == loop._step_seed(transferred, step)
    assert not torch.equal(loop._rows(random, 48, 0), loop._rows(tiny_run(seed=4), 48, 0))


def test_an_epoch_visits_every_image_once(tiny_run):
    for epoch in range(2):
        rows = torch.cat([loop._rows(tiny_run(), 48, 3 * epoch + i) for i in range(3)])
        assert sorted(rows.tolist()) == list(range(48))


def test_the_last_step_is_kept_however_good_another_was(cache, tiny_run):
    """Weights, curve and what is said of validation images are all of it."""
    run = tiny_run(lr=0.02)
    result = fit.fit(run)
    valid = tasks.split_of(tasks.load(run.data), "valid")
    reached, error = loop.auc_with_error(
        valid, loop.scores(fit.network(run, trained=True), valid, "float32")
    )
    assert np.float32(reached) == result.auc.values[-1]
    assert np.float32(error) == result.auc_se.values[-1]
    assert result.auc.values[-1] < result.auc.values.max(), "another was better"
    said = metrics.probabilities(result.valid_logit.values, "grades")
    assert loop.auc_with_error(valid, said)[0] == pytest.approx(reached, abs=0.01)


def test_further_evaluations_are_points_of_the_curve_and_leave_no_trace(
    cache, tiny_run, monkeypatch, tmp_path
):
    plain, state = fit.fit(tiny_run()), weights(tiny_run())
    more = tiny_run(evaluate_at=(1, 2, 5))
    result = fit.fit(more)
    assert result.step.values.tolist() == [1, 2, 4, 5, 6]
    assert same_weights(weights(more), state)
    assert result.auc.sel(step=plain.step).equals(plain.auc)
    two, four = plain.loss.values[:2]
    assert result.loss.values[0] + result.loss.values[1] == pytest.approx(2 * two)
    assert result.loss.values[2] == pytest.approx(four), "the mean since the point before"


def test_folds_are_other_networks_and_other_chances(tiny_run):
    runs = [tiny_run(seed=seed) for seed in (0, 1)]
    runs += [replace(r, data=replace(r.data, folds=5, fold=f)) for r in runs for f in (1, 2)]
    chances = [number for run in runs for number in loop.seeds(run).values()]
    assert len(set(chances)) == len(chances) == 6 * 4
    first, other = (fit.network(run, trained=False).state_dict() for run in (runs[0], runs[2]))
    assert not torch.equal(first["block1.0.weight"], other["block1.0.weight"])
    assert not torch.equal(loop._rows(runs[0], 48, 0), loop._rows(runs[2], 48, 0))
    dealt = replace(runs[0], data=replace(runs[0].data, folds=5))
    assert loop.seeds(dealt) == loop.seeds(runs[0]), "of how many makes no difference"


def test_augmentation_mirrors_half_of_the_images(rng):
    pixels = torch.from_numpy(rng.integers(0, 255, (400, 3, 4, 4), dtype=np.uint8))
    torch.manual_seed(0)
    found = loop.augment(pixels, "mirror")
    kept = (found == pixels).all(dim=(1, 2, 3))
    assert torch.equal(found[~kept], pixels[~kept].flip(3))
    assert 150 < kept.sum() < 250


@pytest.mark.parametrize("size", [16, 20, 32])
def test_crops_move_each_image_by_an_eighth_at_most_and_mirror_its_rim(size, rng):
    """Each is a window of the image, mirrored or not, which goes on beyond its rim in a mirror."""
    pixels = rng.integers(0, 255, (300, 3, size, size), dtype=np.uint8)
    torch.manual_seed(0)
    found = loop.augment(torch.from_numpy(pixels), "mirror and crops")
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    most = size // 8
    rim = ((0, 0), (most, most), (most, most))
    windows = range(2 * most + 1)
    seen = []
    for before, after in zip(pixels, found.numpy(), strict=True):
        around = np.pad(before, rim, mode="reflect")
        (place,) = [
            (y, x, flip)
            for y, x, flip in itertools.product(windows, windows, (1, -1))
            if np.array_equal(around[:, y : y + size, x : x + size][..., ::flip], after)
        ]
        seen.append(place)
    down, right, flips = (np.array(found) for found in zip(*seen, strict=True))
    for moved in (down, right):
        counts = np.bincount(moved, minlength=2 * most + 1)
        assert stats.chisquare(counts).pvalue > 0.001, "every shift as often"
    assert 110 < (flips == 1).sum() < 190
    for pair in ((down, right), (down, flips), (right, flips)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.2, "by chances of their own"


@pytest.mark.parametrize("how", ["mirror", "mirror and crops"])
def test_augmentation_follows_the_seed(how, rng):
    pixels = torch.from_numpy(rng.integers(0, 255, (20, 3, 16, 16), dtype=np.uint8))
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(loop.augment(pixels, how))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_recipe_says_how_its_images_are_augmented(cache, tiny_run):
    plain, crops = tiny_run(), tiny_run(augmentation="mirror and crops")
    assert (fit.fit(plain).loss != fit.fit(crops).loss).any()
    assert torch.equal(loop._rows(plain, 48, 1), loop._rows(crops, 48, 1))


def test_learning_rate_warms_up_and_falls_to_zero():
    optim = config.Optim(steps=100, lr=0.1, warmup=0.1)
    rates = [loop.learning_rate(optim, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[100] == pytest.approx(0)


def test_unknown_labels_do_not_count():
    logits = torch.tensor([[0.3, -2.0], [1.0, 5.0]])
    target = torch.tensor([[1, 0], [0, -1]])
    by_hand = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-2.0)), math.log1p(math.exp(1.0))]
    assert loop._masked_bce(logits, target).item() == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_test_image_reaches_training(
    cache, tiny_run, photographs, monkeypatch, tmp_path, optimizer
):
    """Other test images with other labels, under the same key: all the rest is bit for bit."""
    name = ingest.prepare("mine", size=32, folder=photographs).attrs["name"]
    run = tiny_run(optimizer=optimizer, batch=8)
    run = replace(run, data=config.Data(name=name, size=32, train=20))
    honest, state = fit.fit(run), weights(run)
    shutil.copytree(cache / "datasets", tmp_path / "other/datasets")
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    poison(name, 32)
    result = fit.fit(run)
    xr.testing.assert_equal(result[["auc", "loss"]], honest[["auc", "loss"]])
    xr.testing.assert_equal(result.valid_logit, honest.valid_logit)
    assert same_weights(state, weights(run))
    assert result.test_auc != honest.test_auc
    assert (result.test_score != honest.test_score).any("output").all()


def test_nan_loss_ends_the_run_as_failed(cache, tiny_run):
    run = tiny_run(lr=1e30)
    result = fit.fit(run)
    assert result.attrs["status"] == "failed" and store.state(run.key) == "failed"
    assert "learning rate" in result.attrs["reason"] and "by step" in result.attrs["reason"]
    assert store.weights_path(run.key) is None
    assert fit.fit(run).attrs["status"] == "failed"
    dependent = tiny_run(init=config.Init(name="transfer", source=run))
    with pytest.raises(ValueError, match="its training failed"):
        fit.fit(dependent)


def test_transfer_starts_from_its_source(cache, tiny_run):
    source = tiny_run()
    run = tiny_run(seed=5, init=config.Init(name="transfer", source=source))
    state = fit.network(run, trained=False).state_dict()  # trains the source
    trained = fit.halved(weights(source))
    assert all(torch.equal(state[n], trained[n]) for n in state if not n.startswith("head"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "cbr_tini"}, "Did you mean 'cbr_tiny'"),
        ({"model": "efficientnet_b0", "devices": 2}, "BatchNormAct2d cannot be shared by several"),
        ({"init": config.Init(name="mean_var")}, "needs a source"),
        ({"init": config.Init(name="transfer", source="imagenet@1")}, "no pretrained weights"),
    ],
)
def test_what_cannot_run_is_told_before(cache, tiny_run, changes, message):
    with pytest.raises(ValueError, match=message):
        fit.check(tiny_run(**changes))


def test_a_checkpoint_that_is_no_file_of_torch_is_left(cache, tiny_run):
    run = tiny_run()
    store.run_folder(run.key).mkdir(parents=True)
    (store.run_folder(run.key) / "checkpoint.pt").write_bytes(b"half")
    assert fit.fit(run).attrs["status"] == "done"


KILLED = """
import torch
from transfusion import config, train
torch.set_num_threads(1)
images = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
optim = config.Optim(
    steps=60, batch=8, evaluations=20, evaluate_at=(1, 23), augmentation="mirror and crops"
)
run = config.Run(data=images, model="cbr_tiny", init=config.Init(), optim=optim)
print(run.key, flush=True)
train.fit(run, checkpoint_seconds=0)
"""


def test_a_run_killed_in_the_middle_ends_in_the_same_bits(cache, monkeypatch, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    checkpoint = store.run_folder(key) / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not checkpoint.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert store.state(key) == "started", "the run ended before it was killed"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    log = (store.run_folder(key) / "log.txt").read_text()
    assert log.count("resumed at step") == 1
    interrupted = store.read(key), load_file(store.weights_path(key))
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    exec(textwrap.dedent(KILLED), {})
    xr.testing.assert_equal(store.read(key), interrupted[0])
    assert same_weights(load_file(store.weights_path(key)), interrupted[1])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("optimizer", "init", "augmentation"),
    [("adam", "random", "mirror and crops"), ("sgd", "frozen:block2", "mirror")],
)
def test_interrupted_runs_end_in_the_same_bits(
    cache, tiny_run, monkeypatch, tmp_path, optimizer, init, augmentation
):
    start = config.Init(name=init, source=None if init == "random" else tiny_run(seed=9))
    recipe = {"optimizer": optimizer, "augmentation": augmentation}
    run = tiny_run(init=start, evaluations=3, evaluate_at=(1, 3, 5), **recipe)
    save, saved = loop._save, itertools.count(1)

    def cut_short(*state):
        save(*state)
        if next(saved) in (2, 4):
            raise Interrupted

    monkeypatch.setattr(loop, "_save", cut_short)
    for _ in range(2):
        with pytest.raises(Interrupted):
            fit.fit(run, checkpoint_seconds=0)
    interrupted = fit.fit(run, checkpoint_seconds=0), weights(run)
    assert (store.run_folder(run.key) / "log.txt").read_text().count("resumed at step") == 2
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    xr.testing.assert_equal(fit.fit(run), interrupted[0])
    assert same_weights(weights(run), interrupted[1])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["cbr_tiny", "resnet18"])
def test_the_optimizer_is_the_plain_one(name, optimizer, rng):
    """On parameters laid out for speed, a few steps in float64."""
    net = models.build(name, outputs=3, seed=2).double()
    plain = reference.plain(net)
    optim = config.Optim(steps=1, optimizer=optimizer, weight_decay=0.1, lr=0.01)
    net, ours = loop.for_training(net, optim)
    loop._set_lr(ours, 0.01)
    if optimizer == "adam":
        theirs = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=0.1)
    else:
        nesterov = {"momentum": 0.9, "nesterov": True}
        theirs = torch.optim.SGD(plain.parameters(), lr=0.01, weight_decay=0.1, **nesterov)
    for _ in range(3):
        images = torch.from_numpy(rng.normal(size=(6, 3, 32, 32)))
        target = torch.tensor([0, 1, 2, 0, 1, 2])
        torch.nn.functional.cross_entropy(net(images), target).backward()
        ours.step()
        reference.step(plain, theirs, images, target)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.001), ("sgd", 0.01)])
def test_a_batch_can_be_learned_by_heart(cache, tiny_run, optimizer, lr):
    run = tiny_run(optimizer=optimizer, lr=lr, steps=20, evaluations=4)
    loss = fit.fit(replace(run, data=replace(run.data, train=16))).loss.values
    assert loss[0] > 0.5 and loss[-1] < 0.2 * loss[0]


# --- what is frozen --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "block"), [("adam", "block2"), ("sgd", "block2"), ("sgd", "block4")]
)
def test_what_is_frozen_stays_bit_for_bit(cache, tiny_run, optimizer, block):
    start = config.Init(name=f"frozen:{block}", source=tiny_run(seed=9))
    run = tiny_run(optimizer=optimizer, init=start, lr=0.01)
    assert fit.fit(run).attrs["status"] == "done"
    before, after = (fit.network(run, trained=t).state_dict() for t in (False, True))
    net = models.build(run.model, outputs=5)
    frozen = models.tensors(net, models.upto(net, block))
    source = fit.halved(weights(start.source))
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name in frozen), name
        assert name not in frozen or torch.equal(tensor, source[name]), name
    trained = [name for name in after if name not in frozen]
    assert block != "block4" or trained == ["head.weight", "head.bias"]


def test_evaluation_thaws_no_batch_norm(cache, tiny_run):
    start = config.Init(name="frozen:block2", source=tiny_run(model="resnet18"))
    run = tiny_run(model="resnet18", init=start)
    net, _ = loop.for_training(fit.network(run, trained=False), run.optim)
    net.train()
    frozen = models.tensors(net, models.upto(net, "block2"))
    loop.scores(net, tasks.split_of(tasks.load(run.data), "valid"), "float32")
    norms = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert net.training and len(norms) == 20
    for name, module in norms.items():
        assert module.training == (f"{name}.weight" not in frozen)


# --- what is checked, what is scored ---------------------------------------------------------


def test_blocks_and_shapes_of_a_source_are_checked_before_it_is_trained(cache, tiny_run):
    source = tiny_run(model="resnet50")
    for name, message in {
        "only:block9": "unknown block 'block9'; possible: conv1, block1",
        "transfer": r"layer3.0.bn1.bias: expected \(128,\), got \(256,\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            fit.check(tiny_run(model="resnet50_slim", init=config.Init(name=name, source=source)))
    start = config.Init(name="transfusion:block2", source=source)
    fit.check(tiny_run(model="resnet50_slim", init=start))
    with pytest.raises(ValueError, match="source is a cbr_tiny, expected resnet50"):
        fit.check(tiny_run(model="resnet50_slim", init=replace(start, source=tiny_run())))


def test_classes_are_scored_by_their_first_and_first_five_guesses(cache, tiny_run):
    run = tiny_run()
    run = replace(run, data=replace(run.data, name="objects"))
    result = fit.fit(run)
    order = np.argsort(-result.test_score.values, axis=1)
    target = result.test_target.values[:, None]
    assert result.test_top1 == (order[:, :1] == target).mean()
    assert result.test_top5 == (order[:, :5] == target).any(1).mean()
    assert "test_ap" not in result and "test_top1" not in fit.fit(tiny_run())


@pytest.mark.gpu
def test_the_device_gives_the_cpus_numbers(cache, tiny_run, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = fit.fit(tiny_run(steps=2, evaluations=2))
    monkeypatch.setattr(loop, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(store, "read", lambda key: None)
    on_cpu = fit._fit(tiny_run(steps=2, evaluations=2), "float32", None, 60.0, None)
    np.testing.assert_allclose(on_gpu.loss, on_cpu.loss, rtol=1e-3)
