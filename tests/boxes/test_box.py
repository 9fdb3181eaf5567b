"""A study that travels: packed, computed elsewhere, brought home, and whatever may go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from transfusion import cli, config, records, store, studies
from transfusion.boxes import box, crew, outbox, pack, work
from transfusion.experiments import plan
from transfusion.images import ingest, tasks
from transfusion.studies import grouping, params, schedule
from transfusion.training import fit

from ..conftest import KNOBS, ROOT

SMALL = {**KNOBS, "seeds": 1, "images": 40, "positions": 4, "neurons": 8}


@pytest.fixture
def study(cache, tmp_path, monkeypatch):
    """A study of three runs, four baselines and a comparison, in a folder of its own."""
    monkeypatch.setattr(store, "HOME", tmp_path)
    shutil.copy(ROOT / "LICENSE", tmp_path)
    folder = tmp_path / "params" / "made_up"
    folder.mkdir(parents=True)
    compared = {name: SMALL[name] for name in ("images", "positions", "neurons")}
    common = {name: value for name, value in SMALL.items() if name not in compared}
    (folder / "common.yml").write_text(json.dumps(common))
    (folder / "performance.yml").write_text("{study: made_up}")
    (folder / "representations.yml").write_text(json.dumps({"study": "made_up"} | compared))
    return cache


@pytest.fixture
def packed(study, tmp_path):
    pack.pack(["made_up"], tmp_path / "box")
    return tmp_path / "box"


def called(place, out, minutes=2.0, **environment):
    """`work` as a machine calls it that has nothing but the box."""
    command = [sys.executable, "-m", "transfusion", "work", ".", "--jobs", "1"]
    command += ["--minutes", str(minutes), "--out", str(out)]
    clean = {n: v for n, v in os.environ.items() if n != "TRANSFUSION_CACHE"}
    return subprocess.Popen(
        command,
        cwd=place,
        env={**clean, "PYTHONPATH": str(place), **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def keys(out):
    facts = [place.header["facts"] for place in records.index(out).values()]
    return {told["key"] for told in facts if told["kind"] in records.COMPUTED}


def collected():
    chapters = ("performance", "representations")
    return {c: studies.collect(c, **params.knobs("made_up", c)) for c in chapters}


def test_what_a_box_brings_home_is_what_would_have_been_computed_here(
    packed, tmp_path, monkeypatch
):
    out = tmp_path / "back"
    ended = called(packed, out)
    said = ended.communicate()[1]
    assert ended.returncode == 0, said
    entries = box.read(packed)
    assert keys(out) == {entry.spec.key for entry in entries} and len(entries) == 8
    kinds = Counter(type(entry.spec).__name__ for entry in entries)
    assert kinds == {"Run": 3, "Baseline": 4, "Comparison": 1}
    assert "8 finished, 8 kept in" in said and (out / "log.txt").read_text()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8 and max(path.stat().st_size for path in files) < 16e6
    found = box.merge([out])
    assert len(found.added) == 8 and not found.refused and len(found.weights) == 1
    again = box.merge([out])
    assert not again.added and sorted(again.there) == sorted(found.added)
    source = next(e.spec for e in entries if e.spec.seed == plan.SOURCE_SEED)
    run = next(e.spec for e in entries if getattr(e.spec, "init", config.Init()).source)
    brought = fit.source_state(run.init)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "compute", None)  # nothing is trained for the pages
        home = collected()
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    schedule.compute_here([entry.spec for entry in entries], "made_up")
    for chapter, dataset in collected().items():
        xr.testing.assert_identical(dataset.drop_attrs(), home[chapter].drop_attrs())
    here = fit.source_state(config.Init(name="transfer", source=source))
    assert all(torch.equal(brought[name], here[name]) for name in here)


@pytest.mark.slow
def test_kill_9_at_ten_moments_loses_no_finished_record(cache, tmp_path):
    """The smoke study, killed at moments that grow with what is left of it."""
    packed, out, rng = tmp_path / "box", tmp_path / "back", np.random.default_rng(0)
    pack.pack(["smoke"], packed)
    print("\nkilled after [s]  records kept  of these lost or changed")
    for _ in range(10):
        before, moment = contents(out), float(rng.uniform(8, 22))
        process = called(packed, out)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        after = contents(out)
        lost = [name for name, value in before.items() if after.get(name) != value]
        print(f"{moment:16.1f}{len(after):14d}{len(lost):26d}")
        assert not lost
    assert after, "each call was killed before its first run ended"
    last = called(packed, out)
    assert last.communicate() and last.returncode == 0
    assert keys(out) == {entry.spec.key for entry in box.read(packed)}


def contents(out):
    if not out.exists():
        return {}
    return {name: facts for name, facts in outbox.held(out).items() if facts["kind"] != "Weights"}


def test_workers_end_with_whoever_started_them(packed, tmp_path):
    process = called(packed, tmp_path / "back", minutes=1)
    while process.poll() is None and not psutil.Process(process.pid).children():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # ends when the last that holds its pipe has ended
    assert process.returncode == -signal.SIGKILL


# --- what is refused, in words ---------------------------------------------------------------


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_that_are_none(packed, tmp_path, minutes):
    with pytest.raises(ValueError, match="expected the time to compute in"):
        work.work(packed, minutes, tmp_path / "back")


def test_a_box_of_other_code(packed, tmp_path):
    module = packed / "transfusion" / "statistics" / "metrics.py"
    module.write_text(module.read_text() + "\n# another line\n")
    ended = called(packed, tmp_path / "back")
    said = ended.communicate()[1]
    assert ended.returncode == 1 and "Traceback" not in said
    assert "not the one that the box was packed with" in said and "copy it again" in said


def test_no_box_and_half_a_box(packed, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with box.json"):
        box.read(tmp_path / "nowhere")
    told = (packed / "box.json").read_text()
    for other in (
        "{",
        "{}",
        "[]",
        told.replace('"code"', '"cod2"'),
        told.replace("0.001", "0.002"),
    ):
        (packed / "box.json").write_text(other)
        with pytest.raises(ValueError, match="is not what `pack` wrote"):
            box.read(packed)


def test_records_of_another_study_are_not_mixed_in(packed, tmp_path):
    record = xr.Dataset(attrs={"kind": "Run", "key": "0" * 12, "study": "retina"})
    outbox.add(tmp_path / "back", [record])
    with pytest.raises(ValueError, match=r"records of other studies \(retina\)"):
        work.work(packed, 1.0, tmp_path / "back")


def test_a_baseline_that_came_back_is_not_computed_again(packed, study, tmp_path, monkeypatch):
    """A second call at the same folder, the box's own cache being gone, goes on with the rest."""
    entries = box.read(packed)
    done = [entry.spec for entry in entries if isinstance(entry.spec, config.Baseline)]
    out = tmp_path / "back"
    schedule.compute_here(done)
    for spec in done:
        outbox.add(out, records.made_of("made_up", spec, store.read(spec.key)))
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "other"))
    todo = work._unpack(packed, entries, out, print)
    left = {key for key, task in todo.items() if not isinstance(task, config.Data)}
    assert left == {e.spec.key for e in entries} - {spec.key for spec in done}


def test_a_box_begins_with_the_first_repetition_of_every_fold(study, tmp_path):
    folder = store.HOME / "params/made_up"
    common = json.loads((folder / "common.yml").read_text()) | {"folds": 3, "seeds": 2}
    (folder / "common.yml").write_text(json.dumps(common))
    grouping.groups.cache_clear()
    made = pack.pack(["made_up:performance"], tmp_path / "box")
    asked = [e.spec for e in made.entries if e.spec.seed != plan.SOURCE_SEED]
    places = [(spec.seed, spec.data.fold) for spec in asked]
    assert places == sorted(places) and len(set(places)) == 6
    told = {pack._named(spec).partition(" ")[2] for spec in asked}
    assert {"baseline thumbnail fold 2", "baseline frozen cbr_tiny transfer fold 1"} < told
    assert "cbr_tiny random fold 2 seed 1" in told


def test_two_at_one_box_or_at_one_folder(packed, tmp_path, monkeypatch):
    with (tmp_path / "log.txt").open("a") as log, (tmp_path / "log.txt").open("a") as other:
        with work._held(log), pytest.raises(ValueError, match="another `work` writes to"):
            with work._held(other):
                pass
    monkeypatch.setenv("TRANSFUSION_CACHE", str(packed / "cache"))
    (packed / "cache").mkdir()
    with work._alone(), pytest.raises(ValueError, match="another `work` is at this box"):
        work.work(packed, 1.0, tmp_path / "back")


def test_a_folder_of_other_things_is_no_outbox(packed, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds other things \(chapter.txt\)"):
        work.work(packed, 1.0, tmp_path / "thesis")
    with pytest.raises(NotADirectoryError, match="is a file"):
        work.work(packed, 1.0, tmp_path / "thesis/chapter.txt")


def record_of(run, study="made_up", **facts):
    said = {"step": [1], "auc": ("step", np.zeros(1, "f4"))}
    told = {"kind": "Run", "key": run.key, "study": study, "spec": config.dump(run)}
    told |= {"schema": config.SCHEMA, "status": "done", "seconds": 1.0, "commit": "another"}
    return xr.Dataset(said, attrs=told | facts)


def test_what_merge_refuses_it_names_and_takes_the_rest(study, tmp_path, tiny_run, capsys):
    runs = [tiny_run(seed=seed) for seed in range(5)]
    made = [
        record_of(runs[0]),
        record_of(runs[1], schema=1),
        record_of(runs[2], study="nowhere"),
        record_of(runs[3], key="0" * 12),
        record_of(runs[4]),
    ]
    out = tmp_path / "back"
    outbox.add(out, made)
    found = box.merge([out])
    assert set(found.added) == {runs[0].key, runs[4].key} == set(found.other_code)
    reasons = " | ".join(found.refused.values())
    assert "schema 1, expected" in reasons and "unknown study 'nowhere'" in reasons
    assert "not that of its specification" in reasons
    assert cli.main(["merge", str(out)]) == 1
    said = capsys.readouterr()
    assert "0 records added, 2 were there already" in said.out and "3 records refused" in said.err


def test_damaged_weights_are_named_and_stop_nothing_else(study, tmp_path, tiny_run):
    source = tiny_run()
    fit.fit(source)
    out = tmp_path / "back"
    outbox.add(out, records.made_of("made_up", source, store.read(source.key)))
    assert outbox.add_weights(out, box.weights_records("made_up", source.key))
    store.discard(store.run_folder(source.key))
    chunk = out / "part-2/c/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1000])
    found = box.merge([out])
    assert found.added == [source.key] and not found.weights
    assert f"weights of {source.key}" in found.refused
    assert box.bring_weights(out).keys() == {source.key}, "and `work` goes on"
    chunk.write_bytes(whole)
    assert box.merge([out]).weights == [source.key] and store.complete(source.key)


def test_what_two_studies_of_a_box_share_comes_to_both(study, tmp_path, tiny_run):
    """Runs of one seed start from the same filters, whatever they learn: a box has them once."""
    other = tmp_path / "params/other"
    other.mkdir()
    (other / "common.yml").write_text("{}")
    runs, out = [tiny_run(), tiny_run(steps=2)], tmp_path / "back"
    for run, name in zip(runs, ("made_up", "other"), strict=True):
        fit.fit(run)
        outbox.add(out, records.made_of(name, run, store.read(run.key)))
    found = box.merge([out])
    assert not found.refused and set(found.added) == {run.key for run in runs}
    kept = records.whole(store.records_folder("other"), runs[1].key)
    expected = store.read(runs[1].key)
    xr.testing.assert_equal(kept["first_before"], expected["first_before"])


def test_a_run_whose_task_was_refused_is_refused(study, tmp_path, tiny_run):
    run = tiny_run()
    fit.fit(run)
    made = records.made_of("made_up", run, store.read(run.key))
    out = tmp_path / "back"
    outbox.add(out, [record for record in made if record.attrs["kind"] != "task"])
    assert "what it shares is not there" in box.merge([out]).refused[run.key]


def test_networks_of_a_comparison_are_trained_in_the_box(study, tmp_path):
    """Their weights are here, and do not travel; so a box with the comparison alone has them."""
    schedule.compute_here(params.specs("made_up", "performance"), "made_up")
    made = pack.pack(["made_up:representations"], tmp_path / "box")
    *_, comparison = params.specs("made_up", "representations")
    assert [entry.spec for entry in made.entries] == [*comparison.runs, comparison]
    assert len(list((tmp_path / "box/sources").iterdir())) == 1


def test_one_byte_changed_on_the_way_is_refused(study, tmp_path, tiny_run):
    out = tmp_path / "back"
    outbox.add(out, [record_of(tiny_run())])
    described = out / "part-0/zarr.json"
    described.write_text(described.read_text().replace('"seconds": 1.0', '"seconds": 2.0'))
    found = box.merge([out])
    assert not found.added and "description" in " ".join(found.refused.values())


def test_merge_of_what_holds_no_records(study, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected what `transfusion work` wrote"):
        box.merge([tmp_path / "empty"])


def test_records_of_another_clone_come_by_merge(study, tmp_path, tiny_run):
    clone = tmp_path / "clone/data_cache/results"
    records.append(clone / "made_up", record_of(tiny_run()))
    found = box.merge([clone])
    assert found.added == [tiny_run().key] and not found.refused
    assert records.is_whole(store.records_folder("made_up"), tiny_run().key)


def test_what_records_share_comes_along_though_its_name_is_a_later_one(study, tmp_path, tiny_run):
    """`task-...` and `start-...` come after every key."""
    run = tiny_run()
    clone = tmp_path / "clone"
    for record in records.made_of("made_up", run, fit.fit(run)):
        records.append(clone, record)
    found = box.merge([clone])
    assert found.added == [run.key] and not found.refused
    kept = records.whole(store.records_folder("made_up"), run.key)
    assert "test_target" in kept and "first_before" in kept


# --- images, weights, sizes ------------------------------------------------------------------


def test_images_travel_without_loss_or_say_that_they_lost(cache, photographs, tmp_path):
    images = ingest.prepare("mine", size=32, folder=photographs)
    box.pack_images(images, tmp_path / "whole.npz")
    xr.testing.assert_identical(box.unpack_images(tmp_path / "whole.npz"), images)
    box.pack_images(images, tmp_path / "lossy.npz", lossy=50)
    lossy = box.unpack_images(tmp_path / "lossy.npz")
    assert lossy.attrs["lossy"] == 50 and not lossy.pixels.equals(images.pixels)
    assert (tmp_path / "lossy.npz").stat().st_size < (tmp_path / "whole.npz").stat().st_size
    xr.testing.assert_equal(lossy.drop_vars("pixels"), images.drop_vars("pixels"))


def test_a_run_on_lossy_images_says_so(cache, photographs, tmp_path, tiny_run):
    images = ingest.prepare("mine", size=32, folder=photographs)
    name = images.attrs["name"]
    box.pack_images(images, tmp_path / "lossy.npz", lossy=50)
    store.write_zarr(box.unpack_images(tmp_path / "lossy.npz"), tasks.prepared_path(name, 32))
    run = replace(tiny_run(batch=8), data=config.Data(name=name, size=32))
    assert fit.fit(run).attrs["lossy"] == 50


def test_weights_travel_in_half_precision_where_that_is_exact(cache, tmp_path, rng):
    exact = torch.from_numpy(rng.normal(size=(64, 32)).astype("f2")).float()
    state = {"exact": exact, "not": torch.randn(64, 32), "count": torch.tensor([3])}
    path = store.weights_file("made@0")
    path.parent.mkdir(parents=True)
    save_file(state, path)
    digest = store.checksum(path)[:12]
    path.rename(store.weights_file(f"made@{digest}"))
    box.pack_weights(f"made@{digest}", tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as held:
        assert held["exact"].dtype == np.float16 and held["not"].dtype == np.float32
    store.weights_file(f"made@{digest}").unlink()
    box.unpack_weights(f"made@{digest}", tmp_path / "w.npz")
    found = load_file(store.weights_file(f"made@{digest}"))
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_is_recorded_is_not_packed_and_a_source_travels_as_its_weights(study, tmp_path):
    every = grouping.everything(params.specs("made_up", "performance"))
    (source,) = [spec for spec in every if spec.seed == plan.SOURCE_SEED]
    schedule.compute_here([source], "made_up")
    made = pack.pack(["made_up"], tmp_path / "box")
    assert source.key not in {entry.spec.key for entry in made.entries}
    assert (tmp_path / f"box/sources/{source.key}/weights-{source.key}-0").is_dir()
    assert 2e6 < made.size < 4e6, "CBR-Tiny in half precision and the library"
    schedule.compute_here(params.specs("made_up", "performance"), "made_up")
    schedule.compute_here(params.specs("made_up", "representations"), "made_up")
    with pytest.raises(ValueError, match="nothing to pack"):
        pack.pack(["made_up"], tmp_path / "box")


def test_what_does_not_fit_is_left_out_from_the_end_and_listed(study, tmp_path):
    whole = pack.pack(["made_up"], tmp_path / "whole")
    assert not whole.left_out and "left out" not in pack.told(whole, tmp_path)
    made = pack.pack(["made_up"], tmp_path / "box", limit=f"{whole.size - 1}")
    assert made.size < whole.size
    assert made.entries == whole.entries[: len(made.entries)] and made.left_out
    assert made.entries + made.left_out == whole.entries
    said = pack.told(made, tmp_path)
    assert made.left_out[-1].spec.key in said and "an H200" in said and "AVX2" in said
    with pytest.raises(ValueError, match="expected a size such as 60MB"):
        pack.pack(["made_up"], tmp_path / "box", limit="much")
    with pytest.raises(ValueError, match="not even the first run fits"):
        pack.pack(["made_up"], tmp_path / "box", limit="1kB")


def test_chapters_are_packed_in_the_order_in_which_they_are_named(study, tmp_path):
    made = pack.pack(["made_up:representations", "made_up"], tmp_path / "box")
    first = {spec.key for spec in grouping.everything(params.specs("made_up", "representations"))}
    keys = [entry.spec.key for entry in made.entries]
    assert set(keys[: len(first)]) == first and len(keys) == len(set(keys)) > len(first)
    with pytest.raises(ValueError, match="unknown chapter of made_up 'figures'"):
        pack.pack(["made_up:figures"], tmp_path / "box")


def test_a_folder_of_other_things_is_left_alone(study, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other things than a box"):
        pack.pack(["made_up"], tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.txt").exists()


def test_the_outbox_keeps_to_eight_files_and_takes_no_weights_that_crowd_out_records(tmp_path):
    large = xr.Dataset({"w": ("n", np.zeros(outbox.LARGEST - 100_000, np.uint8))})
    parts = [large.assign_attrs(kind="Weights", key=f"weights-a-{i}") for i in range(3)]
    assert not outbox.add_weights(tmp_path, parts)
    assert outbox.add_weights(tmp_path, parts[:2])
    small = [xr.Dataset(attrs={"kind": "Run", "key": f"{i:012x}"}) for i in range(3)]
    outbox.add(tmp_path, small)
    assert len(outbox.held(tmp_path)) == 5
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 7, "and a log"
    outbox.add(tmp_path, [large.assign_attrs(kind="Run", key="e" * 12)])
    with pytest.raises(outbox.Full, match="merge it"):
        outbox.add(tmp_path, [large.assign_attrs(kind="Run", key="f" * 12)])


# --- who computes what, and when not ---------------------------------------------------------


class Process:
    killed = False

    def kill(self):
        self.killed = True


@pytest.fixture
def made(tiny_run):
    """A crew of made-up workers on runs of their own: `made(jobs, steps, ...)`."""

    def crew_of(jobs, *steps, **options):
        runs = [tiny_run(seed=i, steps=n, evaluations=1) for i, n in enumerate(steps)]
        entries = [box.Entry("made_up", run, None) for run in runs]
        todo = {run.key: run for run in runs}
        options = {"jobs": jobs, "most": jobs, **options}
        return runs, crew.Crew(entries, todo, lambda _: None, lambda _: None, **options)

    return crew_of


def at_work(of, run):
    worker = crew.Worker(Process(), None, task=of.todo.pop(run.key), begun=time.monotonic())
    of.workers.append(worker)
    return worker


def test_nothing_is_begun_that_cannot_end_in_time(made):
    (long, short), of = made(1, 100, 4, deadline=time.monotonic() + 60)
    assert crew._next(of) == long.key, "nothing was measured: it is tried"
    of.rates[crew._kind(short)] = schedule.cost(long) / 100  # it would take 100 s
    assert crew._next(of) == short.key
    of.rates[crew._kind(short)] = schedule.cost(short) / 61
    assert crew._next(of) is None


def test_a_run_given_up_is_left_for_the_next_call(made):
    (run, other), of = made(1, 100, 4)
    worker = at_work(of, run)
    worker.begun -= 10
    crew._reached(of, worker, 25, 10.0)
    crew._gave_up(of, worker)
    assert run.key in of.todo and crew._next(of) == other.key
    assert of.rates[crew._kind(run)] == pytest.approx(schedule.cost(run) / 40, rel=0.01)


def test_memory_runs_out_fewer_processes_then_smaller_batches_then_the_run_is_marked(made):
    (run, *_), of = made(2, 8, 8)
    for jobs, batch in [(1, 256), (1, 128), (1, 64), (1, 32)]:
        crew._out_of_memory(of, at_work(of, run), "out of memory")
        assert (of.jobs, of.batch) == (jobs, batch) and next(iter(of.todo)) == run.key
    worker = at_work(of, run)
    crew._out_of_memory(of, worker, "out of memory")
    assert of.broken == {run.key: "out of memory"} and worker.process.killed


def test_a_killed_worker_is_tried_once_more_and_what_needs_its_run_is_named(made, tiny_run):
    (run,), of = made(1, 8)
    after = tiny_run(init=config.Init(name="transfer", source=run))
    of.todo[after.key] = after
    crew._killed(of, at_work(of, run), "killed")
    assert not of.broken and next(iter(of.todo)) == run.key
    crew._killed(of, at_work(of, run), "killed")
    assert of.broken == {run.key: "killed", after.key: f"needs {run.key}"} and not of.todo


def test_more_processes_as_long_as_they_are_faster_together(made):
    runs, of = made(1, *[8] * 8, most=8)
    at_work(of, runs[0])
    rates = {1: 1.0, 2: 1.9, 4: 2.0}

    def measured():
        for worker in of.workers:
            worker.begun, worker.step = time.monotonic(), 4
            share = rates[of.jobs] / of.jobs
            worker.seconds = 1000.0 / share
            of.settled = (time.monotonic(), of.settled[1])

    for jobs in (2, 4, 4):
        measured()
        crew.more_workers(of)
        assert of.jobs == jobs
        for run in runs[len(of.workers) : of.jobs]:
            at_work(of, run)
    assert of.most == 4


def test_a_worker_that_was_killed_while_it_waited_costs_nothing(made):
    class Broken:
        def send(self, _):
            raise BrokenPipeError

    (run,), of = made(1, 8)
    worker = crew.Worker(Process(), Broken())
    of.workers.append(worker)
    crew.assign(of)
    assert not of.workers and next(iter(of.todo)) == run.key and not of.broken


def test_a_full_disk_stops_all_with_a_word(made):
    (run,), of = made(1, 8)
    with pytest.raises(OSError, match="free space and call again"):
        crew._cannot_write(of, at_work(of, run), "No space left on device")
