"""Readers find old or new and never a half, and of a killed process nothing stays."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import xarray as xr
from transfusion import files, store


def made(number):
    return xr.Dataset({"auc": (("model", "step"), np.full((4, 50), float(number)))}, {})


def reading(path, until, told):
    found = Counter()
    while time.monotonic() < until:
        try:
            values = np.unique(store.read_zarr(path).auc)
            found["whole" if len(values) == 1 else "mixed"] += 1
        except Exception as error:
            found[str(error)] += 1
    told.put(("reader", found))


def writing(path, until, told, pause):
    replace, found, number = os.replace, Counter(), 1

    def late(source, target):
        replace(source, target)
        time.sleep(pause)

    os.replace = late
    while time.monotonic() < until:
        try:
            store.write_zarr(made(number), path)
            found["whole"] += 1
        except Exception as error:
            found[str(error)] += 1
        number += 1
    told.put(("writer", found))


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.1])
def test_a_reader_finds_old_or_new_while_another_replaces(cache, pause):
    """On a file system that answers a rename so late, too."""
    path = cache / "collected" / "s.zarr"
    store.write_zarr(made(0), path)
    start, told = multiprocessing.get_context("fork"), multiprocessing.get_context("fork").Queue()
    until = time.monotonic() + 2
    people = [
        start.Process(target=reading, args=(path, until, told)),
        start.Process(target=writing, args=(path, until, told, pause)),
    ]
    for each in people:
        each.start()
    found = dict(told.get(timeout=60) for _ in people)
    for each in people:
        each.join()
    assert set(found["reader"]) == set(found["writer"]) == {"whole"}, found


KILLED = """
import os, signal, sys
from pathlib import Path
from transfusion import files
from tests.test_files import made
from transfusion import store

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, times):
    real, calls = getattr(owner, name), []
    def work(*arguments):
        real(*arguments)
        calls.extend(["s.zarr" in Path(each).name for each in arguments[-1:]])  # not zarr's own
        if sum(calls) == times:
            kill()
    setattr(owner, name, work)

path, where, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if where == "write":
    files._fsync = kill
elif where == "rename":
    after(os, "replace", times)
else:
    after(files, "discard", times)
if path.suffix == ".zarr":
    store.write_zarr(made(2), path)
else:
    files.write_json(path, 2)
"""


def killed(*arguments):
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def all_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("there", "at"),
    [
        *((True, at) for at in (("write", 1), ("rename", 1), ("rename", 2), ("discard", 1))),
        *((False, at) for at in (("write", 1), ("rename", 1), ("discard", 1))),  # one rename
    ],
)
def test_of_a_killed_writer_the_next_start_leaves_nothing(cache, there, at):
    path = cache / "collected" / "s.zarr"
    if there:
        store.write_zarr(made(1), path)
    killed(path, *at)
    done = at in (("rename", 2), ("discard", 1)) or (at == ("rename", 1) and not there)
    expected = made(2 if done else 1)
    if there or done:
        xr.testing.assert_equal(store.read_zarr(path), expected)
    files.close_journal()
    files.write_json(cache / "another.json", 0)  # whatever is begun next
    files.close_journal()
    assert not [name for name in all_below(cache) if name.endswith((".tmp", ".old"))]
    assert path.exists() == (there or done)
    if there or done:
        xr.testing.assert_equal(store.read_zarr(path), expected)
    assert list((cache / ".processes").iterdir()) == []


def test_a_file_that_was_being_written_is_removed_wherever_it_lay(cache, tmp_path):
    killed(tmp_path / "elsewhere" / "page.json", "write", 1)
    assert len(all_below(tmp_path / "elsewhere")) == 1
    cache.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(cache)
    files.close_journal()
    files.write_json(cache / "another.json", 0)
    assert all_below(tmp_path / "elsewhere") == []


def test_what_a_living_process_writes_is_left_alone(cache):
    path = cache / "s.json"
    with files.atomic(path) as temporary:
        temporary.write_text("1")
        code = "from transfusion import files; files.write_json(files.root() / 'other.json', 0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert temporary.exists()
    assert path.read_text() == "1"


def test_a_journal_of_a_stranger_removes_nothing_but_what_is_called_after_it(cache, tmp_path):
    precious, journal = tmp_path / "precious.json", "0" * 32
    precious.write_text("1")
    folder = cache / ".processes"
    folder.mkdir(parents=True)
    names = ["../precious.json", str(precious), f"../x.{journal}.json", 3, {}, "../.tmp"]
    (folder / journal).write_text("\n".join(map(json.dumps, names)) + '\n"cut')
    (folder / ("1" * 32)).symlink_to(precious)
    (folder / "README").write_text("no journal")
    (tmp_path / f"x.{journal}.json").write_text("1")
    files.write_json(cache / "a.json", 0)
    assert precious.read_text() == "1" and (tmp_path / f"x.{journal}.json").exists()
    assert (folder / "README").exists() and not (folder / journal).exists()


def test_a_forked_child_leaves_its_parents_files_alone(cache):
    with files.atomic(cache / "a.json") as temporary:
        temporary.write_text("1")
        child = os.fork()
        if child == 0:
            try:
                files.write_json(cache / "b.json", 2)
                files.close_journal()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert temporary.exists()
    assert (cache / "a.json").read_text() == "1" and (cache / "b.json").exists()


def test_a_cache_that_is_only_read_lets_pages_be_written(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_begin", lambda path: None)
    files.close_journal()
    files.write_json(tmp_path / "page.json", 1)
    assert (tmp_path / "page.json").read_text() == "1\n"
    files.close_journal()
