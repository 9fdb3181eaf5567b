import json

import numpy as np
import pytest
from transfusion import config, records, store
from transfusion.studies import batch, grouping, params, schedule

from ..conftest import KNOBS, results_of

STUDIES = params.studies()


@pytest.mark.parametrize("study", STUDIES)
def test_groups_hold_each_run_once_and_chapters_fill_whole_groups(study):
    groups = grouping.groups(study)
    keys = [spec.key for group in groups.values() for spec in group.specs]
    assert len(set(keys)) == len(keys)
    for chapter in params.chapters(study):
        needed = {spec.key for spec in grouping.everything(params.specs(study, chapter))}
        for group in groups.values():
            inside = {spec.key for spec in group.specs}
            assert inside <= needed or not inside & needed, (chapter, group)
        assert needed <= set(keys)


@pytest.mark.parametrize("study", STUDIES)
def test_groups_need_one_another_in_one_direction(study):
    groups = grouping.groups(study)
    done: set[str] = set()
    while len(done) < len(groups):
        ready = {n for n, g in groups.items() if n not in done and set(g.needs) <= done}
        assert ready, f"{set(groups) - done} wait for one another"
        done |= ready


@pytest.mark.parametrize("study", STUDIES)
def test_whatever_a_group_needs_is_in_it_or_in_a_group_before_it(study):
    groups = grouping.groups(study)
    for group in groups.values():
        there = {s.key for name in group.needs for s in groups[name].specs}
        there |= {spec.key for spec in group.specs}
        for spec in group.specs:
            needed = {n.key for n in schedule.needs(spec) if not isinstance(n, config.Data)}
            assert needed <= there


def test_short_runs_share_a_job_and_long_ones_have_their_own():
    """Five seconds of starting weigh on a run of seconds, a crash on one of days."""
    assert len(grouping.groups("quick")) < 25
    for group in grouping.groups("paper").values():
        assert len([spec for spec in group.specs if isinstance(spec, config.Run)]) <= 1


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of its own with a chapter, written with these knobs: `study(seeds=3)`."""
    monkeypatch.setattr(store, "HOME", tmp_path)

    def write(**knobs):
        folder = tmp_path / "params" / "made_up"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "common.yml").write_text(json.dumps({**KNOBS, **knobs}))
        (folder / "performance.yml").write_text("{study: made_up}")
        grouping.groups.cache_clear()
        return grouping.groups("made_up")

    return write


def test_one_seed_more_leaves_the_names_of_groups(study):
    few, many = study(seeds=2), study(seeds=3)
    assert few.keys() == many.keys()
    assert sum(len(g.specs) for g in many.values()) > sum(len(g.specs) for g in few.values())


@pytest.mark.parametrize("seed", range(4))
def test_no_group_is_larger_than_an_hour_or_200_runs_unless_it_is_one(study, seed):
    rng = np.random.default_rng(seed)
    groups = study(
        seeds=int(rng.integers(70, 110)),
        steps=[4, 400, 4000, 4000][seed],
        models=["cbr_tiny", "resnet50", "resnet50_slim"],
        inits=["random", "mean_var", "transfer"],
        precision="any" if seed == 3 else "float32",
    )
    asked = params.specs("made_up", "performance")
    keys = [spec.key for group in groups.values() for spec in group.specs]
    assert sorted(keys) == sorted(spec.key for spec in grouping.everything(asked))
    done: set[str] = set()
    for group in groups.values():
        hours = sum(map(schedule.cost, group.specs)) / grouping.CORE / 3600
        assert len(group.specs) == 1 or (hours <= 1 and len(group.specs) <= 200)
        there = {s.key for name in group.needs for s in groups[name].specs}
        there |= {spec.key for spec in group.specs}
        needed = {n.key for s in group.specs for n in schedule.needs(s)}
        assert {key for key in needed if key in keys} <= there
    while len(done) < len(groups):
        ready = {n for n, g in groups.items() if n not in done and set(g.needs) <= done}
        assert ready, f"{set(groups) - done} wait for one another"
        done |= ready


def test_a_repetition_stays_in_one_group_and_seeds_leave_the_groups_before_them(study):
    few = study(seeds=150, inits=["random", "mean_var", "transfer"])
    many = study(seeds=200, inits=["random", "mean_var", "transfer"])
    assert len(many) > len(few) > 3, "of this network: several parts"
    full = [name for name, group in few.items() if len(group.specs) > 190]
    assert full
    for name in full:
        assert {s.key for s in few[name].specs} <= {s.key for s in many[name].specs}
    for groups in (few, many):
        places = {}
        for name, group in groups.items():
            for spec in group.specs:
                if isinstance(spec, config.Run):
                    places.setdefault(records.repetition(spec), set()).add(name)
        assert all(len(names) == 1 for names in places.values())


def test_a_done_file_vouches_for_the_results_that_it_has_seen(cache, study):
    study(seeds=1, inits=["random"])
    groups = grouping.groups("made_up")
    (name,) = [n for n, group in groups.items() if isinstance(group.specs[0], config.Run)]
    assert len(groups) == 2, "of the network, and of what needs none"
    assert not grouping.is_done("made_up", name)
    grouping.compute("made_up", name)
    assert grouping.is_done("made_up", name)
    run = groups[name].specs[0]
    store.discard(store.run_folder(run.key))
    assert grouping.is_done("made_up", name), "its record is there"
    store.discard(store.records_folder("made_up") / run.key)
    assert not grouping.is_done("made_up", name)
    grouping.compute("made_up", name)
    assert grouping.is_done("made_up", name)
    study(seeds=2, inits=["random"])
    assert not grouping.is_done("made_up", name), "the second seed is missing"


def test_each_group_that_is_not_whole_has_the_words_of_its_own_runs(cache, study, monkeypatch):
    study(inits=["random"])
    names = list(grouping.groups("made_up"))

    def compute(specs, study, jobs):
        keys = [spec.key for spec in specs if isinstance(spec, config.Run)]
        raise schedule.Failed("2 of 4:\n  " + "\n  ".join(f"{key}: no memory" for key in keys))

    monkeypatch.setattr(schedule, "compute", compute)
    with pytest.raises(schedule.Failed):
        grouping.compute("made_up", *names, jobs=2)
    (name,) = [n for n in names if isinstance(grouping.groups("made_up")[n].specs[0], config.Run)]
    job = batch.Job("group", name, grouping.done_file("made_up", name))
    assert not job.file.exists() and batch._last_words(job.log).count("no memory") == 2


def test_collected_chapters_need_no_group(cache, study):
    study(seeds=1)
    assert len(grouping.groups_of("made_up", "performance")) == 2, "networks and baselines"
    results_of("performance", **params.knobs("made_up", "performance"))
    assert grouping.groups_of("made_up", "performance") == []


def test_unknown_groups_are_named(study):
    study()
    with pytest.raises(ValueError, match="group"):
        grouping.compute("made_up", "cbr_tini")
