"""What comes back from a box: a few files of records, none large.

Borrowed machines give back eight files of 16 MB at most. So records lie in three parts of two files
each, with the group's and a log, and a part is written anew, atomically, with each record added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from transfusion import records, store

# Bytes of arrays and headers before compression: below the 16 MB a file that come back.
PARTS, LARGEST = 3, 15_500_000
Encoded = tuple[dict[str, Any], bytes]


class Full(OSError):
    """The folder holds as much as may come back."""


def require(out: Path) -> None:
    """Raise an OSError where a folder cannot be one, or holds other things."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: give a folder for the records")
    out.mkdir(parents=True, exist_ok=True)
    known = {"log.txt", "zarr.json", *(part.name for part in _parts(out))}
    other = [p.name for p in out.iterdir() if p.name not in known and p.name[0] != "."]
    if other:
        raise FileExistsError(f"{out} holds other things ({other[0]}): give a folder of its own")


def held(out: Path) -> dict[str, dict[str, Any]]:
    """The facts of each record in the folder, by name, after clearing what a kill has left half
    written; one that is not whole does not count."""
    records.restore(out)
    found = [header for part in _parts(out) for header, _ in _whole(part)]
    return {header["name"]: header["facts"] for header in found}


def add(out: Path, found: list[xr.Dataset]) -> None:
    """Add records that are not there yet; raises Full where they do not fit."""
    there = records.index(out)
    for record in found:
        if records.name(record) not in there:
            _place(out, records.encoded(record), _parts(out))


def add_weights(out: Path, found: list[xr.Dataset]) -> bool:
    """Add weights where they leave a whole part for records, from the last part on; else False."""
    there = records.index(out)
    new = [records.encoded(record) for record in found if records.name(record) not in there]
    room = {part: LARGEST - _size(_whole(part)) for part in _parts(out)[:0:-1]}
    for each in new:  # all of them or none
        part = next((part for part in room if _bytes(each) < room[part]), None)
        if part is None:
            return False
        room[part] -= _bytes(each)
    for each in new:
        _place(out, each, list(room))
    return True


def _parts(out: Path) -> list[Path]:
    return [out / f"part-{number}" for number in range(PARTS)]


def _whole(part: Path) -> list[Encoded]:
    found: list[Encoded] = []
    for header in records.headers(part):
        try:
            found.append((header, records.payload(records.Place(part, header))))
        except store.Damaged:
            continue
    return found


def _place(out: Path, new: Encoded, parts: list[Path]) -> None:
    for part in parts:
        kept = _whole(part)
        if _size(kept) + _bytes(new) < LARGEST:
            records.require_group(out)
            records.write_part(part, [*kept, new])
            return
    raise Full(f"{out} holds as much as may come back: merge it, pack again, go on with that box")


def _size(kept: list[Encoded]) -> int:
    return sum(map(_bytes, kept))


def _bytes(encoded: Encoded) -> int:
    return len(str(encoded[0])) + len(encoded[1])
