"""By what a result was made: the commit, the versions, and a digest of the files that compute."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transfusion import files

LIBRARY = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "timm", "numpy", "xarray")
# Files of the library that can change a result.
COMPUTE = (
    *("config.py", "terms.py", "machine.py"),
    *("images", "networks", "training", "similarity", "statistics"),
)


@cache
def code(folder: Path = LIBRARY) -> str:
    """A digest of a library's files, those that compute and those that only show."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".csv")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def identity() -> str:
    """A digest of what computes: the library's files that can change a result, and the versions of
    the libraries that do the sums. What was left unfinished by another is begun anew."""
    digest = hashlib.sha256(json.dumps([_version(name) for name in PACKAGES]).encode())
    for part in COMPUTE:
        paths = [LIBRARY / part] if part.endswith(".py") else sorted((LIBRARY / part).rglob("*.py"))
        for path in paths:
            digest.update(str(path.relative_to(LIBRARY)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def has_changed() -> bool:
    """Whether what computes was edited since its identity was first asked for."""
    return identity.__wrapped__() != identity()


@cache
def facts() -> dict[str, str]:
    """Commit and versions, for the attrs of whatever is computed here: those of the moment when the
    first computation began, since a checkout may go on while its code is at work."""
    return {"commit": _commit(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The checkout's commit, with `+` where tracked files of the library differ from it; of a
    library that was packed, the commit that it was packed at."""
    packed = Path(__file__).with_name("COMMIT")
    if packed.exists():
        return packed.read_text().strip()
    command = ["git", "-C", str(files.HOME), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
