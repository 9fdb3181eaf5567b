"""A process that computes what `work` hands it, one task after the other."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from transfusion import comparison, config, data, train
from transfusion.schedule import Task

CHECKPOINT = 20.0  # seconds between two checkpoints: what a killed run loses


def serve(pipe: Connection) -> None:
    """Be a worker: compute what comes, with its images kept from one run to the next."""
    kept: dict[config.Data, Any] = {}
    pipe.send(("ready",))
    while True:
        try:
            fields, precision, deadline = pipe.recv()
        except EOFError:  # whoever handed out the work has ended
            return
        task = config.load(fields)
        pipe.send(_attempt(partial(_perform, task, precision, deadline, pipe, kept)))


def _attempt(perform: Callable[[], None]) -> tuple:
    """How it ended, as an answer of `crew`."""
    try:
        perform()
    except train.Stopped:
        return ("gave up",)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return "out of memory", str(error).splitlines()[0] if str(error) else "out of memory"
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return "cannot write", str(error)
        return "failed", f"{type(error).__name__}: {error}"
    return ("finished",)


def _perform(
    task: Task,
    precision: config.Native | None,
    deadline: float,
    pipe: Connection,
    kept: dict[config.Data, Any],
) -> None:
    if isinstance(task, config.Data):
        data.load(task)
    elif isinstance(task, config.Comparison):
        comparison.compare(task)
    else:
        if task.data not in kept:
            kept.clear()  # one set at a time: they may be large
            kept[task.data] = data.load(task.data)

        def tell(step: int, seconds: float) -> bool:
            pipe.send(("reached", step, seconds))
            return time.monotonic() + seconds / step * (task.optim.steps - step) < deadline

        train.fit(
            task,
            precision=precision,
            images=kept[task.data],
            checkpoint_seconds=CHECKPOINT,
            tell=tell,
        )
