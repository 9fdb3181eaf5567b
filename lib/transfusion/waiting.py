"""Locks whose holder signs, so that whoever waits can say for whom and since when."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from transfusion import files

PATIENCE = 1.0  # seconds that nobody asks about


@contextlib.contextmanager
def lock(path: Path, why: str) -> Iterator[None]:
    """Hold a lock file; who waits longer than a second says `why`, and for whom."""
    held = files.locked(path)
    try:
        held.acquire(timeout=PATIENCE)
    except Timeout:
        tell(why, path)
        held.acquire()
    try:
        sign(path)
        yield
    finally:
        held.release()


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file; a link or folder is nothing that one of ours would."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with files.locked(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def sign(path: Path) -> None:
    """Write into a lock file, which this process holds, who does."""
    mine = {"pid": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):  # a full disk stops no work here
        path.write_text(json.dumps(mine | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}))


def tell(why: str, *paths: Path) -> None:
    """One line on stderr: who holds these."""
    print(f"{why}: waiting for {'; '.join(map(_holder, paths))}", file=sys.stderr, flush=True)


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text())
        pid, host, since = int(told["pid"]), told["host"], told["since"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"an unknown process (lock: {path})"
    state = _state(pid) if host == socket.gethostname() else ""
    return f"process {pid} on {host}, since {since}{state}"


def _state(pid: int) -> str:
    """What stands in the way of a process here, as /proc has it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # a lock is inherited, and falls with the last that has it
        return " (it has ended; what it started may still be at work)"
    if letter not in "Tt":
        return ""
    return f" (it is stopped: continue it, `kill -CONT {pid}`, or end it, `kill -9 {pid}`)"
