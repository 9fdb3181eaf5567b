"""Computing what is missing: one process a core, what is needed first, nothing twice."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from transfusion import config, machine, records, store
from transfusion.images import tasks
from transfusion.networks import costs

# Operations an image of a baseline with all its penalties: on the 18,778 malaria cells a core took
# 10, 1.4 and, with ResNet-50's features, 80 seconds.
BASELINE = {"statistics": 1e8, "thumbnail": 1.5e7, "frozen": 8e8}
IMAGES = 10_000  # that a prepared set is taken to have, as is not known before it is read
Ended = tuple[str, BaseException | None]  # a task's key, and its error if it went badly
# What a process is given; synthetic images are drawn before their runs.
Task = config.Data | config.Spec


class Failed(RuntimeError):
    """Some of the work could not be done; what was finished is kept."""


def missing(
    specs: Iterable[config.Spec],
    study: str | None = None,
    looked: Mapping[str, dict[str, Any]] | None = None,
) -> list[Task]:
    """Whatever must be computed for these, in the order of need.

    A run or comparison that a study has a record of is done; what is still to be computed needs the
    weights of others, so a recorded run whose weights are not here may be among them. What counts
    as there is read and hashed, or believed where it was `looked` at, as `store.look` does.
    """
    specs = list(specs)
    there = _there if looked is None else partial(_said, looked)
    done = records.done(study, specs) if study else set()
    precisions = _precisions(specs, study)
    needed: dict[str, Task] = {}
    for spec in specs:
        if spec.key not in done and not there(spec, precisions.get(spec.key)):
            for need in needs(spec):
                needed.setdefault(need.key, need)
            needed[spec.key] = spec
    asked = {spec.key for spec in specs} - done
    compared = {run.key for s in specs if isinstance(s, config.Comparison) for run in s.runs}
    in_one = {key: precisions[key] for key in asked | compared if key in precisions}
    return [task for key, task in needed.items() if not there(task, in_one.get(key))]


def _precisions(specs: Iterable[config.Spec], study: str | None) -> dict[str, config.Native]:
    """In which to compute what leaves it open; all networks of a comparison in one."""
    if study is None:
        return {}
    specs = list(specs)
    found = records.precisions(study, specs)
    for spec in specs:
        if isinstance(spec, config.Comparison) and spec.key in found:
            found |= dict.fromkeys([run.key for run in spec.runs], found[spec.key])
    return found


def needs(task: Task) -> list[Task]:
    """What must be there, a run with its weights, before a task can start; sources first."""
    if isinstance(task, config.Data):
        return []
    if isinstance(task, config.Comparison):
        found = [need for run in task.runs for need in [*needs(run), run]]
        return list({need.key: need for need in found}.values())
    source = task.init.source  # of a run, or of the network of a baseline
    return [*([*needs(source), source] if isinstance(source, config.Run) else []), task.data]


def _there(task: Task, precision: config.Native | None = None) -> bool:
    """Whether images are drawn or prepared, or a result is whole, a run's weights included, and in
    this precision if one is asked."""
    if isinstance(task, config.Data):
        return task.name not in tasks.SYNTHETIC or tasks.drawn_path(task).exists()
    whole = not isinstance(task, config.Run) or store.complete(task.key)
    as_asked = precision in (None, store.facts(task.key).get("precision"))
    return whole and as_asked and store.read(task.key) is not None


def _said(
    looked: Mapping[str, dict[str, Any]], task: Task, precision: config.Native | None = None
) -> bool:
    """The same, as far as names of files and done.json tell."""
    if isinstance(task, config.Data):
        return _there(task)
    told = looked.get(task.key, {})
    failed = told.get("state") == "failed"
    whole = failed or told.get("weights") or not isinstance(task, config.Run)
    ended = failed or told.get("state") == "done"
    return bool(ended and whole and precision in (None, told.get("precision")))


def compute(
    specs: Iterable[config.Spec], study: str | None = None, *, jobs: int | None = None
) -> None:
    """Compute what is missing, one process a core (one in all on a GPU), one thread each, and add
    it to the study's records as it ends.

    Everything is checked before anything starts. Raises ValueError for what cannot run, OSError
    for a cache that cannot be written, Failed if some work broke down, after finishing the rest.
    """
    specs = list(specs)
    todo = missing(specs, study)
    if todo:
        store.require_writable()
        check(todo)
        jobs = jobs or (1 if machine.gpus() else os.cpu_count() or 1)
        chosen = _precisions(specs, study)
        with contextlib.closing(_perform_all(todo, chosen, min(jobs, len(todo)))) as ends:
            _finish(todo, ends, study)
    _keep(specs, study)


def compute_here(specs: Iterable[config.Spec], study: str | None = None) -> None:
    """Compute what is missing one after the other in this process, as a batch job does.

    Raises as `compute` does; OSError (a full disk) at once, as the rest could not be kept either.
    """
    specs = list(specs)
    todo, chosen = missing(specs, study), _precisions(specs, study)
    check(todo)
    _finish(todo, (_attempt(task, chosen.get(task.key)) for task in todo), study)
    _keep(specs, study)


def _keep(specs: Iterable[config.Spec], study: str | None) -> None:
    """Add to a study's records what is in the cache without one: sources before what needs them."""
    if study is None:
        return
    everything = {t.key: t for spec in specs for t in [*needs(spec), spec]}
    wanted = [task for task in everything.values() if not isinstance(task, config.Data)]
    done = records.done(study, wanted)
    for spec in wanted:
        if spec.key not in done:
            records.keep(study, spec)


def _attempt(task: Task, precision: config.Native | None) -> tuple[str, BaseException | None]:
    try:
        _perform(config.dump(task), precision)
    except OSError:
        raise
    except Exception as error:
        return task.key, error
    return task.key, None


def _finish(
    todo: list[Task],
    ends: Iterable[tuple[str, BaseException | None]],
    study: str | None = None,
) -> None:
    """Wait for the ends of tasks, with a progress bar, and record each; raises Failed after the
    last."""
    from tqdm import tqdm  # not in a box, which has a log of its own

    errors: dict[str, BaseException] = {}
    tasks = {task.key: task for task in todo if not isinstance(task, config.Data)} if study else {}
    start = time.monotonic()
    hidden = not _is_watched()
    with tqdm(total=len(todo), desc="computed", unit="task", disable=hidden, smoothing=0) as bar:
        for done, (key, error) in enumerate(ends, start=1):
            bar.update()
            if hidden:  # a line a task, for the log
                print(_progress(done, len(todo), start), file=sys.stderr, flush=True)
            if isinstance(error, OSError):
                raise error  # a full disk: the rest could not be kept either
            if error is not None:
                errors[key] = error
            elif study and key in tasks:
                _keep([tasks[key]], study)
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
    for baseline in (task for task in needed if isinstance(task, config.Baseline)):
        from transfusion.experiments import baselines

        baselines.check(baseline)
    runs = [task for task in needed if isinstance(task, config.Run)]
    for run in {(run.data, run.model, run.init): run for run in runs}.values():
        from transfusion.training import fit  # torch, needed only now

        fit.check(run)


def _perform_all(
    tasks: list[Task], chosen: dict[str, config.Native], jobs: int
) -> Generator[Ended, None, None]:
    """Each task's key and error (None if it went well), as they end; needs come before tasks."""
    order = ranks(tasks)
    waiting = {task.key: task for task in sorted(tasks, key=lambda t: -order[t.key])}
    while waiting:  # a process that is killed takes its pool down; the rest gets a new one
        lost = yield from _given_up(_drain(waiting, chosen, jobs), waiting)
        for key, task in lost.items():  # of several that ran, one was killed: each by itself
            yield from _given_up(_drain({key: task}, chosen, 1), waiting)


def _drain(
    waiting: dict[str, Task], chosen: dict[str, config.Native], jobs: int
) -> Generator[Ended, None, dict[str, Task]]:
    """Start what waits in a pool, `jobs` at a time, until all is done or the pool is broken; then
    the tasks that were running are returned, if it was more than one."""
    running: dict[Future, tuple[str, Task]] = {}
    lost: dict[str, Task] = {}
    with machine.workers(jobs) as pool:
        while running or (waiting and not lost):
            while len(running) < jobs and not lost and (key := _ready(waiting, running)):
                try:
                    future = pool.submit(_perform, config.dump(waiting[key]), chosen.get(key))
                except BrokenProcessPool:  # and nobody waited for it yet
                    if not running:
                        return {}
                    break
                running[future] = key, waiting.pop(key)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                (key, task), error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost[key] = task
                else:
                    yield key, error
    if len(lost) > 1:
        return lost
    for key in lost:
        yield key, Failed("its process was killed (out of memory?)")
    return {}


def _ready(waiting: dict[str, Task], running: dict[Future, tuple[str, Task]]) -> str | None:
    """What waits for nothing that is not done."""
    unfinished = waiting.keys() | {key for key, _ in running.values()}
    ready = (k for k, task in waiting.items() if not unfinished & {n.key for n in needs(task)})
    return next(ready, None)


def _given_up(
    ended: Generator[Ended, None, dict[str, Task]], waiting: dict[str, Task]
) -> Generator[Ended, None, dict[str, Task]]:
    """As they end; what waits for one that failed ends with it, or each would try it again."""
    while True:
        try:
            key, error = next(ended)
        except StopIteration as end:
            return end.value
        yield key, error
        needed = [k for k, t in waiting.items() if error and key in {n.key for n in needs(t)}]
        for each in needed:
            del waiting[each]
            yield each, Failed(f"it needs {key}, which failed")


def ranks(tasks: list[Task]) -> dict[str, float]:
    """The work that hangs on each task, itself included: what is long or needed goes first."""
    ranks = {task.key: cost(task) for task in tasks}
    for task in reversed(tasks):
        for need in needs(task):
            if need.key in ranks:
                ranks[need.key] = max(ranks[need.key], cost(need) + ranks[task.key])
    return ranks


def cost(task: Task) -> float:
    """About how many floating-point operations a task takes."""
    if isinstance(task, config.Data):
        return 1e9 * sum(n or 0 for n in (task.train, task.valid, task.test))
    if isinstance(task, config.Comparison):
        first = task.runs[0]
        return 2 * len(task.runs) * task.images * costs.flops(first.model, first.data.size)
    if isinstance(task, config.Baseline):
        counts = [task.data.train, task.data.valid, task.data.test]
        images = IMAGES if None in counts else sum(n or 0 for n in counts)
        reads = costs.flops(task.model, task.data.size) if task.model else 0
        return images * (BASELINE[task.features] + reads)
    passes = 3 * task.optim.steps * task.optim.batch
    return passes * costs.flops(task.model, task.data.size)


def _perform(fields: dict, precision: config.Native | None = None) -> None:
    task = config.load(fields)
    if isinstance(task, config.Data):
        tasks.load(task)
        return
    from transfusion.similarity import comparison
    from transfusion.training import fit

    if isinstance(task, config.Comparison):
        comparison.compare(task)
    elif isinstance(task, config.Baseline):
        from transfusion.experiments import baselines

        baselines.compute(task)
    else:
        fit.fit(task, precision=precision)
