"""Files and folders that appear whole or not at all, and what a kill leaves of them.

Whatever is written goes to a temporary name beside its target, and is renamed. A process notes
these names in a journal, a file of the cache that it keeps locked as long as it lives: who begins
later and finds one unlocked removes what that process has left.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

HOME = Path(__file__).resolve().parents[2]  # the checkout
T = TypeVar("T")
# Seconds for which a reader tries again while what it reads is being replaced.
PATIENCE = 30.0
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{32}(\.[0-9a-f]{8})?\.(tmp|old)")  # target, process


class Damaged(ValueError):
    """Files on disk are not what was written."""


def root() -> Path:
    """The cache folder; the variable TRANSFUSION_CACHE moves it."""
    place = os.environ.get("TRANSFUSION_CACHE") or str(HOME / "data_cache")
    return _resolved(os.path.expanduser(place))


@cache
def _resolved(path: str) -> Path:
    """Once: it is asked for at every file, and must not move with the working folder."""
    return Path(path).resolve()


def require_writable() -> None:
    """Raise PermissionError or OSError before work starts if results could not be kept."""
    try:
        root().mkdir(parents=True, exist_ok=True)
        probe, _ = _names(root() / "probe")
        try:
            probe.write_bytes(b"\0" * (1 << 20))
            _fsync(probe)
        finally:
            discard(probe)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write results to {root()}: {error.strerror}; free or move it "
            "(TRANSFUSION_CACHE names another folder)",
        ) from None


# --- atomic writes ---------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`; file or folder takes its place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _names(target)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        _replace(temporary, target, old)
    finally:
        discard(temporary)


def _names(target: Path) -> tuple[Path, Path]:
    """What a target is called before it is in place, and what it replaces after; both noted."""
    journal = _journal()
    name = f".{target.name}.{journal.path.name}"
    temporary = target.with_name(f"{name}.{uuid.uuid4().hex[:8]}.tmp")
    old = target.with_name(f"{name}.old")
    _note(journal, temporary, old)
    return temporary, old


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(temporary: Path, target: Path, old: Path) -> None:
    """Rename, keeping the old folder under another name until the new one is in place. A file where
    a folder should be, a folder for a file, or a link is nothing of ours."""
    if target.is_symlink() or (target.exists() and target.is_dir() != temporary.is_dir()):
        discard(target)
    if target.is_dir():
        os.replace(target, old)
    os.replace(temporary, target)
    discard(old)


def discard(path: Path) -> None:
    """Remove a file, folder or link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a folder or link that lies where a file should."""
    if path.is_symlink() or path.is_dir():
        discard(path)


def locked(path: Path) -> FileLock:
    """A lock by this file; whatever else lies in its place, a link of a stranger's too, goes."""
    clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file atomically, its first line the checksum of the rest."""
    with atomic(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote; raises Damaged if it is not that, and OSError."""
    seal, _, content = path.read_bytes().partition(b"\n")
    if seal != hashlib.sha256(content).hexdigest().encode():
        raise Damaged(f"{path} is not what was written")
    return content


# --- reading while others write --------------------------------------------------------------


def steadily(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a folder, which raises Damaged for what is not whole: then once more, if
    meanwhile another took its place, since files of both were read.

    Between the two renames of a replacement the folder has its old name. Raises FileNotFoundError.
    """
    until = time.monotonic() + PATIENCE
    while True:
        place = present(path)
        before = _which(place)
        try:
            return read(place)
        except Damaged:
            if time.monotonic() > until or _which(present(path)) == before:
                raise


def present(path: Path) -> Path:
    """Where a folder lies; looked for twice, since it may come back while the old one goes."""
    for _ in range(2):
        if path.exists():
            return path
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            return old
    raise FileNotFoundError(f"no store at {path}")


def _which(place: Path) -> tuple[Path, int, int]:
    """The same folder where it is, and not under its old name."""
    try:
        found = place.stat()
    except FileNotFoundError:  # just now: what is asked next is another
        return place, 0, time.monotonic_ns()
    return place, found.st_ino, found.st_mtime_ns


# --- what a kill leaves ----------------------------------------------------------------------


class Journal(NamedTuple):
    """Where a process notes its temporary files, and by what it is held; None where it has none."""

    process: int
    cache: Path
    path: Path
    handle: int | None


_own: list[Journal] = []  # of this process, no more than one


def _journal() -> Journal:
    """This process's own; when it begins one, it works off those of dead processes."""
    asked = os.getpid(), root()
    if not _own or _own[0][:2] != asked:
        close_journal()
        path = root() / ".processes" / uuid.uuid4().hex
        _own[:] = [Journal(*asked, path, _begin(path))]
        for other in path.parent.glob("*"):
            if other != path:
                _work_off(other)
    return _own[0]


def _begin(path: Path) -> int | None:
    """Create and lock a journal; it has another name until it is locked, or it would seem a dead
    process's. None in a cache that is only read: pages may still be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(handle, fcntl.LOCK_EX)
        fresh.rename(path)
    except OSError:
        return None
    return handle


@atexit.register
def close_journal() -> None:
    """Let go of this process's journal, and remove it; a child that was forked leaves its parent's
    where it is."""
    for journal in _own:
        if journal.handle is not None:
            os.close(journal.handle)
        if journal.process == os.getpid():
            with contextlib.suppress(OSError):
                journal.path.unlink(missing_ok=True)
    _own.clear()


def _note(journal: Journal, *paths: Path) -> None:
    """Write these down as they lie from the cache, which may be moved."""
    if journal.handle is not None:
        lines = [json.dumps(os.path.relpath(path, journal.cache)) + "\n" for path in paths]
        with contextlib.suppress(OSError):  # a full disk: the write itself will tell
            os.write(journal.handle, "".join(lines).encode())


def _work_off(journal: Path) -> None:
    """Undo what a journal tells of, if its process is dead. It may name no files but such as that
    process called its own: in a shared cache others write journals, too."""
    if not re.fullmatch("[0-9a-f]{32}", journal.name):
        return
    with contextlib.suppress(OSError):  # its process lives, or another user's, or just removed
        handle = os.open(journal, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for line in journal.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # cut, or nothing of ours
                    path = Path(os.path.normpath(journal.parents[1] / json.loads(line)))
                    if f".{journal.name}." in path.name:
                        undo(path)
            journal.unlink()
        finally:
            os.close(handle)


def undo(left: Path) -> None:
    """Remove a temporary, or put back what was to be replaced where nothing has taken its place."""
    named = LEFT.fullmatch(left.name)
    if named is None:
        return
    target = left.with_name(named[1])
    if named[3] == "old" and left.exists() and not target.exists():
        left.rename(target)
    else:
        discard(left)
