"""This machine: its GPUs and who holds them, threads, memory, and what precision it is fast at."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from transfusion import config


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


def one_thread() -> None:
    """For processes that are still to start: their libraries read this once, when loaded."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Memory once had is kept: each step asks for the same again, and fresh pages cost 3 to 7 %.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 34))


def memory() -> int:
    """Bytes that may be taken without pushing others out, at most what a job was granted; where
    nothing says what is free, all there are."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = dict(line.split(":") for line in lines)
        free = 1024 * int(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_granted()])


def _granted() -> Iterator[int]:
    """The limits of this process's control groups, as Slurm and containers set them."""
    with contextlib.suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        folder = Path("/sys/fs/cgroup", group)
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                yield int((place / "memory.max").read_text())


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
