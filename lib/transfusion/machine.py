"""This machine: its GPUs and who holds them, threads, and the precision that it is fast at."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from transfusion import config, waiting


def gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def lease_gpus(count: int = 1) -> None:
    """Wait for GPUs that no other job here has, and hold them until this process ends. A wait is
    told, with who has them.

    Nothing is done where there are no more than asked for, or somebody (Slurm) has chosen already.
    """
    if gpus() <= count or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    folder = Path(tempfile.gettempdir(), f"transfusion-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    places = [folder / f"{index}.lock" for index in range(gpus())]
    # Two that wait for several would wait for each other.
    with waiting.lock(folder / "choice.lock", "another job waits for GPUs"):
        late = time.monotonic() + waiting.PATIENCE
        for index in itertools.cycle(range(len(places))):
            with contextlib.suppress(Timeout):
                lock = FileLock(places[index])
                lock.acquire(timeout=0.2)
                waiting.sign(places[index])
                _leased[index] = lock
            if len(_leased) == count:
                break
            if time.monotonic() > late:
                late = math.inf
                others = [p for i, p in enumerate(places) if i not in _leased]
                waiting.tell("too few GPUs are free", *others)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sorted(_leased)))  # before CUDA starts


_leased: dict[int, FileLock] = {}  # a lock that nobody refers to would be released


def one_thread() -> None:
    """For processes that are still to start: their libraries read this once, when loaded."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Memory once had is kept: each step asks for the same again, and fresh pages cost 3 to 7 %.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 34))


def precision() -> config.Native:
    """bfloat16 where it is fast (a GPU, or a CPU that has it), else float32; without torch.

    Elsewhere a CPU emulates bfloat16, at a tenth of the speed; so it does where the variable
    ONEDNN_MAX_CPU_ISA forbids the instructions.
    """
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    forbidden = not any(name in allowed for name in ("ALL", "DEFAULT", "BF16", "AVX10", "AMX"))
    fast = ("avx512_bf16" in flags or "amx_bf16" in flags) and not forbidden
    return "bfloat16" if gpus() or fast else "float32"
