"""Every verb killed at random and given again, each second time to other code: nothing is lost,
nothing changed, and nothing stays but what the last start needs."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from transfusion import config, files, provenance, records, store, studies
from transfusion.boxes import box, pack, work
from transfusion.images import ingest, tasks
from transfusion.networks import models, weights
from transfusion.similarity import activations, comparison
from transfusion.studies import cache as kept
from transfusion.studies import grouping, params, render
from transfusion.training import fit

from .conftest import KNOBS, ROOT

KILLS = int(os.environ.get("TRANSFUSION_KILLS", 20))  # of each verb, that come before its end


@pytest.fixture
def place(tmp_path, monkeypatch, photographs):
    """A cache that has all that any verb begins with, kept beside so that it can be had again."""
    monkeypatch.setattr(store, "HOME", tmp_path / "home")
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(activations, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(activations, "BATCH", 16)
    monkeypatch.setattr(render, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(render, "ENGINE", "here")
    folder = tmp_path / "home" / "params" / "made_up"
    folder.mkdir(parents=True)
    (folder / "common.yml").write_text(json.dumps({**KNOBS, "seeds": 1, "inits": ["random"]}))
    (folder / "performance.yml").write_text('{"study": "made_up"}')
    shutil.copy(ROOT / "LICENSE", tmp_path / "home")
    torch.save(models.build("cbr_tiny", outputs=2).state_dict(), tmp_path / "weights.pth")
    return tmp_path


IMAGES = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
RECIPE = config.Optim(steps=12, batch=16, evaluations=6)
RUN = config.Run(data=IMAGES, model="cbr_tiny", init=config.Init(), optim=RECIPE)
COMPARED = config.Comparison(runs=(RUN, replace(RUN, seed=1)), images=40, positions=4, neurons=8)


def two_runs(place):
    for run in COMPARED.runs:
        fit.fit(run)


def a_study(place):
    for name in grouping.groups("made_up"):
        grouping.compute("made_up", name)


def a_box(place):
    pack.pack(["made_up"], place / "box")


def records_from_elsewhere(place):
    a_study(place)
    shutil.copytree(store.root() / "results", place / "sent")
    shutil.rmtree(store.root())


def knobs():
    return params.knobs("made_up", "performance")


def captured(place):
    net = models.build("cbr_tiny", outputs=2, seed=0)
    tree = activations.capture(net, tasks.load(IMAGES), place / "kept.zarr")
    return [store.checksum(node.to_dataset().load()) for node in tree.children.values()]


def collected(place):
    found = studies.collect("performance", **knobs())
    return store.checksum(found.drop_vars("seconds", errors="ignore"))


def recorded():
    """What the records of the study hold, but for what they cost and by which code."""
    folder = store.records_folder("made_up")
    return {name: place.header["data"] for name, place in records.index(folder).items()}


def pruned(place):
    kept.prune([COMPARED.runs[1].key])
    return store.state(RUN.key), store.state(COMPARED.runs[1].key), store.complete(RUN.key)


def worked(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "box")
        work.work(place / "box", 2.0, jobs=1, out=place / "back")
    return {name: p.header["data"] for name, p in records.index(place / "back").items()}


def merged(place):
    box.merge([place / "sent"])
    return recorded()


def rendered(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            sys.modules, "__main__", sys.modules["__main__"]
        )  # IPython puts another there
        render.chapter("made_up", "performance")
    assert render.is_fresh("made_up", "performance")
    return json.loads(render.executed("made_up", "performance").read_text())["nbformat"]


def ingested(place):
    name = ingest.ingest("mine", size=32, folder=place / "photographs")
    return name, store.checksum(tasks.load(config.Data(name=name, size=32)))


def imported(place):
    name = weights.import_weights("cbr_tiny", place / "weights.pth")
    return name, {n: float(t.double().sum()) for n, t in weights.named_weights(name).items()}


VERBS = {
    "data": (None, ingested),
    "weights": (None, imported),
    "train": (None, lambda place: store.checksum(fit.fit(RUN, checkpoint_seconds=0))),
    "comparison": (two_runs, lambda place: store.checksum(comparison.compare(COMPARED))),
    "capture": (None, captured),
    "save": (a_study, collected),
    "prune": (two_runs, pruned),
    "merge": (records_from_elsewhere, merged),
    "page": (a_study, rendered),
    "work": (a_box, worked),
}


def forked(work, place, code):
    """Start a process that does the work under code of this name; its pid."""
    child = os.fork()
    if child:
        return child
    try:
        provenance.identity.cache_clear()
        if code:
            provenance.identity = lambda: code
            provenance.identity.__wrapped__ = provenance.identity
        work(place)
        files.close_journal()
        os._exit(0)
    finally:
        os._exit(1)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_behind(place):
    names = (str(p) for folder in (store.root(), place) for p in folder.rglob(".*.*"))
    return [name for name in names if name.endswith((".tmp", ".old"))]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_killed_and_given_again_has_done_what_it_does(place, verb, rng):
    before, work = VERBS[verb]
    if before:
        before(place)
    files.close_journal()
    untouched = place / "untouched"
    shutil.copytree(place, untouched, symlinks=True, ignore=shutil.ignore_patterns("untouched"))

    def afresh():
        for path in place.iterdir():
            if path != untouched:
                store.discard(path)
        shutil.copytree(untouched, place, symlinks=True, dirs_exist_ok=True)

    expected, struck = work(place), 0
    files.close_journal()
    afresh()
    start = time.monotonic()
    assert ended(forked(work, place, None)) == 0
    took = time.monotonic() - start
    for number in range(20 * KILLS):
        if struck == KILLS:
            break
        files.close_journal()
        afresh()
        child = forked(work, place, None)
        time.sleep(rng.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        struck += ended(child) == -signal.SIGKILL
        assert ended(forked(work, place, "other" if number % 2 else None)) == 0
        assert work(place) == expected
        assert not left_behind(place) and not dict(kept.verify())
    assert struck == KILLS
