import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from transfusion import files, provenance, store
from transfusion.similarity import stored


@pytest.fixture
def dataset(rng):
    return xr.Dataset(
        {"auc": (("model", "step"), rng.random((2, 3))), "n": ("model", [1, 2])},
        {"model": ["cbr_tiny", "resnet50"], "step": [1, 2, 3]},
        {"commit": "abc"},
    )


def test_a_dataset_comes_back_as_it_was(tmp_path, dataset):
    store.write_zarr(dataset, tmp_path / "a.zarr")
    xr.testing.assert_identical(store.read_zarr(tmp_path / "a.zarr"), dataset)


def test_writing_again_replaces(tmp_path, dataset):
    store.write_zarr(dataset, tmp_path / "a.zarr")
    store.write_zarr(2 * dataset[["auc"]], tmp_path / "a.zarr")
    xr.testing.assert_equal(store.read_zarr(tmp_path / "a.zarr"), 2 * dataset[["auc"]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def chunks(path):
    return [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]


def test_a_lost_chunk_is_never_read_as_zeros(tmp_path, dataset):
    store.write_zarr(dataset, tmp_path / "a.zarr")
    lost = chunks(tmp_path / "a.zarr" / "auc")
    assert lost
    for chunk in lost:
        chunk.unlink()
    with pytest.raises(store.Damaged):
        store.read_zarr(tmp_path / "a.zarr")


def test_a_truncated_file_is_seen(tmp_path, dataset):
    path = tmp_path / "a.zarr"
    store.write_zarr(dataset, path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((store.Damaged, FileNotFoundError)):
            store.read_zarr(path)
        file.write_bytes(whole)
    xr.testing.assert_identical(store.read_zarr(path), dataset)


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        store.write_json(path, {"new": object()})
    with pytest.raises(OSError, match="disk"), store.atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError("no space left on the disk")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_result_without_done_file_does_not_count(cache, tiny_run, dataset):
    run = tiny_run()
    with store.lease(run.key):
        store.finish(run, dataset)
    assert store.state(run.key) == "done"
    (store.run_folder(run.key) / "done.json").unlink()
    assert store.read(run.key) is None
    assert store.state(run.key) == "missing"


def test_weights_that_were_changed_do_not_count(cache, tiny_run, dataset):
    run = tiny_run()
    store.save_weights(run.key, b"weights")
    store.finish(run, dataset)
    path = store.weights_path(run.key)
    assert path is not None
    path.write_bytes(b"weight")
    assert store.weights_path(run.key) is None


def test_a_look_at_many_keys_agrees_with_asking_for_each(cache, tiny_run, dataset):
    done, failed, older, begun = (tiny_run(seed=seed) for seed in range(4))
    for run in (done, older):
        store.save_weights(run.key, b"weights")
        store.finish(run, dataset, seconds=2.0)
    store.finish(failed, dataset, status="failed")
    said = store.run_folder(older.key) / "done.json"  # without its bytes, as it was written once
    lacked = ("bytes", "seal")
    store.write_json(
        said, {n: v for n, v in json.loads(said.read_text()).items() if n not in lacked}
    )
    (store.run_folder(begun.key) / "checkpoint.pt").parent.mkdir()
    (store.run_folder(begun.key) / "checkpoint.pt").write_bytes(b"half")
    looked = store.look()
    assert looked == store.look([*looked, "nothing"])
    for key, told in looked.items():
        assert told["state"] == store.state(key) and told["seconds"] == store.seconds(key)
        assert told["weights"] == (store.weights_path(key) is not None)
        assert told["bytes"] == pytest.approx(store.disk_size(key), abs=2000), "but for the json"
    assert [looked[r.key]["state"] for r in (done, failed, older, begun)] == [
        *("done", "failed", "done", "started"),
    ]


def test_a_lease_falls_with_its_process(cache):
    code = (
        "import sys, time; from transfusion import store\n"
        "with store.lease('k'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with store.lease("k"):
        pass


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write results"):
        store.require_writable()


def test_a_full_disk_is_told(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_fsync", full)
    with pytest.raises(OSError, match="No space left on device; free or move it"):
        store.require_writable()
    assert {path.name for path in cache.iterdir()} == {".processes"}


def test_manifest_has_a_line_a_run_and_chapter(cache, dataset):
    runs = [{"key": "k1", "status": "done"}, {"key": "k2", "status": "failed"}]
    for chapter in ("performance", "weight_scaling", "performance"):
        store.save("study", chapter, dataset.assign_attrs(runs=json.dumps(runs)))
    lines = (cache / "collected/study/manifest.csv").read_text().splitlines()
    assert lines[0] == "chapter,key,status" and len(lines) == 5
    assert np.isfinite(store.open("study", "performance").auc).all()


def halves(rng, images=10, batch=4):
    for start in range(0, images, batch):
        size = min(batch, images - start)
        yield {"b": rng.normal(size=(size, 3, 2, 2)).astype(np.float16), "a": np.ones((size, 5))}


def test_activations_keep_order_chunks_and_names(tmp_path, rng):
    written = list(halves(rng))
    stored.write_activations(tmp_path / "x.zarr", lambda _: written, 10, {"device": "cpu"}, {})
    tree = stored.read_activations(tmp_path / "x.zarr")
    assert list(tree.children) == ["b", "a"] and tree.attrs["device"] == "cpu"
    expected = np.concatenate([batch["b"] for batch in written])
    np.testing.assert_array_equal(tree["b"]["activation"], expected)
    assert tree["a"]["activation"].dims == ("image", "channel")
    chunks = [p for p in (tmp_path / "x.zarr/b/activation/c").rglob("*") if p.is_file()]
    assert len(chunks) == 3


def test_a_lost_chunk_of_activations_reads_as_nan_and_a_cut_one_fails(tmp_path, rng):
    stored.write_activations(tmp_path / "x.zarr", lambda _: halves(rng), 10, {}, {})
    first, second, _ = sorted((tmp_path / "x.zarr/b/activation/c").glob("*/0/0/0"))
    first.unlink()
    assert np.isnan(stored.read_activations(tmp_path / "x.zarr")["b"]["activation"][:4]).all()
    second.write_bytes(second.read_bytes()[:-3])
    with pytest.raises(ValueError):
        stored.read_activations(tmp_path / "x.zarr")["b"]["activation"].load()


def test_activations_that_break_off_leave_nothing(tmp_path, rng):
    def broken():
        yield from halves(rng, images=8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        stored.write_activations(tmp_path / "x.zarr", lambda _: broken(), 10, {}, {})
    with pytest.raises(ValueError, match="expected 12 images, got 10"):
        stored.write_activations(tmp_path / "x.zarr", lambda _: halves(rng), 12, {}, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no store"):
        stored.read_activations(tmp_path / "x.zarr")


def test_a_process_tells_one_commit(monkeypatch):
    """That of its code, whatever is committed while it works."""
    assert provenance.facts() is provenance.facts()
