"""A study packed for a machine without network, and what it brings back.

A box is a folder: `box.json` (what to compute, most valuable first), `images` (prepared sets, each
picture a WebP), `weights` (pretrained ones, in half precision where that is exact), `sources`
(networks pretrained at home, as records) and the library. `pack` makes it, `work` computes in it,
and `merge` adds the records that come back. Nothing here needs more than a box may count on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from PIL import Image
from safetensors.numpy import load_file, save, save_file

from transfusion import config, provenance, records, store
from transfusion.images import tasks

# Bytes of weights a record, so that files of `outbox.LARGEST` fill well; a larger tensor has one of
# its own.
PIECE = 8_000_000


class Entry(NamedTuple):
    """What a box asks for: a run or comparison, for which study, and in which precision where its
    repetition was begun in one."""

    study: str
    spec: config.Spec
    precision: config.Native | None


def read(box: Path) -> list[Entry]:
    """What a box asks for, most valuable first, and what is needed before what needs it.

    Raises FileNotFoundError or ValueError where it is no box, is not whole, or was packed by other
    code than would work in it.
    """
    try:
        told = json.loads((box / "box.json").read_text())
        if told.pop("sha256") != box_digest(told):
            raise ValueError("its checksum is another")
        entries = [Entry(e["study"], _spec(e["spec"]), e["precision"]) for e in told["entries"]]
    except FileNotFoundError:
        raise FileNotFoundError(f"no box at {box}: expected a folder with box.json") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{box / 'box.json'} is not what `pack` wrote: {error}") from None
    if told["code"] != provenance.code():
        own = box.resolve() in provenance.LIBRARY.parents
        advice = "copy it again" if own else "work with its own: python -m transfusion, in the box"
        raise ValueError(
            f"the library is not the one that the box was packed with (commit {told['commit']}): "
            + advice
        )
    for name, expected in told["files"].items():
        if not (box / name).is_file() or store.checksum(box / name) != expected:
            raise ValueError(f"{box / name} is not what was packed: copy the box again")
    return entries


def box_digest(told: dict) -> str:
    """Checksum of what box.json says."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _spec(fields: dict) -> config.Spec:
    spec = config.load(fields)
    assert not isinstance(spec, config.Data)
    return spec


def packed_images(spec: config.Data) -> str:
    return f"images/{spec.name}-{spec.size}.npz"


def packed_weights(name: str) -> str:
    return f"weights/{name}.npz"


# --- images ----------------------------------------------------------------------------------


def pack_images(images: xr.Dataset, path: Path, lossy: int | None = None) -> None:
    """A prepared set as one file, its pictures as WebP: without loss, or of this quality."""
    how = {"quality": lossy} if lossy else {"lossless": True}

    def picture(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "WEBP", **how)
        return file.getvalue()

    with ThreadPoolExecutor() as pool:
        pictures = [file for part in tasks.batches(images) for file in pool.map(picture, part)]
    attrs = {n: v for n, v in images.attrs.items() if n != "sha256"}
    attrs |= {"lossy": lossy} if lossy else {}
    columns: dict[str, Any] = {n: images[n].values for n in ("target", "patient", "split")}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        webp=np.frombuffer(b"".join(pictures), np.uint8),
        offset=np.cumsum([0, *map(len, pictures)]),
        attrs=np.array(json.dumps(attrs)),
        **columns,
    )


def unpack_images(path: Path) -> xr.Dataset:
    """The inverse of `pack_images`; of lossy pictures the attrs say so."""
    with np.load(path) as held:
        webp, offset, attrs = held["webp"], held["offset"], json.loads(str(held["attrs"]))
        target, patient, split = (held[name] for name in ("target", "patient", "split"))

    def pixels(i: int) -> np.ndarray:
        with Image.open(io.BytesIO(webp[offset[i] : offset[i + 1]].tobytes())) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        found = np.stack(list(pool.map(pixels, range(len(offset) - 1))))
    return tasks.dataset(found, target, patient, split, attrs)


# --- weights ---------------------------------------------------------------------------------


def pack_weights(name: str, path: Path) -> None:
    """Named weights, each tensor in half precision where that loses nothing: so they were given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = load_file(store.weights_file(name))
    arrays: dict[str, Any] = {tensor: _halved(values) for tensor, values in state.items()}
    np.savez_compressed(path, **arrays)


def _halved(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


def unpack_weights(name: str, path: Path) -> None:
    """Keep packed weights in the cache, where they must be the file that their name says."""
    with np.load(path) as held:
        state = {n: _single(held[n]) for n in held.files}
    with store.atomic(store.weights_file(name)) as temporary:
        save_file(state, temporary)
    store.verify_weights(store.weights_file(name))


def _single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float16 else values


def weights_records(study: str, key: str) -> list[xr.Dataset]:
    """The weights of a finished run as records: what is used of a source, in half precision but for
    batch norm and biases (`fit.halved`), in pieces that fit in a part."""
    path = store.weights_path(key)
    if path is None:
        return []
    half = {
        n: v.astype(np.float16) if v.ndim > 1 and v.dtype == np.float32 else v
        for n, v in load_file(path).items()
    }
    pieces = list(_pieces(half))
    facts: dict = {"kind": "Weights", "study": study, "run": key, "pieces": len(pieces)}
    facts["precision"] = store.facts(key)["precision"]
    return [
        xr.Dataset(
            {n: ([f"{n} {axis}" for axis in range(v.ndim)], v) for n, v in piece.items()},
            attrs=facts | {"key": f"weights-{key}-{number}"},
        )
        for number, piece in enumerate(pieces)
    ]


def _pieces(state: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    piece, size = dict[str, np.ndarray](), 0
    for name, values in state.items():
        if piece and size + values.nbytes > PIECE:
            yield piece
            piece, size = {}, 0
        piece[name] = values
        size += values.nbytes
    yield piece


def bring_weights(folder: Path) -> dict[str, str]:
    """Keep in the cache what runs in a folder of parts have left with their weights, where these
    are not there. Returns, by key, why it could not be, or nothing where it was brought."""
    there = records.index(folder)
    facts = [place.header["facts"] for place in there.values()]
    found: dict[str, str] = {}
    for key in sorted({told["run"] for told in facts if told["kind"] == "Weights"}):
        if store.complete(key):
            continue
        try:
            found[key] = _bring(folder, there, key)
        except (store.Damaged, FileNotFoundError) as error:
            found[key] = str(error)
    return found


def _bring(folder: Path, there: dict[str, records.Place], key: str) -> str:
    pieces = [name for name in there if name.startswith(f"weights-{key}-")]
    told = there[pieces[0]].header["facts"]
    if len(pieces) < told["pieces"]:
        return f"{len(pieces)} of {told['pieces']} pieces of its weights are there"
    run = next((name for name in (key, f"{key}-{told['precision']}") if name in there), None)
    if run is None:
        return "its weights are there without its record"
    result = records.whole(folder, run)
    read = [records.read(folder, piece) for piece in pieces]
    state = {str(n): _single(values.values) for piece in read for n, values in piece.items()}
    attrs = {n: v for n, v in result.attrs.items() if n not in records.OF_RECORD}
    with store.lease(key):
        store.save_weights(key, save(state))
        store.finish(
            _spec(result.attrs["spec"]),
            result.drop_attrs().assign_attrs(attrs),
            status=attrs["status"],
            seconds=attrs["seconds"],
        )
    return ""


# --- what comes back -------------------------------------------------------------------------


class Merged(NamedTuple):
    """What a merge did, in keys; of `refused`, why."""

    added: list[str]
    there: list[str]
    refused: dict[str, str]
    weights: list[str]
    other_code: list[str]  # of the added: made by another commit than this one


def merge(folders: list[Path]) -> Merged:
    """Add the records of other places to those of their studies here, and their weights to the
    cache. A record is taken where its bytes are those written and its key is that of its
    specification under the present schema; by which code it was made is told, not judged.

    `folders` are what `work` wrote, or another clone's `data_cache/results` or a study in it.
    Raises FileNotFoundError where one holds no record.
    """
    found = Merged([], [], {}, [], [])
    for folder in (f for given in folders for f in _holding(given)):
        records.restore(folder)
        for part in sorted(records.parts(folder), key=_is_own):  # what they share comes first
            _merge_part(part, found)
        for key, why in bring_weights(folder).items():
            if why:
                found.refused[f"weights of {key}"] = why
            else:
                found.weights.append(key)
    return found


def _holding(folder: Path) -> list[Path]:
    """The folders of parts at or below a place."""
    found = [g for g in (folder, *folder.glob("*")) if any(map(_is_part, records.parts(g)))]
    if not found:
        raise FileNotFoundError(f"no records in {folder}: expected what `transfusion work` wrote")
    return found


def _is_part(path: Path) -> bool:
    """Whether a folder is an array, however damaged, and not a group of them."""
    try:
        return json.loads((path / "zarr.json").read_bytes())["node_type"] != "group"
    except FileNotFoundError:
        return False
    except (OSError, ValueError, LookupError, TypeError):
        return True


def _is_own(part: Path) -> bool:
    """Whether a part has no record that others share."""
    return not any(h["facts"]["kind"] in records.SHARED for h in records.headers(part))


def _merge_part(part: Path, found: Merged) -> None:
    whole = sorted(records.headers(part), key=lambda h: h["facts"]["kind"] not in records.SHARED)
    for number in range(records.claimed(part) - len(whole)):
        found.refused[f"{part} ({number + 1})"] = "its description is not what was written"
    for header in whole:
        name, facts = header["name"], header["facts"]
        if facts["kind"] == "Weights":
            continue
        try:
            _check(facts)
            record = records.decoded(header, records.payload(records.Place(part, header)))
            folder = store.records_folder(facts["study"])
            _share(part.parent, facts["study"], facts.get("shares", []))
            new = records.append(folder, record)
        except (store.Damaged, ValueError) as error:
            found.refused[name] = str(error)
            continue
        if facts["kind"] in records.SHARED:
            continue
        (found.added if new else found.there).append(name)
        if new and facts.get("commit") != provenance.facts()["commit"]:
            found.other_code.append(name)


def _share(given: Path, study: str, names: list[str]) -> None:
    """Have in a study what one of its records shares: a box of several studies holds it once, by
    whichever came first. Raises ValueError where it is in neither."""
    folder = store.records_folder(study)
    for name in (n for n in names if not records.is_whole(folder, n)):
        if not records.is_whole(given, name):
            raise ValueError(f"what it shares is not there: {name}")
        records.append(folder, records.read(given, name).assign_attrs(study=study))


def _check(facts: dict[str, Any]) -> None:
    """Raise ValueError for a record that says of itself what is not so here."""
    study = facts["study"]
    known = sorted(p.parent.name for p in (store.HOME / "params").glob("*/common.yml"))
    config.one_of(study, known, "study")
    if facts["kind"] in records.SHARED:
        return
    if facts["schema"] != config.SCHEMA:
        raise ValueError(f"schema {facts['schema']}, expected {config.SCHEMA}: made by other rules")
    if _spec(facts["spec"]).key != facts["key"]:
        raise ValueError("its key is not that of its specification")
