"""What comes back from a box: a few files of records, none large.

Borrowed machines give back eight files of 16 MB at most. So records lie in three parts of two files
each, with the group's and a log, and a part is written anew, atomically, with each record added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from transfusion import records, store

PARTS, LARGEST = 3, 15_500_000  # bytes of arrays and headers before compression
Encoded = tuple[dict[str, Any], bytes]


class Full(OSError):
    """The folder holds as much as may come back."""


def held(out: Path) -> dict[str, dict[str, Any]]:
    """The facts of each record in the folder, by name, after clearing what a kill has left half
    written; one that is not whole does not count."""
    records.restore(out)
    for temporary in out.glob(".*.tmp"):
        store.discard(temporary)
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
    new = [records.encoded(record) for record in found]
    room = sum(LARGEST - _size(_whole(part)) for part in _parts(out)[1:])
    if sum(map(_bytes, new)) > room:
        return False
    try:
        for each in new:
            _place(out, each, _parts(out)[:0:-1])
    except Full:  # room in all, but not in one
        return False
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
            if not (out / "zarr.json").exists():
                store.write_json(out / "zarr.json", records.GROUP)
            records.write_part(part, [*kept, new])
            return
    raise Full(f"{out} holds as much as may come back: merge it, and give another folder")


def _size(kept: list[Encoded]) -> int:
    return sum(map(_bytes, kept))


def _bytes(encoded: Encoded) -> int:
    return len(str(encoded[0])) + len(encoded[1])
