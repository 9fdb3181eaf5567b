"""Computing in a box: what fits into the minutes, most valuable first, every record kept at once.

One process hands out the work and writes the records; others compute, one on each core, or several
on a GPU. Only the folder of records comes back, a few files: its parts are rewritten as they grow,
each atomically.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from filelock import Timeout

from transfusion import config, files, machine, records, store
from transfusion.boxes import box, outbox
from transfusion.boxes.crew import Crew, assign, listen, more_workers, progress
from transfusion.images import stored, tasks
from transfusion.studies import schedule
from transfusion.studies.schedule import Task

SAYS = 10.0  # seconds between two lines of progress
STOP = 3.0  # seconds before the end at which nothing more is waited for: to kill and to leave
Say = Callable[[str], None]
MOST = 8  # processes on a GPU; each has a CUDA context of its own, half a GB


def work(
    place: Path,
    minutes: float,
    out: Path,
    *,
    jobs: int | None = None,
    begun: float | None = None,
) -> None:
    """Compute in a box for so many minutes, and keep each finished record in `out`.

    `jobs` processes: by default one a core, or, on a GPU, 1, 2, 4 or 8, as many as are faster
    together. A second call with the same `out` goes on. The minutes count from `begun`, a time of
    `time.monotonic`, by default from now. What is finished is kept, whatever happens.

    Raises ValueError or OSError, naming what is wrong, for a box that is not whole or of other
    code, minutes or jobs that are none, an `out` with other things or records of other studies, or
    that cannot be written; schedule.Failed, after all else, where runs could not be computed.
    """
    begun = time.monotonic() if begun is None else begun
    if not 0 < minutes < float("inf"):
        raise ValueError(f"--minutes {minutes:g}: expected the time to compute in, such as 9")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs {jobs}: expected a number of processes, such as 6")
    entries = box.read(place)
    outbox.require(out)
    os.environ["TRANSFUSION_CACHE"] = str(_cache(place))
    store.require_writable()
    with _alone(), (out / "log.txt").open("a") as log, _held(log):
        say = partial(_say, log=log)
        todo = _unpack(place, entries, out, say)
        crew = _crew(entries, todo, out, say, jobs)
        crew.deadline = begun + 60 * minutes - STOP
        try:
            _compute(crew)
        finally:
            for worker in crew.workers:
                worker.process.kill()
        say(_summary(crew, out))
    if crew.broken:
        lines = "\n  ".join(f"{key}: {why}" for key, why in crew.broken.items())
        raise schedule.Failed(f"{len(crew.broken)} could not be computed here:\n  {lines}")


def _crew(
    entries: list[box.Entry], todo: dict[str, Task], out: Path, say: Say, jobs: int | None
) -> Crew:
    on_gpu = torch.cuda.is_available()
    first = jobs or (1 if on_gpu else os.cpu_count() or 1)
    most = MOST if on_gpu and not jobs else first
    started = records.begun(out)  # by an earlier call, maybe on another machine
    entries = [e._replace(precision=e.precision or _begun(e, started)) for e in entries]
    return Crew(entries, todo, partial(_deposit, entries, out, say), say, jobs=first, most=most)


def _begun(entry: box.Entry, started: dict[tuple, config.Native]) -> config.Native | None:
    return started.get(records.repetition(entry.spec))


def _compute(crew: Crew) -> None:
    """Keep workers busy with what fits until all is done, nothing fits, or time is over."""
    said = time.monotonic()
    while time.monotonic() < crew.deadline:
        assign(crew)
        if not any(worker.task for worker in crew.workers):
            return
        listen(crew)
        more_workers(crew)
        if time.monotonic() - said > SAYS:
            said = time.monotonic()
            crew.say(progress(crew))


def _summary(crew: Crew, out: Path) -> str:
    ahead = [*crew.todo.values(), *(worker.task for worker in crew.workers if worker.task)]
    left = sum(not isinstance(task, config.Data) for task in ahead)
    more = f"; {left} left, with which the same command goes on" if left else ""
    facts = outbox.held(out).values()
    kept = sum(told["kind"] in records.COMPUTED for told in facts)
    return f"{crew.done} finished, {kept} kept in {out}{more}"


def _say(words: str, log: TextIO) -> None:
    print(words, file=sys.stderr, flush=True)
    log.write(f"{time.strftime('%F %T')} {words}\n")
    log.flush()


def _cache(place: Path) -> Path:
    """Where weights and checkpoints lie: in the box, or beside other temporary files where that
    cannot be written."""
    named = os.environ.get("TRANSFUSION_CACHE")
    if named:
        return Path(named).resolve()
    if os.access(place, os.W_OK):
        return (place / "cache").resolve()
    mark = hashlib.sha256((place / "box.json").read_bytes()).hexdigest()[:12]
    return machine.own(Path(tempfile.gettempdir(), f"transfusion-box-{os.getuid()}-{mark}"))


@contextlib.contextmanager
def _held(log: TextIO) -> Iterator[None]:
    """Hold the folder of records by its log, for as long as this process lives."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        folder = Path(log.name).parent
        raise ValueError(f"another `work` writes to {folder}: give a folder of its own") from None
    yield


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    lock = files.locked(store.root() / ".work.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another `work` is at this box (cache {store.root()})") from None
    with lock:
        yield


def _unpack(place: Path, entries: list[box.Entry], out: Path, say: Say) -> dict[str, Task]:
    """Bring to the cache what the box and earlier calls have left; what is still to be computed."""
    facts = list(outbox.held(out).values())
    foreign = {told["study"] for told in facts} - {entry.study for entry in entries}
    if foreign:
        raise ValueError(
            f"{out} holds records of other studies ({', '.join(sorted(foreign))}): "
            "give this box a folder of its own"
        )
    for folder in [*(place / "sources").glob("*"), out]:
        box.bring_weights(folder)
    _check_precision(out)
    held = {told["key"] for told in facts if told["kind"] in records.COMPUTED}
    for entry in entries:  # finished before a call was killed
        if entry.spec.key not in held and _whole(entry.spec):
            _deposit(entries, out, say, entry.spec)
            held.add(entry.spec.key)
    todo: dict[str, Task] = {
        e.spec.key: e.spec for e in entries if not _is_there(e.spec, held, entries)
    }
    for name in dict.fromkeys(_weights(todo.values())):
        if not store.weights_file(name).exists():
            box.unpack_weights(name, place / box.packed_weights(name))
    images = dict.fromkeys(entry.spec.data for entry in entries if entry.spec.key in todo)
    drawn = {spec.key: spec for spec in images if not _unpacked(spec, place)}
    return {**drawn, **todo}


def _check_precision(out: Path) -> None:
    """Raise ValueError where a folder was begun in a precision that is slow here."""
    started = set(records.begun(out).values())
    if "bfloat16" in started and not _is_fast():
        raise ValueError(
            f"{out} was begun in bfloat16, at which this machine is slow: give another folder"
        )


def _is_fast() -> bool:
    return torch.cuda.is_available() or machine.precision() == "bfloat16"


def _is_there(spec: config.Spec, held: set[str], entries: list[box.Entry]) -> bool:
    """Whether a record is there, and the weights too where something else asks for them."""
    if spec.key not in held:
        return False
    others = [e.spec for e in entries if e.spec.key not in held]
    wanted = {need.key for other in others for need in schedule.needs(other)}
    return spec.key not in wanted or store.complete(spec.key)


def _whole(spec: Task) -> bool:
    if isinstance(spec, config.Run):
        return store.complete(spec.key)
    return store.read(spec.key) is not None


def _weights(tasks: Iterable[Task]) -> Iterator[str]:
    """Names of the pretrained weights that runs, also those of comparisons, start from."""
    for task in tasks:
        for run in task.runs if isinstance(task, config.Comparison) else (task,):
            if not isinstance(run, config.Data) and isinstance(run.init.source, str):
                yield run.init.source


def _unpacked(spec: config.Data, place: Path) -> bool:
    """Whether images are there, those of the box unpacked; not so drawn ones, still to be drawn."""
    if spec.name in tasks.SYNTHETIC:
        return tasks.drawn_path(spec).exists()
    path, packed = tasks.prepared_path(spec.name, spec.size), place / box.packed_images(spec)
    if not path.exists():
        images = box.unpack_images(packed)
        pixels, rest = images["pixels"].values, images.drop_vars("pixels")
        stored.write(path, iter(pixels), pixels.shape, lambda: rest)
    return True


def _deposit(entries: list[box.Entry], out: Path, say: Say, spec: config.Spec) -> None:
    """Keep the record of a finished result, and the weights of one that others start from."""
    study = next(entry.study for entry in entries if entry.spec.key == spec.key)
    result = store.read(spec.key)
    assert result is not None  # it was just finished
    weights = _is_source(spec, entries) and result.attrs["status"] == "done"
    try:
        outbox.add(out, records.made_of(study, spec, result))
        if weights and not outbox.add_weights(out, box.weights_records(study, spec.key)):
            say(f"the weights of {spec.key} are too large to come back; its record does")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"no space left for {out}: free some and call again; what was finished is kept"
        ) from None


def _is_source(spec: config.Spec, entries: list[box.Entry]) -> bool:
    starts = (getattr(e.spec, "init", config.Init()).source for e in entries)
    return any(isinstance(source, config.Run) and source.key == spec.key for source in starts)
