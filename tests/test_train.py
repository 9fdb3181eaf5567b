import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from transfusion import config, data, models, reference, store, train

from .conftest import ROOT


def weights(run):
    path = store.weights_path(run.key)
    assert path is not None
    return load_file(path)


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_gives_a_curve_weights_and_test_scores(cache, tiny_run):
    result = train.fit(tiny_run())
    assert result.step.values.tolist() == [2, 4, 6]
    assert result.attrs["status"] == "done" and result.attrs["best_step"] in (2, 4, 6)
    assert result.test_score.shape == (40, 5)
    np.testing.assert_allclose(result.test_score.sum("output"), 1, rtol=1e-5)
    assert np.isfinite([result.test_auc, result.test_ap]).all()


def test_same_key_same_bits(cache, tiny_run, monkeypatch, tmp_path):
    first, state = train.fit(tiny_run()), weights(tiny_run())
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    torch.manual_seed(99)  # whatever the caller's generator holds
    second = train.fit(tiny_run())
    xr.testing.assert_equal(first, second)
    assert same_weights(state, weights(tiny_run()))


def test_a_finished_run_is_read_not_trained(cache, tiny_run, monkeypatch):
    first = train.fit(tiny_run())
    monkeypatch.setattr(train, "_fit", None)
    xr.testing.assert_identical(train.fit(tiny_run()), first)


def test_a_damaged_result_is_trained_again(cache, tiny_run):
    first = train.fit(tiny_run())
    (store.run_folder(tiny_run().key) / "result.zarr/auc/c/0").write_bytes(b"")
    assert store.read(tiny_run().key) is None
    xr.testing.assert_equal(train.fit(tiny_run()), first)


def test_two_inits_of_a_seed_see_the_same_batches(tiny_run):
    random = tiny_run(seed=3)
    transferred = tiny_run(seed=3, init=config.Init(name="transfer", source=tiny_run()))
    for step in range(6):
        assert torch.equal(train._rows(random, 48, step), train._rows(transferred, 48, step))
        assert train._step_seed(random, step) == train._step_seed(transferred, step)
    assert not torch.equal(train._rows(random, 48, 0), train._rows(tiny_run(seed=4), 48, 0))


def test_an_epoch_visits_every_image_once(tiny_run):
    for epoch in range(2):
        rows = torch.cat([train._rows(tiny_run(), 48, 3 * epoch + i) for i in range(3)])
        assert sorted(rows.tolist()) == list(range(48))


def test_augmentation_mirrors_half_of_the_images(rng):
    pixels = torch.from_numpy(rng.integers(0, 255, (400, 3, 4, 4), dtype=np.uint8))
    torch.manual_seed(0)
    found = train.augment(pixels)
    kept = (found == pixels).all(dim=(1, 2, 3))
    assert torch.equal(found[~kept], pixels[~kept].flip(3))
    assert 150 < kept.sum() < 250


def test_learning_rate_warms_up_and_falls_to_zero():
    optim = config.Optim(steps=100, lr=0.1, warmup=0.1)
    rates = [train.learning_rate(optim, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[100] == pytest.approx(0)


def test_unknown_labels_do_not_count():
    logits = torch.tensor([[0.3, -2.0], [1.0, 5.0]])
    target = torch.tensor([[1, 0], [0, -1]])
    by_hand = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-2.0)), math.log1p(math.exp(1.0))]
    assert train._masked_bce(logits, target).item() == pytest.approx(np.mean(by_hand))


def test_test_labels_change_nothing_but_the_test_scores(cache, tiny_run, monkeypatch, tmp_path):
    """Poisoned test labels leave curve, checkpoint and weights untouched."""
    honest, state = train.fit(tiny_run()), weights(tiny_run())
    load = data.load

    def poisoned(spec):
        images = load(spec).copy(deep=True)
        test = images.split.values == "test"
        images["target"].values[test] = 4 - images["target"].values[test]
        return images

    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(data, "load", poisoned)
    result = train.fit(tiny_run())
    assert same_weights(state, weights(tiny_run()))
    xr.testing.assert_equal(
        result[["auc", "loss", "test_score"]], honest[["auc", "loss", "test_score"]]
    )
    assert result.test_auc != honest.test_auc


def test_nan_loss_ends_the_run_as_failed(cache, tiny_run):
    run = tiny_run(lr=1e30)
    result = train.fit(run)
    assert result.attrs["status"] == "failed" and store.status(run.key) == "failed"
    assert "learning rate" in result.attrs["reason"] and "by step" in result.attrs["reason"]
    assert store.weights_path(run.key) is None
    assert train.fit(run).attrs["status"] == "failed"
    dependent = tiny_run(init=config.Init(name="transfer", source=run))
    with pytest.raises(ValueError, match="its training failed"):
        train.fit(dependent)


def test_transfer_starts_from_its_source(cache, tiny_run):
    source = tiny_run()
    run = tiny_run(seed=5, init=config.Init(name="transfer", source=source))
    state = train.network(run, trained=False).state_dict()  # trains the source
    trained = weights(source)
    assert all(torch.equal(state[n], trained[n]) for n in state if not n.startswith("head"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "cbr_tini"}, "Did you mean 'cbr_tiny'"),
        ({"init": config.Init(name="mean_var")}, "needs a source"),
        ({"init": config.Init(name="transfer", source="imagenet@1")}, "no pretrained weights"),
    ],
)
def test_what_cannot_run_is_told_before(cache, tiny_run, changes, message):
    with pytest.raises(ValueError, match=message):
        train.check(tiny_run(**changes))


def test_a_checkpoint_that_is_no_file_of_torch_is_left(cache, tiny_run):
    run = tiny_run()
    store.run_folder(run.key).mkdir(parents=True)
    (store.run_folder(run.key) / "checkpoint.pt").write_bytes(b"half")
    assert train.fit(run).attrs["status"] == "done"


KILLED = """
import torch
from transfusion import config, train
torch.set_num_threads(1)
images = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
optim = config.Optim(steps=160, batch=16, evaluations=80)
run = config.Run(data=images, model="cbr_tiny", init=config.Init(), optim=optim)
print(run.key, flush=True)
train.fit(run, checkpoint_seconds=0)
"""


def test_a_run_killed_in_the_middle_ends_in_the_same_bits(cache, monkeypatch, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    kills = 0
    for wait in (0.3, 0.9):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        checkpoint = store.run_folder(key) / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += store.status(key) == "started"
    assert kills == 2, "the run ended before it was killed"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    log = (store.run_folder(key) / "log.txt").read_text()
    assert log.count("resumed at step") == 2
    interrupted = store.read(key), load_file(store.weights_path(key))
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    xr.testing.assert_equal(store.read(key), interrupted[0])
    assert same_weights(load_file(store.weights_path(key)), interrupted[1])


@pytest.mark.parametrize("name", ["cbr_tiny", "resnet18"])
def test_the_optimizer_is_plain_adam(name, rng):
    """On parameters laid out for speed, a few steps in float64."""
    net = models.build(name, outputs=3, seed=2).double()
    plain = reference.plain(net)
    net, adam = train.prepare(net, config.Optim(steps=1, weight_decay=0.1))
    optimizer = torch.optim.Adam(plain.parameters(), config.Optim(steps=1, weight_decay=0.1))
    for _ in range(3):
        images = torch.from_numpy(rng.normal(size=(6, 3, 32, 32)))
        target = torch.tensor([0, 1, 2, 0, 1, 2])
        torch.nn.functional.cross_entropy(net(images), target).backward()
        adam.step()
        reference.step(plain, optimizer, images, target)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
def test_the_device_gives_the_cpus_numbers(cache, tiny_run, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = train.fit(tiny_run(steps=2, evaluations=2))
    monkeypatch.setattr(train, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(store, "read", lambda key: None)
    on_cpu = train._fit(tiny_run(steps=2, evaluations=2), 60.0)
    np.testing.assert_allclose(on_gpu.loss, on_cpu.loss, rtol=1e-3)
