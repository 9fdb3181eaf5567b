"""This machine: its GPUs and who holds them, processes that end with whoever started them, threads,
memory, and the precision that it is fast at."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
    # A home may be that of many machines, whose GPUs have the same numbers.
    folder = own(Path.home() / ".cache/transfusion" / f"gpus-{socket.gethostname()}")
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


def own(folder: Path) -> Path:
    """A folder, made if it is not there, in which nobody else can leave links or files.

    Raises PermissionError where there is something else: another user's, or a link.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        whose = f"expected a folder of user {os.getuid()} alone"
        raise PermissionError(f"{folder}: {whose}, got one of {found.st_uid}, or a link or file")
    folder.chmod(0o700)
    return folder


PR_SET_PDEATHSIG = 1
BOUND = """
import runpy, sys
from transfusion import machine
machine.end_with(int(sys.argv.pop(1)))
name = sys.argv.pop(1)
if "/" in name:
    runpy.run_path(name, run_name="__main__")
else:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def bound(program: str, *arguments: str) -> list[str]:
    """The command for a Python module (as `python -m`) or script, in a process that ends with this
    one."""
    return [sys.executable, "-c", BOUND, str(os.getpid()), program, *arguments]


def end_with(parent: int) -> None:
    """End this process as soon as the one that started it has ended, be it by kill -9.

    Linux does so, when the very thread ends that started it; elsewhere a thread looks each second.
    """
    tied = sys.platform == "linux" and not ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(1)
    if not tied:
        threading.Thread(target=_look_after, args=(parent,), daemon=True).start()


def _look_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve() -> None:
    """Be a worker of the process that started this one: end with it, and leave Ctrl-C, of which all
    hear, to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    end_with(parent.pid)


@contextlib.contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, one thread each, that end with this one; and at once, with whatever they
    are at, where the block ends by an error, such as Ctrl-C."""
    one_thread()
    spawn = multiprocessing.get_context("spawn")  # a forked CUDA or OpenMP state is broken
    with ProcessPoolExecutor(count, spawn, serve) as pool:
        try:
            yield pool
        except BaseException:
            for process in [*pool._processes.values()]:
                process.kill()
            raise


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
