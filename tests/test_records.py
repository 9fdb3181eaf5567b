"""Records: whole or not there, each once, whoever writes them."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
import zarr
from transfusion import config, experiments, files, machine, records, store, studies
from transfusion.statistics import metrics
from transfusion.studies import cache, collected, params, schedule, status
from transfusion.training import fit

from .conftest import KNOBS, results_of


def made(key, size=50, **facts):
    """A made-up record of random logits."""
    rng = np.random.default_rng(int(key, 16))
    values = {
        "test_logit": (("test_image", "logit"), rng.normal(size=(size, 2)).astype(np.float16)),
        "auc": ("step", rng.random(3).astype(np.float32)),
    }
    coords = {"step": [1, 2, 3]}
    return xr.Dataset(values, coords, {"kind": "Run", "key": key, "status": "done", **facts})


@pytest.mark.parametrize("study", ["cells", "chest"])
def test_what_is_in_git_keeps_its_key(study):
    """Wherever code lies and whatever fields specifications get, or results would be lost."""
    facts = [each for each in records.facts(study).values() if "spec" in each]
    specs = [config.load({**each["spec"], "kind": each["kind"]}) for each in facts]
    assert [spec.key for spec in specs] == [each["key"] for each in facts] and len(specs) > 100


def keys(count):
    return [f"{number:012x}" for number in range(count)]


def test_a_record_comes_back_as_it_was(tmp_path):
    record = made("1").assign_coords(block=("block", ["conv1", "block1"]))
    record = record.assign(names=("block", ["a", "é"]), none=("empty", np.zeros(0, np.int16)))
    assert records.append(tmp_path, record)
    xr.testing.assert_identical(records.read(tmp_path, "1"), record)
    assert records.read(tmp_path, "1").auc.dtype == np.float32
    with pytest.raises(FileNotFoundError, match="no record '2'"):
        records.read(tmp_path, "2")


def test_a_study_is_a_zarr_group_that_any_reader_opens(tmp_path):
    records.append(tmp_path, made("1"))
    group = zarr.open_group(tmp_path, mode="r")
    (name,) = group.array_keys()
    (header,) = group[name].attrs["records"]
    assert name == header["name"] == "1" and header["facts"]["status"] == "done"
    assert header["length"] == group[name].nbytes


def append_all(folder, names):
    for name in names:
        records.append(folder, made(name))


def test_ten_processes_append_200_records_each_once_and_whole(tmp_path):
    """Every record is written by two of them, so each meets what another has written."""
    every = keys(200)
    spawn = multiprocessing.get_context("fork")
    shares = [every[i::10] + every[(i + 1) % 10 :: 10] for i in range(10)]
    writers = [spawn.Process(target=append_all, args=(tmp_path, share)) for share in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 10
    assert sorted(records.index(tmp_path)) == every
    for name in every:
        xr.testing.assert_identical(records.read(tmp_path, name), made(name))
    assert not list(tmp_path.glob(".*")), "nothing half is left"


@pytest.mark.parametrize("file", ["zarr.json", "c/0"])
def test_one_byte_changed_is_seen_wherever_it_is(tmp_path, file):
    """Byte by byte, but for the spaces of the JSON: the record is refused or says the same."""
    record = made("1", size=5)
    records.append(tmp_path, record)
    path = tmp_path / "1" / file
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 7)
        path.write_bytes(bytes(changed))
        records._index.cache_clear()
        try:
            found = records.read(tmp_path, "1")
        except (FileNotFoundError, store.Damaged):
            continue
        xr.testing.assert_identical(found, record)
    path.write_bytes(whole)


def test_a_damaged_record_is_written_again_and_a_whole_one_is_left_alone(tmp_path):
    records.append(tmp_path, made("1"))
    chunk = tmp_path / "1/c/0"
    before = chunk.stat().st_mtime_ns
    assert not records.append(tmp_path, made("1")) and chunk.stat().st_mtime_ns == before
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert not records.is_whole(tmp_path, "1")
    assert records.append(tmp_path, made("1")) and records.is_whole(tmp_path, "1")


def test_a_crash_while_a_record_is_written_leaves_none(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    records.append(tmp_path, made("1"))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(files, "_fsync", full)
        records.append(tmp_path, made("2"))
    assert list(records.index(tmp_path)) == ["1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "zarr.json"]


def test_compacted_records_are_the_same_in_few_files(cache):
    folder = store.records_folder("made_up")
    for name in keys(40):
        records.append(folder, made(name))
    before = records.vouched("made_up", keys(40))
    assert records.compact("made_up") == 3, "group, part and its chunk"
    assert records.vouched("made_up", keys(40)) == before
    for name in keys(40):
        xr.testing.assert_identical(records.read(folder, name), made(name))
    assert not records.append(folder, made("3".rjust(12, "0"))), "it is in the part"
    records.append(folder, made("ff"))
    parts = {path.name for path in records.parts(folder)}
    assert records.compact("made_up") == 5
    assert parts - {"ff"} <= {path.name for path in records.parts(folder)}, "never rewritten"


def test_a_byte_of_a_compacted_part_costs_one_record_and_is_found(cache):
    folder = store.records_folder("made_up")
    for name in keys(40):
        records.append(folder, made(name))
    records.compact("made_up")
    (part,) = records.parts(folder)
    chunk = bytearray((part / "c/0").read_bytes())
    chunk[40] ^= 1
    (part / "c/0").write_bytes(bytes(chunk))
    assert len([name for name in keys(40) if not records.is_whole(folder, name)]) == 1
    described = part / "zarr.json"
    described.write_text(described.read_text().replace('"status": "done"', '"status": "dona"', 1))
    with pytest.raises(store.Damaged, match="what it says of its records"):
        records.verify(part)


def test_60_runs_take_less_than_2_megabytes_and_12_files(cache, rng, monkeypatch):
    """Four networks on a fold of the malaria cells: 3,755 images to validate and to test."""
    monkeypatch.setattr(files, "_fsync", lambda _: None)  # for speed
    folder = store.records_folder("large")
    filters = ((32, 3, 5, 5), (32, 3, 7, 7), (32, 3, 7, 7), (64, 3, 7, 7))
    specs = trainings("performance", **OPEN, folds=5)
    for i, name in enumerate(keys(60)):
        said = {
            f"{split}_logit": ((f"{split}_image", "logit"), rng.normal(size=(3755, 1)).astype("f2"))
            for split in ("valid", "test")
        }
        first = rng.normal(size=filters[i % 4]).astype("f2")
        said["first_after"] = (("filter", "channel", "y", "x"), first)
        curve = {n: ("step", rng.random(20).astype("f4")) for n in ("auc", "auc_se", "loss")}
        attrs = {"kind": "Run", "key": name, "status": "done", "device": "cpu"}
        attrs |= {"spec": config.dump(specs[i % len(specs)]), "precision": "bfloat16"}
        coords = {"step": np.arange(20)}
        records.append(folder, xr.Dataset({**said, **curve}, coords, attrs))
    count = records.compact("large")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert count <= 12 and size < 2e6, (count, size)


# --- runs and studies ------------------------------------------------------------------------


@pytest.fixture
def study(cache, tmp_path, monkeypatch):
    """A small study whose results are there; its parameters are in a folder of its own."""
    monkeypatch.setattr(store, "HOME", tmp_path)
    folder = tmp_path / "params" / "made_up"
    folder.mkdir(parents=True)
    (folder / "common.yml").write_text(json.dumps(KNOBS))
    for chapter in ("performance", "representations", "first_layer"):
        own = {"images": 40, "positions": 4, "neurons": 8} if chapter[0] == "r" else {}
        (folder / f"{chapter}.yml").write_text(json.dumps({"study": "made_up"} | own))
    for chapter in params.chapters("made_up"):
        results_of(chapter, **params.knobs("made_up", chapter))
    return cache


CHAPTERS = ("performance", "representations", "first_layer")


def both_chapters():
    return {c: studies.collect(c, **params.knobs("made_up", c)) for c in CHAPTERS}


def test_records_alone_give_every_chapter_without_training(study, monkeypatch):
    before = both_chapters()
    for name in ("runs", "collected", "datasets"):
        shutil.rmtree(study / name)
    monkeypatch.setattr(schedule, "compute", None)
    assert set(status.status("made_up")["collected"]) == {"yes", ""}
    after = both_chapters()
    for chapter in CHAPTERS:
        xr.testing.assert_identical(after[chapter], before[chapter])
    assert not (study / "runs").exists()
    assert studies.results("made_up", "performance").identical(before["performance"])


def test_results_follow_parameters_that_have_changed(study):
    """Not those that were collected under the old ones."""
    assert list(studies.results("made_up", "performance").seed) == [0, 1]
    path = store.HOME / "params/made_up/performance.yml"
    path.write_text(json.dumps({"study": "made_up", "seeds": 1}))
    assert list(studies.results("made_up", "performance").seed) == [0]


def test_with_half_of_the_records_the_other_half_is_computed(study):
    before = both_chapters()
    specs = params.specs("made_up", "performance")
    lost = specs[::2]
    assert {type(spec) for spec in lost} == {config.Run, config.Baseline}
    for spec in lost:
        shutil.rmtree(store.records_folder("made_up") / spec.key)
    for name in ("runs", "collected", "datasets"):
        shutil.rmtree(study / name)
    missing = schedule.missing(specs, "made_up")
    todo = [task.key for task in missing if not isinstance(task, config.Data)]
    sources = {s.init.source.key for s in lost if isinstance(s.init.source, config.Run)}
    assert set(todo) == {spec.key for spec in lost} | sources
    schedule.compute_here(specs, "made_up")
    after = both_chapters()["performance"]
    timed = ["records", "runs"]
    for results in (before["performance"], after):
        for name in timed:
            del results.attrs[name]
    xr.testing.assert_identical(after, before["performance"])
    trained = {folder.name for folder in (study / "runs").iterdir()}
    assert trained == {spec.key for spec in lost} | sources


def test_a_comparison_asks_for_weights_again_and_plan_says_so(study):
    *_, comparison = params.specs("made_up", "representations")
    shutil.rmtree(store.records_folder("made_up") / comparison.key)
    assert status.plan("made_up").loc["all", "trained again"] == 0
    shutil.rmtree(study / "runs")
    plan = status.plan("made_up")
    # Its four networks, and the source that two of them start from.
    assert plan.loc["representations", "trained again"] == 5
    assert plan.loc["performance", "of these missing"] == 0 < plan.loc["all", "of these missing"]
    done = status.status("made_up").loc["performance"]
    assert done["done"] == 5 + 4 and done["to come"] == 0, "four are baselines"


def test_what_is_shown_is_computed_from_the_logits_that_are_kept(study):
    run = params.specs("made_up", "performance")[0]
    record = records.read(store.records_folder("made_up"), run.key)
    assert "test_auc" not in record and record.test_logit.dtype == np.float16
    found = collected.result("made_up", run)
    scores = metrics.probabilities(record.test_logit.values, "grades")
    target = found.test_target.values
    assert float(found.test_auc) == metrics.auc(target, scores, record.attrs["positive_from"])
    assert np.isfinite(found.auc_se).all() and found.valid_logit.shape == (32, 4)
    assert found.attrs["device"] and found.attrs["commit"] and found.attrs["seconds"] > 0


def test_targets_and_patients_are_kept_once_a_task_and_nobody_is_named(study):
    names = list(records.index(store.records_folder("made_up")))
    assert len([name for name in names if name.startswith("task-")]) == 2, "of target and source"
    (task,) = {
        shared
        for facts in records.facts("made_up").values()
        for shared in facts.get("shares", ())
        if shared.startswith("task-") and facts["train_images"] == 32
    }
    kept = records.read(store.records_folder("made_up"), task)
    assert kept.test_patient.dtype.kind == "i" and kept.test_patient[0] == 0


def test_a_changed_record_is_found_and_computed_again(study):
    run = params.specs("made_up", "performance")[0]
    chunk = store.records_folder("made_up") / run.key / "c/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + bytes([chunk.read_bytes()[-1] ^ 1]))
    assert list(cache.verify().index) == [f"results/made_up/{run.key}"]
    before = store.read_zarr(store.results_path("made_up", "performance"))
    store.discard(store.results_path("made_up", "performance"))
    after = studies.collect("performance", **params.knobs("made_up", "performance"))
    xr.testing.assert_identical(after, before)
    assert cache.verify().empty


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("kind", ["task", "start"])
def test_what_runs_share_comes_back_too(study, kind, compacted):
    before, folder = both_chapters()["performance"], store.records_folder("made_up")
    if compacted:
        records.compact("made_up")
    run = params.specs("made_up", "performance")[0]
    shares = records.facts("made_up")[run.key]["shares"]
    place = records.index(folder)[next(name for name in shares if name.startswith(kind))]
    header = dict(place.header, start=place.header["start"] + 1)  # its bytes are others
    kept = [(h, records.payload(records.Place(place.part, h))) for h in records.headers(place.part)]
    records.write_part(place.part, kept)
    described = place.part / "zarr.json"
    told = json.loads(described.read_text())
    for each in told["attributes"]["records"]:
        if each["name"] == header["name"]:
            each["start"] += 1
    described.write_text(json.dumps(told))
    records._index.cache_clear()
    store.discard(store.results_path("made_up", "performance"))
    xr.testing.assert_identical(both_chapters()["performance"], before)
    assert records.is_whole(folder, header["name"])


# --- one study on several machines -----------------------------------------------------------


@pytest.fixture
def machines(monkeypatch):
    """`machines("bfloat16")`: be a machine that is fast at it."""
    return lambda fast: monkeypatch.setattr(machine, "precision", lambda: fast)


OPEN = {**KNOBS, "precision": "any", "seeds": 1}


def trainings(chapter, **knobs):
    return [s for s in experiments.runs(chapter, **knobs) if isinstance(s, config.Run)]


def shown(result):
    """The precisions of the networks of a chapter; baselines, which have no choice, are apart."""
    told = json.loads(result.attrs["runs"])
    return {run["precision"] for run in told if not {"baseline", "probe"} & run.keys()}


def test_a_repetition_is_of_one_fold_and_what_is_compared_is_in_one(tiny_run):
    run = tiny_run()
    fold, seed, images = (
        replace(run, data=replace(run.data, folds=5, fold=1)),
        replace(run, seed=1),
        replace(run, data=replace(run.data, folds=5)),
    )
    assert len({records.repetition(spec) for spec in (run, fold, seed, images)}) == 4
    alike = [
        replace(run, model="resnet18"),
        replace(run, optim=replace(run.optim, lr=0.1)),
        replace(run, data=replace(run.data, train=16)),
        tiny_run(init=config.Init(name="transfer", source=run)),
    ]
    assert {records.repetition(spec) for spec in alike} == {records.repetition(run)}


def test_folds_may_be_computed_on_machines_of_other_precision(cache, machines):
    """As repetitions may: each is in one, and a record says of which it is."""
    runs = trainings("hybrids", **OPEN, folds=3)
    for fold, fast in ((1, "bfloat16"), (2, "float32")):
        machines(fast)
        results_of("hybrids", **OPEN, folds=3, fold=fold)
    machines("bfloat16")
    chosen = records.precisions("made_up", runs)
    assert [chosen[run.key] for run in runs] == ["bfloat16", "bfloat16", "float32"] * 2
    begun = records.begun(store.records_folder("made_up"))
    for run in runs:
        if run.data.fold:
            assert begun[records.repetition(run)] == chosen[run.key]
    assert records.repetition(runs[0]) not in begun


def test_the_key_leaves_the_precision_open_and_the_record_says_it(cache, machines):
    machines("float32")
    (run, *_) = runs = experiments.runs("performance", **OPEN)
    machines("bfloat16")
    assert [spec.key for spec in experiments.runs("performance", **OPEN)] == [r.key for r in runs]
    results_of("performance", **OPEN)
    assert records.recorded("made_up", [run]) == {run.key: f"{run.key}-bfloat16"}
    assert collected.result("made_up", run).attrs["precision"] == "bfloat16"


def test_a_begun_repetition_goes_on_in_its_precision_where_that_is_native(cache, machines):
    more = {**OPEN, "inits": ["random", "transfer", "mean_var"]}
    machines("float32")
    results_of("performance", **OPEN)
    machines("bfloat16")  # float32 is native everywhere
    runs = experiments.runs("performance", **more)
    assert set(records.precisions("made_up", runs).values()) == {"float32"}
    missing = [t for t in schedule.missing(runs, "made_up") if t in runs]
    assert [run.init.name for run in missing] == ["mean_var"]


def test_else_the_whole_repetition_is_computed_anew(cache, machines):
    more = {**OPEN, "inits": ["random", "transfer", "mean_var"], "seeds": 2}
    machines("bfloat16")
    results_of("performance", **OPEN)
    machines("float32")
    runs = trainings("performance", **more)
    assert set(records.precisions("made_up", runs).values()) == {"float32"}
    before = records.recorded("made_up", runs)
    assert len(before) == 2 and all(name.endswith("-bfloat16") for name in before.values())
    missing = [t.key for t in schedule.missing(runs, "made_up") if t in runs]
    assert set(missing) == {run.key for run in runs}
    schedule.compute_here(runs, "made_up")
    result = studies.collect("performance", **more)
    assert shown(result) == {"float32"}
    # Of the runs that are there in both, a chapter that needs no others shows one precision too.
    both = studies.collect("performance", **OPEN)
    assert len(shown(both)) == 1
    assert np.isfinite(result.test_auc).all()


def test_chapters_and_groups_of_a_study_agree_on_the_precision_of_a_repetition(cache, machines):
    """Whoever asks for some of a repetition's runs is told of all that were recorded of it."""
    few, more = OPEN, {**OPEN, "inits": ["random", "mean_var", "permuted", "batch_norm"]}
    machines("float32")
    results_of("performance", **few)
    machines("bfloat16")
    runs = experiments.runs("weight_scaling", **more)
    assert set(records.precisions("made_up", runs[1:]).values()) == {"float32"}
    results_of("weight_scaling", **more)
    facts = records.facts("made_up").values()
    trained = [told for told in facts if told["kind"] == "Run" and told["spec"]["seed"] == 0]
    assert {told["precision"] for told in trained} == {"float32"} and len(trained) == 5


def test_a_repetition_with_both_precisions_is_shown_in_one(cache, machines):
    machines("bfloat16")
    results_of("performance", **OPEN)
    machines("float32")
    (run, *_) = runs = experiments.runs("performance", **OPEN)
    store.discard(store.run_folder(run.key))
    fit.fit(run)
    records.keep("made_up", run)
    assert {f"{run.key}-{p}" for p in ("float32", "bfloat16")} <= records.facts("made_up").keys()
    result = studies.collect("performance", **OPEN)
    assert shown(result) == {"bfloat16"}
    assert schedule.missing(runs, "made_up") == []


def test_networks_of_a_comparison_are_of_one_precision(cache, machines):
    compared = {**OPEN, "seeds": 2, "images": 40, "positions": 4, "neurons": 8}
    machines("bfloat16")
    results_of("performance", **OPEN)
    machines("float32")
    result = results_of("representations", **compared)
    *_, comparison = experiments.runs("representations", **compared)
    told = {run["key"]: run["precision"] for run in json.loads(result.attrs["runs"])}
    assert told[comparison.key] == "float32"
    assert {store.facts(run.key)["precision"] for run in comparison.runs} == {"float32"}


def test_a_source_is_used_in_half_precision_wherever_it_comes_from(cache, tiny_run):
    source = tiny_run()
    fit.fit(source)
    state = fit.source_state(config.Init(name="transfer", source=source))
    again = fit.halved(state)
    assert all((again[name] == state[name]).all() for name in state)
    assert any(t.dim() == 1 and (t != t.half().float()).any() for t in state.values())


def test_a_pretraining_of_many_classes_keeps_no_scores(cache, tiny_run, monkeypatch):
    monkeypatch.setattr(fit, "SCORED", 10)
    run = tiny_run()
    result = fit.fit(replace(run, data=replace(run.data, name="objects")))
    assert "test_logit" not in result
    assert {"test_auc", "test_top1", "test_top5"} <= set(result.data_vars)
