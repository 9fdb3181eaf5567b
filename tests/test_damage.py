"""Kinds of file x kinds of damage: each is computed again to the same bits, or named in words."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transfusion import cli, config, files, provenance, store, studies
from transfusion.images import ingest, tasks
from transfusion.networks import models, weights
from transfusion.similarity import activations, comparison, second_moments
from transfusion.studies import batch, grouping, params, render, status
from transfusion.studies import cache as kept
from transfusion.training import fit, loop

from .conftest import KNOBS

DAMAGES = (
    *("missing", "empty", "cut", "flipped", "other type"),
    *("a folder", "a dead link", "a link elsewhere"),
)

# By default what differs most; all of them in `make test-all`.
CASES = [
    pytest.param(
        how, marks=[pytest.mark.slow] if how in ("cut", "other type", "a dead link") else []
    )
    for how in DAMAGES
]


def damage(path, how):
    """What may befall a file: of a folder, its largest file or, where all of it goes, itself."""
    if path.is_dir() and how in ("empty", "cut", "flipped", "other type"):
        path = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = path.read_bytes() if path.is_file() else b""
    if how == "a link elsewhere" and path.exists():  # somebody made room on a disk
        path.rename(path.with_name("moved"))
        path.symlink_to(path.with_name("moved"))
        return
    store.discard(path)
    if how == "a folder":
        path.mkdir()
    elif how == "a dead link":
        path.symlink_to(path.with_name("nowhere"))
    elif how != "missing":
        flipped = bytearray(content)
        if content:
            flipped[len(flipped) // 2] ^= 0x40
        found = {"empty": b"", "cut": content[: len(content) // 2], "flipped": bytes(flipped)}
        path.write_bytes(found.get(how, b"[]"))


class Cut(BaseException):
    """A kill, as far as what lies on disk is concerned."""


def cut_short(monkeypatch, owner, name, work, times=1):
    """Do some work until it has saved so many times."""
    real, calls = getattr(owner, name), []

    def saved(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == times:
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(owner, name, saved)
        work()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing befell: its result and weights, and the cache with it."""
    place = tmp_path_factory.mktemp("whole")
    images = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
    recipe = config.Optim(steps=6, batch=16, evaluations=3)
    run = config.Run(data=images, model="cbr_tiny", init=config.Init(), optim=recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSION_CACHE", str(place))
        result = fit.fit(run)
        weights = load_file(store.weights_path(run.key))
    return run, store.checksum(result), weights, place


@pytest.fixture
def whole(reference, cache):
    run, result, weights, place = reference
    shutil.copytree(place, cache)
    return run, result, weights


def is_same(run, result, weights):
    found = fit.fit(run)
    now = load_file(store.weights_path(run.key))
    return store.checksum(found) == result and all(torch.equal(now[n], weights[n]) for n in weights)


FILES = ("done.json", "spec.json", "result.zarr", "weights.safetensors", "log.txt", "lock")


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("name", FILES)
def test_a_finished_run_is_found_or_computed_again(whole, name, how):
    run, result, weights = whole
    damage(store.run_folder(run.key) / name, how)
    assert list(kept.ls().index) == [run.key]
    assert is_same(run, result, weights)
    assert store.state(run.key) == "done" and not dict(kept.verify())


@pytest.mark.parametrize("how", CASES)
def test_a_checkpoint_is_taken_whole_or_not_at_all(whole, monkeypatch, how):
    run, result, weights = whole
    store.discard(store.run_folder(run.key))
    cut_short(monkeypatch, loop, "_save", lambda: fit.fit(run, checkpoint_seconds=0))
    damage(loop.checkpoint(run), how)
    assert is_same(run, result, weights)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.8, 0.999])
def test_one_bit_of_a_checkpoint_is_not_trained_on(whole, monkeypatch, share):
    run, result, weights = whole
    store.discard(store.run_folder(run.key))
    cut_short(monkeypatch, loop, "_save", lambda: fit.fit(run, checkpoint_seconds=0))
    content = bytearray(loop.checkpoint(run).read_bytes())
    content[int(share * len(content))] ^= 1
    loop.checkpoint(run).write_bytes(content)
    assert is_same(run, result, weights)
    assert "is not what was written" in (store.run_folder(run.key) / "log.txt").read_text()


def test_a_checkpoint_of_other_code_is_begun_anew_unless_asked(whole, monkeypatch):
    run, result, weights = whole
    for resume in (False, True):
        store.discard(store.run_folder(run.key))
        with monkeypatch.context() as patch:
            patch.setattr(provenance, "identity", lambda: "another")
            patch.setattr(provenance.identity, "__wrapped__", provenance.identity, raising=False)
            patch.setattr(provenance, "facts", lambda: {"commit": "older"})
            cut_short(patch, loop, "_save", lambda: fit.fit(run, checkpoint_seconds=0))
        if resume:
            monkeypatch.setenv(loop.RESUME_ANYWAY, "1")
        found = fit.fit(run)
        log = (store.run_folder(run.key) / "log.txt").read_text()
        assert ("is of other code" in log) != resume
        assert ("resumed at step" in log) == resume
        assert found.attrs.get("begun") == ("older" if resume else None)
        assert is_same(run, result, weights)  # that code is the same but for its name


def test_the_command_line_hands_on_that_a_checkpoint_of_other_code_may_go_on(monkeypatch):
    from transfusion.studies import batch

    monkeypatch.setattr(batch, "run", lambda study, chapter, **options: None)
    monkeypatch.setenv(loop.RESUME_ANYWAY, "")
    assert cli.main(["run", "quick", "--resume-anyway"]) == 0
    assert os.environ[loop.RESUME_ANYWAY] == "1"


@pytest.mark.parametrize("how", [*CASES[2:6], "other code"])
def test_a_comparison_goes_on_from_whole_moments_of_its_code_alone(whole, monkeypatch, how):
    run, *_ = whole
    other = replace(run, seed=1)
    fit.fit(other)
    spec = config.Comparison(runs=(run, other), images=40, positions=4, neurons=8)
    monkeypatch.setattr(activations, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(activations, "BATCH", 16)
    expected = store.checksum(comparison.compare(spec))
    store.discard(store.run_folder(spec.key))
    kind = second_moments.SecondMoments
    cut_short(monkeypatch, kind, "save", lambda: comparison.compare(spec))
    moments = store.run_folder(spec.key) / "moments.zarr"
    assert moments.exists()
    if how == "other code":
        left = store.read_zarr(moments)
        store.write_zarr(left.assign_attrs(code="another"), moments)
    else:
        damage(moments, how)
    assert store.checksum(comparison.compare(spec)) == expected
    assert not moments.exists()


@pytest.fixture
def prepared(photographs, cache):
    full = ingest.ingest("mine", size=32, folder=photographs)
    return config.Data(name=full, size=32), tasks.prepared_path(full, 32)


@pytest.mark.parametrize("how", CASES)
def test_a_prepared_set_that_is_not_whole_is_named(prepared, how):
    spec, path = prepared
    before = store.checksum(tasks.load(spec))
    damage(path, how)
    if how == "a link elsewhere":
        assert store.checksum(tasks.load(spec)) == before
        return
    with pytest.raises((ValueError, OSError), match=spec.name.partition("@")[0]):
        tasks.load(spec)


def test_one_bit_of_an_attribute_is_seen(prepared):
    """From which grade on an AUC counts is an attribute."""
    spec, path = prepared
    told = path / "zarr.json"
    told.write_text(told.read_text().replace('"positive_from": 1', '"positive_from": 3'))
    for read in (tasks.load, tasks.attrs):
        with pytest.raises(store.Damaged, match="attributes differ from those written"):
            read(spec)
    assert any("attributes differ" in str(why) for why in dict(kept.verify()).values())


def test_a_commit_that_was_changed_is_seen(whole):
    run, result, weights = whole
    told = store.run_folder(run.key) / "result.zarr" / "zarr.json"
    told.write_text(told.read_text().replace('"commit": "', '"commit": "0'))
    assert dict(kept.verify())
    assert store.read(run.key) is None
    assert is_same(run, result, weights)


@pytest.mark.parametrize("how", CASES)
def test_named_weights_that_are_not_whole_are_named(cache, tmp_path, how):
    torch.save(models.build("cbr_tiny", outputs=2).state_dict(), tmp_path / "weights.pth")
    name = weights.import_weights("cbr_tiny", tmp_path / "weights.pth")
    before = weights.named_weights(name)
    damage(store.weights_file(name), how)
    if how == "a link elsewhere":
        after = weights.named_weights(name)
        assert all(torch.equal(after[tensor], before[tensor]) for tensor in before)
        return
    with pytest.raises((ValueError, OSError), match="imagenet"):
        weights.named_weights(name)


def test_weights_may_be_read_by_whoever_may_read_the_rest(whole):
    run, *_ = whole
    folder = store.run_folder(run.key)
    modes = {
        p.name: p.stat().st_mode for p in folder.iterdir() if p.suffix in (".json", ".safetensors")
    }
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("content", [b"", b"\xff{", b"{}", b"[]", b"3", b'{"results"', None])
def test_a_group_whose_file_says_nothing_is_not_done(tmp_path, monkeypatch, content):
    told = tmp_path / "group.json"
    told.mkdir() if content is None else told.write_bytes(content)
    monkeypatch.setattr(grouping, "done_file", lambda study, name: told)
    assert not grouping.is_done("quick", "whatever")


@pytest.mark.parametrize("name", ["status", "seconds", "bytes", "key", "sha256", "precision"])
def test_done_files_are_believed_whole_or_not_at_all(whole, name):
    run, result, weights = whole
    path = store.run_folder(run.key) / "done.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {name: [3]}))
    assert store.state(run.key) == "missing" and list(kept.ls()["state"]) == ["missing"]
    del told["seal"]  # as it was before there were seals
    path.write_text(json.dumps(told))
    assert store.state(run.key) == "done"
    assert is_same(run, result, weights)


def test_a_run_of_another_key_is_not_taken_for_this_one(whole):
    run, *_ = whole
    other = replace(run, seed=1)
    shutil.copytree(store.run_folder(run.key), store.run_folder(other.key))
    assert store.state(other.key) == "missing" and store.read(other.key) is None
    told = store.run_folder(other.key) / "done.json"
    said = json.loads(told.read_text()) | {"key": other.key}
    del said["seal"]
    told.write_text(json.dumps(said))
    assert store.read(other.key) is None and any(run.key in why for why in kept.verify())
    assert fit.fit(other).attrs["key"] == other.key


@pytest.mark.parametrize("content", [b"", b"\xff{", b"{}", b"[]", b"3", b'{"schema": "result/2"}'])
def test_a_run_whose_file_says_nothing_counts_as_missing_for_whoever_asks(whole, content):
    run, result, weights = whole
    (store.run_folder(run.key) / "done.json").write_bytes(content)
    assert store.state(run.key) == "missing" and store.facts(run.key) == {}
    assert store.read(run.key) is None and not store.complete(run.key)
    assert set(kept.ls()["state"]) == {"missing"}
    assert is_same(run, result, weights)


@pytest.mark.parametrize("how", CASES)
def test_drawn_images_that_are_not_whole_are_drawn_again(whole, how):
    run, *_ = whole
    before = store.checksum(tasks.load(run.data))
    damage(tasks.drawn_path(run.data), how)
    assert store.checksum(tasks.load(run.data)) == before
    assert not dict(kept.verify())


# --- a study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A study of two runs: its groups, records and collected results, and its page's stamp."""
    place = tmp_path_factory.mktemp("study")
    folder = place / "home" / "params" / "made_up"
    folder.mkdir(parents=True)
    knobs = {**KNOBS, "seeds": 1, "inits": ["random"]}
    (folder / "common.yml").write_text(json.dumps(knobs))
    (folder / "performance.yml").write_text('{"study": "made_up"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "HOME", place / "home")
        patch.setenv("TRANSFUSION_CACHE", str(place / "cache"))
        grouping.groups.cache_clear()
        for name in grouping.groups("made_up"):
            grouping.compute("made_up", name)
        collect()
        grouping.groups.cache_clear()
    return place


def collect():
    found = studies.collect("performance", **params.knobs("made_up", "performance"))
    return store.checksum(found.drop_vars("seconds", errors="ignore"))


@pytest.fixture
def study(computed, cache, monkeypatch):
    shutil.copytree(computed / "cache", cache)
    monkeypatch.setattr(store, "HOME", computed / "home")
    return cache


OF_STUDY = (
    "collected/made_up/performance.zarr",
    "collected/made_up/performance.zarr/zarr.json",
    "collected/made_up/manifest.csv",
    "collected/made_up/.lock",
    "results/made_up/zarr.json",
    "results/made_up/*-*/zarr.json",
    "results/made_up/*-*/c/0",
    "results/made_up/task-*",
    "groups/made_up/*.json",
    "groups/made_up/*.log",
)


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("name", OF_STUDY)
def test_whatever_of_a_study_is_damaged_its_results_are_what_they_were(study, name, how):
    expected = collect()
    for path in sorted(study.glob(name))[:1] or [study / name.replace("*", "x")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        damage(path, how)
    for group in grouping.groups("made_up"):
        if not grouping.is_done("made_up", group):
            store.discard(grouping.done_file("made_up", group))
            grouping.compute("made_up", group)
        assert grouping.is_done("made_up", group)
    assert collect() == expected
    if dict(kept.verify()):  # what is collected did not need it
        store.discard(study / "collected")
        assert collect() == expected
    assert not dict(kept.verify())
    assert status.status("made_up").loc["all", "done"] == len(
        params.specs("made_up", "performance")
    )


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("name", ["performance.ipynb", "performance.json"])
def test_a_page_that_is_not_whole_is_rendered_again(study, tmp_path, monkeypatch, name, how):
    monkeypatch.setattr(render, "BUILD", tmp_path / "_build")
    written = []

    def rendered(notebook, parameters, target):
        written.append(target)
        with store.atomic(target) as temporary:
            temporary.write_text("{}")

    monkeypatch.setattr(render, "render", rendered)
    render.chapter("made_up", "performance")
    page = batch.Job("chapter", "performance", render.executed("made_up", "performance"))
    assert not batch._stale("made_up", [page])
    damage(page.file.with_name(name), how)
    if how == "a link elsewhere":
        assert not batch._stale("made_up", [page])
        return
    assert batch._stale("made_up", [page])
    batch._remove_stale("made_up", [page])
    assert not page.file.exists() and not page.file.is_symlink()
    render.chapter("made_up", "performance")
    assert not batch._stale("made_up", [page]) and len(written) == 2


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("name", ["made_up.log", "made_up.lock"])
def test_the_log_and_the_lock_of_a_study_may_be_anything(study, name, how):
    with batch._alone("made_up"):
        pass
    path = study / "groups" / name
    path.touch()
    damage(path, how)
    with batch._alone("made_up"), batch._log("made_up").open("a") as log:
        log.write("goes on")


@pytest.mark.parametrize("how", CASES)
def test_a_journal_of_a_dead_process_may_be_anything(cache, how):
    path = cache / ".processes" / ("0" * 32)
    path.parent.mkdir(parents=True)
    path.write_text('"a.tmp"\n')
    damage(path, how)
    files.close_journal()
    store.write_json(cache / "a.json", 1)
    assert (cache / "a.json").read_text() == "1\n"
