"""Computing what is missing: one process a core, what is needed first, nothing twice."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from transfusion import config, data, store

# What a process is given; synthetic images are drawn before their runs.
Task = config.Data | config.Spec


def gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def lease_gpus(count: int = 1) -> None:
    """Wait for GPUs that no other job here has, and hold them until this process ends.

    Nothing is done where there are no more than asked for, or somebody (Slurm) has chosen already.
    """
    if gpus() <= count or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    folder = Path(tempfile.gettempdir(), f"transfusion-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "choice.lock"):  # two that wait for several would wait for each other
        for index in itertools.cycle(range(gpus())):
            with contextlib.suppress(Timeout):
                lock = FileLock(folder / f"{index}.lock")
                lock.acquire(timeout=0.2)
                _leased[index] = lock
            if len(_leased) == count:
                break
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sorted(_leased)))  # before CUDA starts


_leased: dict[int, FileLock] = {}  # a lock that nobody refers to would be released


class Failed(RuntimeError):
    """Some of the work could not be done; what was finished is kept."""


def missing(specs: Iterable[config.Spec]) -> list[Task]:
    """Whatever is not there yet, of these and of what they need, in the order of need."""
    needed: dict[str, Task] = {}
    for spec in specs:
        if not _there(spec):
            for need in needs(spec):
                needed.setdefault(need.key, need)
            needed[spec.key] = spec
    return [spec for spec in needed.values() if not _there(spec)]


def needs(task: Task) -> list[Task]:
    """What must be there, a run with its weights, before a task can start; sources first."""
    if isinstance(task, config.Data):
        return []
    if isinstance(task, config.Comparison):
        found = [need for run in task.runs for need in [*needs(run), run]]
        return list({need.key: need for need in found}.values())
    source = task.init.source
    return [*([*needs(source), source] if isinstance(source, config.Run) else []), task.data]


def _there(task: Task) -> bool:
    """Whether images are drawn or prepared, or a result is whole, a run's weights included."""
    if isinstance(task, config.Data):
        return task.name not in data.SYNTHETIC or data.drawn_path(task).exists()
    whole = isinstance(task, config.Comparison) or store.complete(task.key)
    return whole and store.read(task.key) is not None


def compute(specs: Iterable[config.Spec], *, jobs: int | None = None) -> None:
    """Compute what is missing, one process a core (one in all on a GPU), one thread each.

    Everything is checked before anything starts. Raises ValueError for what cannot run, OSError
    for a cache that cannot be written, Failed if some work broke down, after finishing the rest.
    """
    todo = missing(list(specs))
    if not todo:
        return
    store.require_writable()
    check(todo)
    jobs = jobs or (1 if gpus() else os.cpu_count() or 1)
    _finish(todo, _perform_all(todo, min(jobs, len(todo))))


def compute_here(specs: Iterable[config.Spec]) -> None:
    """Compute what is missing one after the other in this process, as a batch job does.

    Raises as `compute` does; OSError (a full disk) at once, as the rest could not be kept either.
    """
    todo = missing(list(specs))
    check(todo)
    _finish(todo, map(_attempt, todo))


def _attempt(task: Task) -> tuple[str, BaseException | None]:
    try:
        _perform(config.dump(task))
    except OSError:
        raise
    except Exception as error:
        return task.key, error
    return task.key, None


def _finish(todo: list[Task], ends: Iterable[tuple[str, BaseException | None]]) -> None:
    """Wait for the ends of tasks, with a progress bar; raises Failed after the last."""
    errors: dict[str, BaseException] = {}
    start = time.monotonic()
    hidden = not _is_watched()
    with tqdm(total=len(todo), desc="computed", unit="task", disable=hidden, smoothing=0) as bar:
        for done, (key, error) in enumerate(ends, start=1):
            bar.update()
            if hidden:  # a line a task, for the log
                print(_progress(done, len(todo), start), file=sys.stderr, flush=True)
            if error is not None:
                errors[key] = error
    if errors:
        lines = [f"{key}: {e} (log: {store.run_folder(key)}/log.txt)" for key, e in errors.items()]
        raise Failed(
            f"{len(errors)} of {len(todo)} could not be computed:\n  " + "\n  ".join(lines)
        )


def _is_watched() -> bool:
    """Whether somebody sees a bar move: on a terminal, or in a notebook (to tqdm itself a file)."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _progress(done: int, total: int, start: float) -> str:
    left = (time.monotonic() - start) / done * (total - done)
    return f"{done} of {total} computed, about {left / 60:.1f} min left"


def check(todo: Iterable[Task]) -> None:
    """Raise ValueError for whatever would stop one of these, before anything starts."""
    needed = [task for spec in todo for task in [*needs(spec), spec]]
    runs = [task for task in needed if isinstance(task, config.Run)]
    for run in {(run.data, run.model, run.init): run for run in runs}.values():
        from transfusion import train  # torch, needed only now

        train.check(run)


def one_thread() -> None:
    """For processes that are still to start: their libraries read this once, when loaded."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Memory once had is kept: each step asks for the same again, and fresh pages cost 3 to 7 %.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 34))


def _perform_all(tasks: list[Task], jobs: int) -> Iterator[tuple[str, BaseException | None]]:
    """Each task's key and error (None if it went well), as they end; needs come before tasks."""
    one_thread()
    spawn = multiprocessing.get_context("spawn")  # a forked CUDA or OpenMP state is broken
    order = ranks(tasks)
    waiting = {task.key: task for task in sorted(tasks, key=lambda t: -order[t.key])}
    while waiting:  # a process that is killed takes its pool down; the rest gets a new one
        with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            yield from _drain(pool, waiting, jobs)


def _drain(
    pool: ProcessPoolExecutor, waiting: dict[str, Task], jobs: int
) -> Iterator[tuple[str, BaseException | None]]:
    """Start what waits, `jobs` at a time, until all is done or the pool is broken."""
    running: dict[Future, str] = {}
    broken = False
    while running or (waiting and not broken):
        while len(running) < jobs and not broken:
            unfinished = waiting.keys() | set(running.values())
            ready = (k for k, t in waiting.items() if not unfinished & {n.key for n in needs(t)})
            key = next(ready, None)
            if key is None:
                break
            running[pool.submit(_perform, config.dump(waiting.pop(key)))] = key
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                broken, error = True, Failed("its process was killed (out of memory?)")
            yield running.pop(future), error


def ranks(tasks: list[Task]) -> dict[str, float]:
    """The work that hangs on each task, itself included: what is long or needed goes first."""
    ranks = {task.key: cost(task) for task in tasks}
    for task in reversed(tasks):
        for need in needs(task):
            if need.key in ranks:
                ranks[need.key] = max(ranks[need.key], cost(need) + ranks[task.key])
    return ranks


@cache
def cost(task: Task) -> float:
    """About how many floating-point operations a task takes."""
    from transfusion import models

    if isinstance(task, config.Data):
        return 1e9 * sum(n or 0 for n in (task.train, task.valid, task.test))
    if isinstance(task, config.Comparison):
        first = task.runs[0]
        return 2 * len(task.runs) * task.images * models.flops(first.model, first.data.size)
    passes = 3 * task.optim.steps * task.optim.batch
    return passes * models.flops(task.model, task.data.size)


def _perform(fields: dict) -> None:
    task = config.load(fields)
    if isinstance(task, config.Data):
        data.load(task)
        return
    from transfusion import comparison, train

    if isinstance(task, config.Comparison):
        comparison.compare(task)
    else:
        train.fit(task)
