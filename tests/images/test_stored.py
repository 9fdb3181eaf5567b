import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from transfusion import config, machine, store
from transfusion.experiments import baselines
from transfusion.images import ingest, stored, tasks
from transfusion.networks import models
from transfusion.similarity import activations, comparison
from transfusion.studies import cache as kept
from transfusion.training import fit, loop


def labels(count):
    split = np.resize([*["train"] * 6, "valid", "test"], count)
    return tasks.labels(np.arange(count) % 2, np.arange(count), split, {"task": "grades"})


def written(path, pixels, most=None):
    shape = (most or len(pixels), *pixels.shape[1:])
    stored.write(path, iter(pixels), shape, lambda: labels(len(pixels)))
    return path


@pytest.fixture
def small_files(monkeypatch):
    """Two images of 32 px a chunk, two chunks a file."""
    monkeypatch.setattr(stored, "CHUNK", 2 * 3 * 32 * 32)
    monkeypatch.setattr(stored, "FILE", 2)


@pytest.fixture
def streamed(monkeypatch):
    """No pixel is kept in memory."""
    return lambda: monkeypatch.setattr(stored, "limit", lambda: 0)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (22, 3, 32, 32), dtype=np.uint8)


def test_pixels_come_back_from_memory_and_from_disk(tmp_path, small_files, streamed, pixels):
    path = written(tmp_path / "a.zarr", pixels, most=40)
    assert len(list(path.glob("pixels/c.*"))) == 6
    whole = stored.read(path)
    streamed()
    lazy = stored.read(path)
    rows = np.array([21, 3, 3, 8])
    for images in (whole, lazy):
        np.testing.assert_array_equal(images.pixels.values, pixels)
        chosen = images.isel(image=slice(1, None)).isel(image=rows - 1)
        np.testing.assert_array_equal(tasks.pixels(chosen, slice(None)), pixels[rows])
        np.testing.assert_array_equal(np.concatenate([*tasks.batches(images, 5)]), pixels)
        xr.testing.assert_identical(images.drop_vars("pixels"), labels(22))


def test_checksums_are_those_of_older_versions_whose_stores_can_be_read(
    tmp_path, small_files, streamed, pixels
):
    images = labels(22).assign(pixels=(stored.DIMS, pixels))
    store.write_zarr(images, tmp_path / "older.zarr")
    written(tmp_path / "newer.zarr", pixels)
    streamed()
    for name in ("older", "newer"):
        found = stored.read(tmp_path / f"{name}.zarr")
        assert store.checksum(found) == store.checksum(images)
        xr.testing.assert_identical(found.load(), images)
        xr.testing.assert_identical(store.read_zarr(tmp_path / f"{name}.zarr"), images)


def trained(run, cache, monkeypatch):
    """All that a run leaves, and what else is computed of its images, in a cache of its own."""
    monkeypatch.setenv("TRANSFUSION_CACHE", str(cache))
    result = fit.fit(run)
    images, net = tasks.load(run.data), fit.network(run, trained=True)
    compared = activations.moments([activations.extractor(net)], images, positions=2, neurons=4)
    net = comparison.calibrate(models.build("resnet18", outputs=5), images)
    spec = [config.Baseline(data=run.data, features=name) for name in ("statistics", "thumbnail")]
    return [
        store.checksum(result),
        store.checksum(store.weights_path(run.key)),
        store.checksum(compared.table("block1", ["cka"], [(0, 0)])),
        activations._digest(net),
        *(baselines._features(each, images).tobytes() for each in spec),
        loop.predict(net, tasks.split_of(images, "test"), "float32").numpy().tobytes(),
    ]


def test_what_streams_ends_in_the_same_bits(tmp_path, small_files, streamed, photographs):
    """Everything that reads pixels, of folds and subsets."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for where in ("memory", "disk"):
            patch.setenv("TRANSFUSION_CACHE", str(tmp_path / where))
            name = ingest.ingest("mine", size=32, folder=photographs)
            data = config.Data(name=name, size=32, folds=4, fold=1, train=18)
            optim = config.Optim(steps=5, batch=8, evaluations=2, precision="float32")
            run = config.Run(data=data, model="cbr_tiny", init=config.Init(), optim=optim)
            assert fit.is_complete(run) is False
            found.append(trained(run, tmp_path / where, patch))
            streamed()
    assert found[0] == found[1]


def flip(path):
    """One bit in the middle of a file: of its chunks, not of its index."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_is_named_when_it_is_read(tmp_path, small_files, streamed, pixels):
    path = written(tmp_path / "a.zarr", pixels)
    flip(path / "pixels/c.2.0.0.0")
    with pytest.raises(store.Damaged, match=r"a\.zarr cannot be read"):
        stored.read(path)
    streamed()
    images = stored.read(path)
    np.testing.assert_array_equal(tasks.pixels(images, slice(0, 8)), pixels[:8])
    with pytest.raises(store.Damaged, match=r"a\.zarr cannot be read"):
        tasks.pixels(images, slice(8, 12))


def test_a_training_that_streams_damage_says_so(cache, small_files, streamed, photographs):
    name = ingest.ingest("mine", size=32, folder=photographs)
    streamed()
    flip(tasks.prepared_path(name, 32) / "pixels/c.1.0.0.0")
    data, optim = config.Data(name=name, size=32), config.Optim(steps=9, batch=8)
    with pytest.raises(store.Damaged, match="mine@"):
        fit.fit(config.Run(data=data, model="cbr_tiny", init=config.Init(), optim=optim))
    assert [where for where in kept.verify().index if "mine@" in where]


@pytest.mark.parametrize("value", [0, 7])
def test_a_lost_file_is_never_read_as_black(tmp_path, small_files, streamed, pixels, value):
    path = written(tmp_path / "a.zarr", np.full_like(pixels, value))
    streamed()
    stored.read(path)
    (path / "pixels/c.3.0.0.0").unlink()
    with pytest.raises(store.Damaged, match="5 of 6 files"):
        stored.read(path)


def test_labels_are_verified_where_pixels_stay_on_disk(tmp_path, small_files, streamed, pixels):
    path = written(tmp_path / "a.zarr", pixels)
    other = xr.Dataset({"target": labels(22).target.roll(image=1)})
    other.to_zarr(path, mode="r+", consolidated=False)
    streamed()
    with pytest.raises(store.Damaged, match="values differ"):
        stored.read(path)


def test_files_in_each_others_place_are_found_by_hashing_all(tmp_path, small_files, pixels):
    path = written(tmp_path / "a.zarr", pixels)
    stored.verify(path)
    first, second = (path / f"pixels/c.{i}.0.0.0" for i in range(2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    for read in (stored.verify, stored.read):
        with pytest.raises(store.Damaged, match="values differ"):
            read(path)


def test_what_would_not_fit_is_refused_in_words(tmp_path, small_files, pixels, monkeypatch):
    path = written(tmp_path / "a.zarr", pixels)
    monkeypatch.setattr(machine, "memory", lambda: pixels.nbytes - 1)
    images = stored.read(path)
    np.testing.assert_array_equal(images.pixels[:21].values, pixels[:21])
    with pytest.raises(MemoryError, match=r"22 images .* read some at a time"):
        _ = images.pixels.values


def test_memory_is_what_is_free_and_was_granted(monkeypatch):
    assert 1e8 < machine.memory() < 1e15
    monkeypatch.setattr(machine, "_granted", lambda: iter([1000, 2000]))
    assert machine.memory() == 1000


def test_images_are_decoded_little_ahead_of_whoever_writes_them():
    begun = []
    found = ingest._each(lambda i: begun.append(i) or i, 10_000, "decode")
    assert [next(found) for _ in range(100)] == [*range(100)]
    assert len(begun) < 100 + 3 * ingest.STRETCH * os.cpu_count()
    assert [*found] == [*range(100, 10_000)]


def test_large_images_are_scored_fewer_at_once():
    def sizes(count, side):
        pixels = np.zeros((count, 3, side, side), np.uint8)
        images = xr.Dataset({"pixels": (stored.DIMS, pixels)})
        return [len(part) for part, _ in zip(loop.batches(images), range(2), strict=False)]

    assert sizes(300, 16) == sizes(300, 112) == [256, 44]
    assert sizes(20, 587) == [9, 9]


PEAK = """
import sys
from pathlib import Path
import sklearn.model_selection
from transfusion import config
from transfusion.images import tasks

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
images = tasks.load(config.Data(name=sys.argv[1], size=64, folds=4, fold=1, train=2000))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="asks Linux for the peak")
def test_loading_takes_little_more_than_the_pixels(cache, rng):
    """Also where they are dealt to folds and some are taken."""
    pixels = rng.integers(0, 256, (8000, 3, 64, 64), dtype=np.uint8)
    written(tasks.prepared_path("mine@0123456789ab", 64), pixels)
    command = [sys.executable, "-c", PEAK, "mine@0123456789ab"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1.3 * pixels.nbytes


PAPER = """
import resource, sys, time
from transfusion import config
from transfusion.images import tasks
from transfusion.training import fit

data = config.Data(name=sys.argv[1], size=587)
start = time.perf_counter()
images = tasks.load(data)
print(images.pixels.nbytes, time.perf_counter() - start)
optim = config.Optim(steps=3, batch=8, evaluations=1, precision="float32")
run = config.Run(data=data, model="cbr_tiny", init=config.Init(), optim=optim)
print(fit.fit(run).attrs["status"], time.perf_counter() - start)
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def stand_in(path, images):
    """A set of the paper's size whose files are one file under many names. The checksum of all of
    it, which a training that streams does not ask for, is left out."""
    one = np.full((16, 3, 587, 587), np.arange(16, dtype=np.uint8)[:, None, None, None])
    written(path, one)
    array, rest = path / "pixels", labels(images)
    rest["split"][:] = "train"
    rest["split"][-16:-8], rest["split"][-8:] = "valid", "test"
    told = (array / "zarr.json").read_text()
    assert '"shape": [\n    16,' in told
    (array / "zarr.json").write_text(told.replace("    16,", f"    {images},", 1))
    for i in range(1, -(-images // 16)):
        os.link(array / "c.0.0.0.0", array / f"c.{i}.0.0.0")
    for name in ("patient", "split", "target"):
        store.discard(path / name)
    with pytest.MonkeyPatch.context() as patch:
        whole = store.checksum
        patch.setattr(store, "checksum", lambda d: whole(d.drop_vars("pixels", errors="ignore")))
        all_of_it = rest.assign_attrs(outputs=2, positive_from=1, name="paper")
        lazily = stored._lazily(stored._OnDisk(path, stored._opened(path)))
        store.to_zarr(all_of_it.assign(pixels=lazily), path, there=["pixels"])


@pytest.mark.slow
def test_a_training_at_the_papers_size_takes_less_than_4_GB(cache):
    """88,702 photographs of 587 px, 92 GB of pixels."""
    name = "paper@0123456789ab"
    stand_in(tasks.prepared_path(name, 587), 88_702)
    command = [sys.executable, "-c", PAPER, name]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    print(found)
    assert int(found[0]) > 91e9 and float(found[1]) < 60
    assert found[2] == "done" and int(found[4]) < 4e9
