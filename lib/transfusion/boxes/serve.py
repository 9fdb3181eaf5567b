"""A process that computes what `work` hands it, one task after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from transfusion import config, machine, store
from transfusion.experiments import baselines
from transfusion.images import tasks
from transfusion.similarity import comparison
from transfusion.studies.schedule import Task
from transfusion.training import fit, loop

SPACE = 50_000_000  # bytes that a checkpoint of a small network and its weights take
MEMORY = ("out of memory", "ALLOC_FAILED")  # what libraries call it that raise errors of their own
CHECKPOINT = 20.0  # seconds between two checkpoints: what a killed run loses


def serve(pipe: Connection) -> None:
    """Be a worker: compute what comes, with its images kept from one run to the next."""
    machine.serve()
    kept: dict[config.Data, Any] = {}
    pipe.send(("ready",))
    while True:
        try:
            fields, precision, deadline = pipe.recv()
        except EOFError:  # whoever handed out the work has ended
            return
        task = config.load(fields)
        answer = _attempt(partial(_perform, task, precision, deadline, pipe, kept))
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
        if answer[0] == "killed":
            return


def _attempt(perform: Callable[[], None]) -> tuple:
    """How it ended, as an answer of `crew`."""
    try:
        perform()
    except loop.Stopped:
        return ("gave up",)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return "out of memory", _first_line(error)
    except Exception as error:
        told = _first_line(error)
        if shutil.disk_usage(store.root()).free < SPACE:  # each writer has an error of its own
            return "cannot write", f"no space left in {store.root()}"
        if any(words in told for words in MEMORY):
            return "out of memory", told
        if "CUDA" in told:  # which every later call in this process would fail with, too
            return "killed", told
        return "failed", f"{type(error).__name__}: {told}"
    return ("finished",)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _perform(
    task: Task,
    precision: config.Native | None,
    deadline: float,
    pipe: Connection,
    kept: dict[config.Data, Any],
) -> None:
    if isinstance(task, config.Data):
        tasks.load(task)
    elif isinstance(task, config.Comparison):
        comparison.compare(task)
    elif isinstance(task, config.Baseline):
        baselines.compute(task)
    else:
        if task.data not in kept:
            kept.clear()  # one set at a time: they may be large
            kept[task.data] = tasks.load(task.data)

        def tell(step: int, seconds: float) -> bool:
            pipe.send(("reached", step, seconds))
            return time.monotonic() + seconds / step * (task.optim.steps - step) < deadline

        fit.fit(
            task,
            precision=precision,
            images=kept[task.data],
            checkpoint_seconds=CHECKPOINT,
            tell=tell,
        )
