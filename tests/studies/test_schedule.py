import json
import os
import subprocess
import sys

import pytest
from transfusion import config, experiments, store, studies
from transfusion.images import tasks
from transfusion.studies import schedule

from .. import accidents
from ..conftest import KNOBS, results_of


def test_only_what_a_parameter_touches_is_missing(cache):
    results_of("performance", **KNOBS)
    more = experiments.runs("performance", **{**KNOBS, "seeds": 3})
    assert {(s.init.name, s.seed) for s in schedule.missing(more)} == {
        ("random", 2),
        ("transfer", 2),
    }
    assert schedule.missing(experiments.runs("performance", **KNOBS)) == []


def test_lost_weights_are_trained_again(cache):
    results_of("performance", **KNOBS)
    run = experiments.runs("performance", **KNOBS)[0]
    before = store.weights_path(run.key).read_bytes()
    store.weights_path(run.key).write_bytes(b"cut")
    *_, comparison = experiments.runs("representations", **KNOBS)
    assert [spec.key for spec in schedule.missing([comparison])] == [run.key, comparison.key]
    schedule.compute_here([comparison])
    assert store.weights_path(run.key).read_bytes() == before


def test_what_names_of_files_tell_is_missing_as_what_is_read(cache):
    results_of("performance", **KNOBS)
    specs = experiments.runs("performance", **{**KNOBS, "seeds": 3})
    lost = store.weights_path(specs[1].key)

    def agree():
        looked, read = schedule.missing(specs, None, store.look()), schedule.missing(specs)
        return [task.key for task in looked] == [task.key for task in read]

    assert agree()
    lost.unlink()
    assert agree()
    store.discard(store.run_folder(specs[0].key) / "done.json")
    assert agree()


def test_what_cannot_run_stops_everything_before_it_starts(cache):
    with pytest.raises(ValueError, match="Did you mean 'cbr_tiny'"):
        studies.collect("performance", **{**KNOBS, "models": ["cbr_small", "cbr_tini"]})
    assert not (cache / "runs").exists()


@pytest.mark.parametrize(
    ("accident", "message"), [(accidents.break_on_seed_1, "broken"), (accidents.die_on_seed_1, "")]
)
def test_accidents_are_reported_with_key_and_log(cache, monkeypatch, accident, message):
    monkeypatch.setattr(schedule, "_perform", accident)
    runs = experiments.runs("performance", **{**KNOBS, "inits": ["random"]})[:2]
    with pytest.raises(schedule.Failed, match=f"{runs[1].key}: .*{message}.*log"):
        schedule.compute(runs, jobs=1)


def test_a_killed_process_takes_only_its_own_run_along(cache, monkeypatch):
    monkeypatch.setattr(schedule, "_perform", accidents.die_on_seed_1)
    runs = experiments.runs("hybrids", **{**KNOBS, "inits": ["random"], "seeds": 4})
    with pytest.raises(schedule.Failed, match="1 of 7 could not") as failed:
        schedule.compute(runs, jobs=1)
    assert runs[1].key in str(failed.value) and runs[2].key not in str(failed.value)


def test_a_killed_process_takes_nothing_along_that_ran_beside_it(cache, monkeypatch):
    monkeypatch.setattr(schedule, "_perform", accidents.die_or_wait)
    runs = experiments.runs("tuning", **{**KNOBS, "inits": ["random"], "seeds": 3, "rates": [0.1]})
    ended = dict(schedule._perform_all(runs, {}, 2))
    assert {key for key, error in ended.items() if error} == {runs[1].key}
    assert len(ended) == 3


def test_what_waits_for_a_run_that_failed_is_not_tried(cache, monkeypatch):
    monkeypatch.setattr(schedule, "_perform", accidents.break_all)
    (source, *_, last) = [s for s in schedule.missing(transfers()) if isinstance(s, config.Run)]
    ended = dict(schedule._perform_all([source, last], {}, 1))
    assert str(ended[source.key]) == "broken" and source.key in str(ended[last.key])


def transfers():
    return experiments.runs("tuning", **{**KNOBS, "inits": ["transfer"], "rates": [0.1]})


def test_a_notebook_shows_a_bar_and_a_log_a_line_a_task(monkeypatch, capsys):
    some = [None, None]  # what they are does not matter here
    monkeypatch.setitem(sys.modules, "ipykernel", json)
    schedule._finish(some, [("a", None), ("b", None)])
    assert "2/2" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ipykernel")
    schedule._finish(some, [("a", None), ("b", None)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["1 of 2 computed", "2 of 2 computed"]


def test_images_are_drawn_once_and_what_is_needed_goes_first(cache):
    runs = experiments.runs("performance", **KNOBS)
    ahead = schedule.missing(runs)
    drawn = [task for task in ahead if isinstance(task, config.Data)]
    assert sorted(images.name for images in drawn) == ["fundus", "objects"]
    ranks = schedule.ranks(ahead)
    for task in ahead:
        for need in schedule.needs(task):
            assert ranks[need.key] > ranks[task.key]
    tasks.load(drawn[0])
    again = schedule.missing(runs)
    assert [task for task in again if isinstance(task, config.Data)] == drawn[1:]


def test_sources_go_before_the_probes_of_their_features():
    ahead = schedule.missing(experiments.runs("performance", **KNOBS))
    places = {task.key: place for place, task in enumerate(ahead)}
    probes = [task for task in ahead if isinstance(task, config.Baseline)]
    assert len(probes) == 4
    for probe in probes:
        assert all(places[need.key] < places[probe.key] for need in schedule.needs(probe))


def test_long_runs_go_before_short_ones():
    long, short = (
        experiments.runs("performance", **{**KNOBS, "steps": steps})[0] for steps in (40, 4)
    )
    ranks = schedule.ranks([short, long])
    assert ranks[long.key] == pytest.approx(10 * ranks[short.key])


def test_specifications_survive_the_trip_to_a_worker():
    for spec in experiments.runs("representations", **KNOBS, folds=5):
        assert config.load(json.loads(json.dumps(config.dump(spec)))) == spec


LEASE = """
import os
from transfusion import machine
machine.gpus = lambda: 2
machine.lease_gpus()
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
input()
"""


def test_each_job_has_a_gpu_of_its_own_until_it_ends(tmp_path):
    """Two GPUs: two jobs get one each; a third waits, and gets that of the first that is killed."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    code = [sys.executable, "-c", LEASE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(code, env=environment, **pipes) for _ in range(2)]
    leased = [job.stdout.readline().strip() for job in jobs]
    assert sorted(leased) == ["0", "1"]
    third = subprocess.Popen(code, env=environment, **pipes)
    with pytest.raises(subprocess.TimeoutExpired):
        third.wait(timeout=3)
    jobs[1].kill()
    assert third.stdout.readline().strip() == leased[1]
    for job in [*jobs, third]:
        job.kill()
        job.communicate()
