import json

import pytest
from transfusion import cli, experiments, machine, records, store, studies
from transfusion.studies import cache, params, schedule

from ..conftest import KNOBS, results_of


@pytest.fixture
def kept(cache_with_study):
    """A study that was computed and collected."""
    return cache_with_study


@pytest.fixture
def cache_with_study(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "HOME", tmp_path)
    folder = tmp_path / "params" / "made_up"
    folder.mkdir(parents=True)
    (folder / "common.yml").write_text(json.dumps({**KNOBS, "seeds": 1}))
    (folder / "performance.yml").write_text("{study: made_up}")
    results_of("performance", **params.knobs("made_up", "performance"))
    return cache


def test_what_is_kept_is_listed_with_who_needs_it(kept, tiny_run):
    strange = tiny_run(steps=2, evaluations=1)
    schedule.compute_here([strange])
    table = cache.ls()
    assert set(table["state"]) == {"done"} and (table["MB"] > 0).all()
    assert table.loc[strange.key, "needed by"] == ""
    assert set(table["needed by"].drop(strange.key)) == {"made_up"}
    assert cache.superfluous() == [strange.key]


def test_pruning_lists_first_and_removes_only_what_no_study_needs(kept, tiny_run, capsys):
    strange = tiny_run(steps=2, evaluations=1)
    schedule.compute_here([strange])
    assert cli.main(["cache", "prune"]) == 0
    assert strange.key in capsys.readouterr().out and store.complete(strange.key)
    assert cli.main(["cache", "prune", "--yes"]) == 0
    assert store.state(strange.key) == "missing"
    assert cache.superfluous() == []
    runs = experiments.runs("performance", **params.knobs("made_up", "performance"))
    assert schedule.missing(runs) == []


def test_what_a_study_needs_on_other_machines_is_not_pruned(kept, monkeypatch):
    """`precision: auto` gives other keys where bfloat16 is fast."""
    folder = store.HOME / "params" / "made_up"
    (folder / "common.yml").write_text(json.dumps({**KNOBS, "seeds": 1, "precision": "auto"}))
    keys = []
    for fast in ("float32", "bfloat16"):
        monkeypatch.setattr(machine, "precision", lambda fast=fast: fast)
        keys.append({spec.key for spec in params.specs("made_up", "performance")})
        assert not keys[-1] - cache._needed().keys()
    assert keys[0] != keys[1]


def test_what_is_forgotten_is_computed_again(kept, capsys):
    """As a failed run that is to be tried again, also where its record is one of many in a part."""
    run = params.specs("made_up", "performance")[0]
    for compacted in (False, True):
        if compacted:
            records.compact("made_up")
        assert schedule.missing([run], "made_up") == []
        assert cli.main(["cache", "forget", run.key]) == 0
        assert run.key in capsys.readouterr().out
        assert schedule.missing([run], "made_up") == [run]
        others = [spec for spec in params.specs("made_up", "performance") if spec != run]
        assert schedule.missing(others, "made_up") == []
        schedule.compute_here([run], "made_up")
    assert cli.main(["cache", "forget", "0" * 12]) == 1
    assert "nothing is kept under" in capsys.readouterr().err
    cache.forget(run.key)
    with store.lease(run.key), pytest.raises(ValueError, match="at work"):
        cache.forget(run.key)


def test_what_is_at_work_is_not_pruned(kept, tiny_run):
    strange = tiny_run(steps=2, evaluations=1)
    with store.lease(strange.key):
        assert store.state(strange.key) == "running"
        assert cache.superfluous() == []
        cache.prune([strange.key])
        assert store.run_folder(strange.key).exists()


@pytest.mark.parametrize("victim", ["weights.safetensors", "result.zarr/zarr.json"])
def test_a_changed_file_is_found(kept, victim):
    assert cache.verify().empty
    key = cache.ls().index[0]
    path = store.run_folder(key) / victim
    path.write_bytes(path.read_bytes()[:-1])
    assert list(cache.verify().index) == [f"runs/{key}"]
    assert cli.main(["cache", "verify"]) == 1


def test_a_manifest_that_lies_is_found(kept):
    path = store.root() / "collected/made_up/manifest.csv"
    assert cache.verify().empty
    path.write_text(path.read_text().replace(cache.ls().index[0], "0" * 12))
    assert list(cache.verify().index) == ["collected/made_up/manifest.csv"]


def test_the_next_call_after_a_kill_writes_the_manifest(kept, monkeypatch):
    """Killed between a chapter's results and the manifest that they belong in."""
    path = store.root() / "collected/made_up/manifest.csv"
    before = path.read_text()
    for left in ("chapter,key\n", "", None):
        store.discard(path)
        if left is not None:
            path.write_text(left)
        studies.collect("performance", **params.knobs("made_up", "performance"))
        assert path.read_text() == before and cache.verify().empty


def test_collecting_again_leaves_no_line_of_a_chapter_that_is_gone(kept):
    store.discard(store.results_path("made_up", "performance"))
    studies.collect("data", **{**KNOBS, "seeds": 1, "inits": ["random"]})
    listed = (store.root() / "collected/made_up/manifest.csv").read_text()
    assert "performance" not in listed and "data" in listed
    assert cache.verify().empty
