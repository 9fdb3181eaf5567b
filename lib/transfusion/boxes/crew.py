"""Workers: processes that compute, what each is at, and what is to be computed next."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from transfusion import config, machine
from transfusion.boxes import box, serve
from transfusion.studies import schedule
from transfusion.studies.schedule import Task

GAIN = 1.2  # by how much twice as many must be faster together, or they stay as many as they are
SETTLE = 6.0  # seconds that they are watched for: a dozen steps and more, after a graph is captured
SMALLEST = 32  # images scored at once, below which memory is given up on: a step holds as many
# A run is begun if it would end in time at so much more than the last of its kind took: runs of a
# kind differ by a few per cent, and by more where others begin beside them.
SPARE = 1.1


@dataclass
class Worker:
    """A process that computes, and what it is at."""

    process: Any
    pipe: Connection
    task: Task | None = None
    begun: float = 0.0
    step: int = 0
    seconds: float = 0.0  # that its run took up to this step


@dataclass
class Crew:
    """All workers of a call, and what is before them."""

    entries: list[box.Entry]
    todo: dict[str, Task]  # most valuable first
    keep: Callable[[config.Spec], None]  # what is done with a finished one
    say: Callable[[str], None]
    jobs: int
    most: int  # processes that it may come to
    deadline: float = float("inf")  # of time.monotonic
    batch: int = 256  # images that are scored at once
    workers: list[Worker] = field(default_factory=list)
    rates: dict[tuple, float] = field(default_factory=dict)  # kind of work -> operations a second
    late: set[str] = field(default_factory=set)  # would not end in time
    broken: dict[str, str] = field(default_factory=dict)  # why they cannot be computed here
    tries: dict[str, int] = field(default_factory=dict)
    done: int = 0
    settled: tuple[float, float] = (0.0, 0.0)  # since when so many work, and the rate before


def assign(crew: Crew) -> None:
    """Give whoever is idle what fits, and start workers as long as there is more."""
    idle = [worker for worker in crew.workers if worker.task is None]
    while len(idle) + sum(w.task is not None for w in crew.workers) < crew.jobs:
        chosen = _next(crew)
        if chosen is None:
            return
        idle.append(_start(crew))
    for worker in idle:
        chosen = _next(crew)
        if chosen is None:
            return
        task = crew.todo.pop(chosen)
        worker.task, worker.begun, worker.step = task, time.monotonic(), 0
        precision = next((e.precision for e in crew.entries if e.spec.key == chosen), None)
        try:
            worker.pipe.send((config.dump(task), precision, crew.deadline))
        except OSError:  # it was killed while it waited
            _killed(crew, worker, "its process was killed")


def _next(crew: Crew) -> str | None:
    """The most valuable task that can begin now and end in time."""
    ahead = crew.todo.keys() | {w.task.key for w in crew.workers if w.task}
    for key, task in crew.todo.items():
        if key in crew.late or {need.key for need in schedule.needs(task)} & ahead:
            continue
        expected = _expected(task, crew)
        if expected is None or time.monotonic() + SPARE * expected < crew.deadline:
            return key
    return None


def _kind(task: Task) -> tuple:
    if isinstance(task, config.Run):
        return "Run", task.model, task.data.size
    if isinstance(task, config.Comparison):
        return "Comparison", task.runs[0].model, task.data.size
    if isinstance(task, config.Baseline):
        return "Baseline", task.features, task.model, task.data.size
    return "Data", task.name, task.size


def _expected(task: Task, crew: Crew) -> float | None:
    """Seconds that a task takes, by the last of its kind, or else at the fastest rate of any: a
    worker gives up what turns out to be too slow. None where nothing was measured yet."""
    like = [rate for kind, rate in crew.rates.items() if kind[0] == _kind(task)[0]]
    if not like:
        return None
    return schedule.cost(task) / crew.rates.get(_kind(task), max(like))


def _start(crew: Crew) -> Worker:
    machine.one_thread()
    os.environ["TRANSFUSION_EVALUATION_BATCH"] = str(crew.batch)
    spawn = multiprocessing.get_context("spawn")  # a forked CUDA state is broken
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve.serve, args=(theirs,))
    process.start()
    theirs.close()
    worker = Worker(process, ours)
    crew.workers.append(worker)
    return worker


def listen(crew: Crew) -> None:
    """Take what workers say within a second."""
    pipes = {worker.pipe: worker for worker in crew.workers}
    for pipe in wait(list(pipes), timeout=min(1.0, max(0.0, crew.deadline - time.monotonic()))):
        worker = pipes[pipe]  # type: ignore[index]
        try:
            what, *told = worker.pipe.recv()
        except (EOFError, OSError):
            what, told = "killed", ["its process was killed (out of memory?)"]
        ANSWERS[what](crew, worker, *told)


def _ready(crew: Crew, worker: Worker) -> None:
    """Its start is over, which is no part of what its first task takes."""
    worker.begun = time.monotonic()


def _reached(crew: Crew, worker: Worker, step: int, seconds: float) -> None:
    worker.step, worker.seconds = step, seconds


def _finished(crew: Crew, worker: Worker) -> None:
    task, worker.task = worker.task, None
    assert task is not None
    crew.rates[_kind(task)] = schedule.cost(task) / (time.monotonic() - worker.begun)
    if not isinstance(task, config.Data):
        crew.keep(task)
        crew.done += 1


def _gave_up(crew: Crew, worker: Worker) -> None:
    """Its run would not end in time; its rate is known now, and its checkpoint is kept."""
    task, worker.task = worker.task, None
    assert isinstance(task, config.Run)
    share = worker.step / task.optim.steps
    crew.rates[_kind(task)] = share * schedule.cost(task) / (time.monotonic() - worker.begun)
    crew.late.add(task.key)
    crew.todo[task.key] = task


def _failed(crew: Crew, worker: Worker, why: str) -> None:
    task, worker.task = worker.task, None
    assert task is not None
    crew.broken[task.key] = why
    hanging = [k for k, t in crew.todo.items() if task.key in {n.key for n in schedule.needs(t)}]
    for key in hanging:
        crew.broken[key] = f"needs {task.key}"
        del crew.todo[key]


def _cannot_write(crew: Crew, worker: Worker, why: str) -> None:
    """Nothing else could be kept either."""
    raise OSError(f"{why}; free space and call again: what is finished is kept")


def _out_of_memory(crew: Crew, worker: Worker, why: str) -> None:
    """Fewer processes, then smaller evaluation batches; then the run is left as it is."""
    _retire(crew, worker)
    if crew.jobs > 1:
        crew.jobs = crew.most = crew.jobs - 1
    elif crew.batch > SMALLEST:
        crew.batch //= 2
    else:
        _failed(crew, worker, why)
        return
    _again(crew, worker)


def _killed(crew: Crew, worker: Worker, why: str) -> None:
    """Once more from its checkpoint; a second time it is left."""
    _retire(crew, worker)
    if worker.task is None:
        return
    crew.tries[worker.task.key] = crew.tries.get(worker.task.key, 0) + 1
    if crew.tries[worker.task.key] > 1:
        _failed(crew, worker, why)
    else:
        _again(crew, worker)


def _retire(crew: Crew, worker: Worker) -> None:
    crew.workers.remove(worker)
    worker.process.kill()


def _again(crew: Crew, worker: Worker) -> None:
    assert worker.task is not None
    crew.todo = {worker.task.key: worker.task} | crew.todo


ANSWERS: dict[str, Callable[..., None]] = {
    "ready": _ready,
    "reached": _reached,
    "finished": _finished,
    "gave up": _gave_up,
    "failed": _failed,
    "cannot write": _cannot_write,
    "out of memory": _out_of_memory,
    "killed": _killed,
}


def more_workers(crew: Crew) -> None:
    """On a GPU: twice as many processes, as long as that makes them faster together."""
    now = time.monotonic()
    since, before = crew.settled
    busy = [worker for worker in crew.workers if worker.task is not None]
    watched = [w for w in busy if w.step and w.begun + w.seconds > since + SETTLE]
    if crew.jobs >= crew.most or len(watched) < crew.jobs:
        return
    rate = sum(map(_rate, watched))
    if rate < GAIN * before:
        crew.most = crew.jobs
        return
    together = f"{crew.jobs} processes together {rate / 1e12:.2f} TFLOP/s"
    crew.say(f"{together}; trying twice as many")
    crew.jobs, crew.settled = min(2 * crew.jobs, crew.most), (now, rate)


def _rate(worker: Worker) -> float:
    """Operations a second of a worker's run so far."""
    if not isinstance(worker.task, config.Run) or not worker.seconds:
        return 0.0
    return schedule.cost(worker.task) * worker.step / worker.task.optim.steps / worker.seconds


def _images_a_second(crew: Crew) -> float:
    runs = [(w, w.task) for w in crew.workers if isinstance(w.task, config.Run) and w.seconds]
    return sum(w.step * run.optim.batch / w.seconds for w, run in runs)


def progress(crew: Crew) -> str:
    ahead = [w.task for w in crew.workers if w.task] + list(crew.todo.values())
    expected = [_expected(task, crew) for task in ahead]
    known = [seconds for seconds in expected if seconds is not None]
    minutes = sum(known) / max(1, crew.jobs) / 60
    left = f"about {minutes:.1f} min" if len(known) == len(expected) else "not known yet"
    total = crew.done + len([t for t in ahead if not isinstance(t, config.Data)])
    return (
        f"{crew.done} of {total} done, {crew.jobs} at once, {_images_a_second(crew):,.0f} "
        f"images a second, all of it {left}, stops in "
        f"{max(0.0, crew.deadline - time.monotonic()) / 60:.1f} min"
    )
