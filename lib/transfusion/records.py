"""What stays of every run: one compact, checked record, in git, by study.

A study's records are one zarr group, `data_cache/results/<study>`. Its arrays are parts: the bytes
of one record, or of many once they are compacted, with what they mean in the array's attributes
(data_cache/README.md). One array a record and not one a variable, since a repository of 300 runs
should not have 5,000 files. Writing adds a part and never changes another, so processes need no
lock, and clones no merge of files.

A record is a Dataset whose attrs are its facts: `kind`, `key`, the specification, where and by what
it was computed. What many runs share, the targets and patients of a task or the filters that a seed
starts from, is a record of its own, named by its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr

from transfusion import config, files, machine, store

SHARED = {
    "task": ("valid_target", "valid_patient", "test_target", "test_patient"),
    "start": ("first_before",),
}
COMPUTED = ("Run", "Comparison", "Baseline")  # kinds that a study asks for
# Read off the logits by whoever reads them.
DERIVED = ("test_score", "test_auc", "test_ap", "test_top1", "test_top5")
# What a record says beside what its result does.
OF_RECORD = ("kind", "key", "study", "spec", "schema", "shares")
PART = 8 << 20  # bytes of a compacted part: few files, each one that any host takes
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


class Place(NamedTuple):
    """Where a record lies: its part, and what the part says of it."""

    part: Path
    header: dict[str, Any]


class Index(dict[str, Place]):
    """The records of a folder by name."""

    @cached_property
    def begun(self) -> dict[tuple, config.Native]:
        """Repetition -> precision of most of its records, whichever chapter asked for them."""
        counts: dict[tuple, Counter] = {}
        for place in self.values():
            facts = place.header["facts"]
            if facts["kind"] in ("Run", "Comparison") and _is_open(facts):
                counts.setdefault(_told_repetition(facts), Counter())[facts["precision"]] += 1
        return {
            which: max(sorted(n, reverse=True), key=n.__getitem__) for which, n in counts.items()
        }


# --- runs and comparisons as records ---------------------------------------------------------


def made_of(study: str, spec: config.Spec, result: xr.Dataset) -> list[xr.Dataset]:
    """The records that stand for a finished result: what it shares first, its own last."""
    facts = {n: v for n, v in result.attrs.items() if n not in ("schema", "key")}
    facts |= {"kind": type(spec).__name__, "key": spec.key, "schema": config.SCHEMA}
    facts |= {"study": study, "spec": config.dump(spec)}
    if isinstance(spec, config.Comparison):
        return [_compact_types(result).assign_attrs(facts)]
    there = {kind: [n for n in names if n in result] for kind, names in SHARED.items()}
    shared = [_named(kind, study, result[names]) for kind, names in there.items() if names]
    own = result.drop_vars([name for names in there.values() for name in names])
    if "test_logit" in own:
        own = own.drop_vars(DERIVED, errors="ignore")
    facts["shares"] = [record.attrs["key"] for record in shared]
    return [*shared, own.assign_attrs(facts)]


def _named(kind: str, study: str, values: xr.Dataset) -> xr.Dataset:
    key = f"{kind}-{store.checksum(values)[:12]}"
    return values.drop_attrs().assign_attrs(kind=kind, key=key, study=study)


def _compact_types(result: xr.Dataset) -> xr.Dataset:
    """Similarities in single precision, shares of single neurons in half."""
    types = {"explained": np.float16}
    floats = [name for name, v in result.variables.items() if v.dtype.kind == "f"]
    return result.assign({n: result[n].astype(types.get(str(n), np.float32)) for n in floats})


def name(record: xr.Dataset) -> str:
    """What a record is called in its study: its key, and its precision where the specification
    leaves that open, so that both may be there."""
    facts = record.attrs
    return f"{facts['key']}-{facts['precision']}" if _is_open(facts) else facts["key"]


def _is_open(facts: dict[str, Any]) -> bool:
    """Whether a run, or the runs of a comparison, leave their precision open."""
    spec = facts.get("spec", {})
    run = spec["runs"][0] if "runs" in spec else spec
    return run.get("optim", {}).get("precision") == "any"


def keep(study: str, spec: config.Spec) -> bool:
    """Add a result of the cache to a study's records; False where there is none."""
    result = store.read(spec.key)
    if result is None:
        return False
    for record in made_of(study, spec, result):
        append(store.records_folder(study), record)
    return True


def whole(folder: Path, called: str, there: Index | None = None) -> xr.Dataset:
    """What was computed, from its record and those that it shares.

    Who asks often gives what is `there`.
    Raises FileNotFoundError where there is none, store.Damaged where one is not what was written.
    """
    there = index(folder) if there is None else there
    own = read(folder, called, there)
    shared = [read(folder, name, there).drop_attrs() for name in own.attrs.get("shares", [])]
    return xr.merge([own, *shared], combine_attrs="override", join="exact", compat="equals")


# --- which record stands for a run -----------------------------------------------------------


def recorded(
    study: str, specs: Iterable[config.Spec], there: Index | None = None
) -> dict[str, str]:
    """Key -> name of its record, for those of the specs that have one.

    Of runs that leave the precision open, those of one repetition count in one precision alone: the
    one that all of them have, or else that in which the repetition was begun. So every difference
    within a repetition is within a precision. Who asks often gives what is `there`.
    """
    there, specs = index(store.records_folder(study)) if there is None else there, list(specs)
    found = {spec.key: spec.key for spec in specs if spec.key in there}
    for which, members in _repetitions(specs).items():
        chosen = _shown(members, there, there.begun.get(which))
        names = {spec.key: f"{spec.key}-{chosen}" for spec in members}
        found |= {key: called for key, called in names.items() if called in there}
    return found


def _shown(
    members: list[config.Spec], there: dict[str, Place], first: config.Native | None
) -> config.Native | None:
    orders: dict = {"bfloat16": ("bfloat16", "float32")}
    for precision in orders.get(first, ("float32", "bfloat16")):
        if all(f"{spec.key}-{precision}" in there for spec in members):
            return precision
    return first


def done(study: str, specs: Iterable[config.Spec], fast: config.Native | None = None) -> set[str]:
    """Keys of those that need no computing here: recorded, and where their repetition is still to
    be completed in another precision than it was begun in, recorded in that one."""
    specs = list(specs)
    names, chosen = recorded(study, specs), precisions(study, specs, fast)
    there = index(store.records_folder(study))
    found = set(names)
    for members in _repetitions(specs).values():
        if any(spec.key not in names for spec in members):
            found -= {s.key for s in members if f"{s.key}-{chosen[s.key]}" not in there}
    return found


def precisions(
    study: str, specs: Iterable[config.Spec], fast: config.Native | None = None
) -> dict[str, config.Native]:
    """Key -> precision to compute in, of the runs that leave it open: the one in which their
    repetition was begun where this machine is fast at it, else its own, and then all anew. `fast`
    is what another machine is fast at, for which this is asked."""
    started = begun(store.records_folder(study))
    own = fast or machine.precision()
    found: dict[str, config.Native] = {}
    for which, members in _repetitions(specs).items():
        first = started.get(which)
        native = first == "float32" or own == "bfloat16"  # float32 no machine has to emulate
        found |= dict.fromkeys([spec.key for spec in members], first if first and native else own)
    return found


def repetition(spec: config.Spec) -> tuple:
    """What the networks and arms that are compared with each other have in common; a comparison,
    which is of several repetitions, is by itself."""
    if isinstance(spec, config.Comparison):
        return (spec.key,)
    of = spec.data
    return of.name, of.size, of.seed, of.folds, of.fold, spec.seed


def _repetitions(specs: Iterable[config.Spec]) -> dict[tuple, list[config.Spec]]:
    """The specs that leave their precision open, by repetition."""
    found: dict[tuple, list[config.Spec]] = {}
    for spec in specs:
        if leaves_precision(spec):
            found.setdefault(repetition(spec), []).append(spec)
    return found


def leaves_precision(spec: config.Spec) -> bool:
    """Whether a run, or the runs of a comparison, leave their precision open."""
    if isinstance(spec, config.Comparison):
        return leaves_precision(spec.runs[0])
    return isinstance(spec, config.Run) and spec.optim.precision == "any"


def begun(folder: Path) -> dict[tuple, config.Native]:
    """In which precision each repetition of a folder was begun."""
    return index(folder).begun


def _told_repetition(facts: dict[str, Any]) -> tuple:
    """`repetition`, of what a record says."""
    if facts["kind"] == "Comparison":
        return (facts["key"],)
    names = ("name", "size", "seed", "folds", "fold")
    return *(facts["spec"]["data"][name] for name in names), facts["spec"]["seed"]


def vouched(study: str, names: Iterable[str]) -> str:
    """A digest of these records: another result under the same key would change it."""
    there = index(store.records_folder(study))
    sums = [f"{name} {there[name].header['sha256']}" for name in names]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def digest(study: str) -> str:
    """Of all records of a study: another one, or another result, changes it."""
    return vouched(study, sorted(index(store.records_folder(study))))


def facts(study: str) -> dict[str, dict[str, Any]]:
    """What each record of a study says of itself, without its arrays."""
    there = index(store.records_folder(study))
    return {name: place.header["facts"] for name, place in there.items()}


# --- a folder of parts -----------------------------------------------------------------------


def append(folder: Path, record: xr.Dataset) -> bool:
    """Add a record as a part of its own, atomically; False where a whole one is there already."""
    called = name(record)
    if is_whole(folder, called):
        return False
    require_group(folder)
    try:
        write_part(folder / called, [encoded(record)])
    except OSError:  # another process was first
        if not is_whole(folder, called):
            raise
        return False
    return True


def require_group(folder: Path) -> None:
    """Let a folder say that it is a zarr group."""
    told = folder / "zarr.json"
    try:
        said = json.loads(told.read_bytes())
    except (OSError, ValueError):
        said = None
    if said != GROUP:
        store.write_json(told, GROUP)


def is_whole(folder: Path, called: str) -> bool:
    try:
        read(folder, called)
    except (FileNotFoundError, store.Damaged):
        return False
    return True


def read(folder: Path, called: str, there: Index | None = None) -> xr.Dataset:
    """A record by name; raises FileNotFoundError, or store.Damaged where a byte has changed."""
    place = (index(folder) if there is None else there).get(called)
    if place is None:
        raise FileNotFoundError(f"no record {called!r} in {folder}")
    return decoded(place.header, payload(place))


def index(folder: Path) -> Index:
    """The records of a folder by name; parts whose description cannot be read are left out."""
    try:
        # Also their number: a file system's clock may not tell two records apart.
        return _index(folder, folder.stat().st_mtime_ns, len(os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        return Index()


@lru_cache(maxsize=64)
def _index(folder: Path, changed: int, number: int) -> Index:
    found = Index()
    # A record that stands alone comes later, for it was made anew: that in a part was damaged.
    for part in sorted(parts(folder), key=lambda path: not path.name.startswith("part-")):
        for header in headers(part):
            found[header["name"]] = Place(part, header)
    return found


def parts(folder: Path) -> list[Path]:
    """Finished parts: a name that begins with a dot is one that is being written."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != "."]
        return sorted(p for p in found if p.name != "zarr.json")  # something else than the group's
    return []


def claimed(part: Path) -> int:
    """How many records a part says that it has, whole or not; 1 where even that cannot be read."""
    try:
        return len(json.loads((part / "zarr.json").read_bytes())["attributes"]["records"])
    except (OSError, ValueError, LookupError, TypeError):
        return 1


def restore(folder: Path) -> None:
    """Undo what a kill on another machine has left half done; nobody may be writing here."""
    for left in [*folder.glob(".*.old"), *folder.glob(".*.tmp")]:
        files.undo(left)


def headers(part: Path) -> list[dict[str, Any]]:
    """What a part says of its records, but for what is not as it was written."""
    try:
        found = json.loads((part / "zarr.json").read_bytes())["attributes"]["records"]
        return [header for header in found if header["sha256"] == _sum(header)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def verify(part: Path) -> None:
    """Read and hash again all records of a part; raises store.Damaged."""
    found = headers(part)
    if len(found) < claimed(part):
        raise store.Damaged(
            f"{part}: what it says of its records is not what was written; git may have it, else "
            "delete it, and it is made of the cache or computed again"
        )
    for header in found:
        payload(Place(part, header))


def payload(place: Place) -> bytes:
    """The bytes of a record; raises store.Damaged where they are not those written."""
    for read in (_stretch, _by_zarr):
        data = read(place)
        if hashlib.sha256(data).hexdigest() == place.header["data"]:
            return data
    raise store.Damaged(f"{place.part}: record {place.header['name']} is not what was written")


def _stretch(place: Place) -> bytes:
    """In a compacted part, whose one chunk is not compressed, a record is a stretch of its file:
    zarr would read all 8 MB. Of other parts it is nothing, and its checksum says so."""
    try:
        with (place.part / "c" / "0").open("rb") as file:
            file.seek(place.header["start"])
            return file.read(place.header["length"])
    except OSError:
        return b""


def _by_zarr(place: Place) -> bytes:
    start, length = place.header["start"], place.header["length"]
    try:
        array = zarr.open_array(place.part, mode="r", zarr_format=3)
        return np.asarray(array[start : start + length]).tobytes()
    except Exception as error:  # whatever a cut or changed file breaks
        raise store.Damaged(f"{place.part} cannot be read ({error})") from error


def write_part(path: Path, records: list[tuple[dict[str, Any], bytes]]) -> None:
    """A part of records as `encoded` gives them, in place of what lies there, atomically."""
    content = b"".join(data for _, data in records) or b"\0"  # an array of no bytes has no chunk
    start, placed = 0, []
    for header, data in records:
        placed.append({**header, "start": start, "length": len(data)})
        start += len(data)
    values = np.frombuffer(content, np.uint8)
    with store.atomic(path) as temporary:
        array = zarr.create_array(
            temporary,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            # A changed byte would spoil all of a compressed part, and half of it is noise.
            compressors=None if len(records) > 1 else "auto",
            attributes={"records": placed},
            config={"write_empty_chunks": True},
        )
        array[:] = values


def mend(study: str, spec: config.Spec, called: str) -> None:
    """Take what is not whole, of a record and those that it shares, out of its study, and make it
    of the cache again; where that has no result, the record goes too, so that it is computed."""
    folder = store.records_folder(study)
    shares = index(folder)[called].header["facts"].get("shares", [])
    for name in [called, *shares]:
        if not is_whole(folder, name):
            remove(folder, name)
    if not keep(study, spec) or not is_whole(folder, called):
        remove(folder, called)


def remove(folder: Path, called: str) -> None:
    """Take a record out of its study; a part that nothing else is whole in is set aside."""
    place = index(folder).get(called)
    if place is None:
        return
    others = [Place(place.part, h) for h in headers(place.part) if h["name"] != called]
    kept = [(other.header, payload(other)) for other in others if _is_readable(other)]
    if kept:
        write_part(place.part, kept)
        return
    aside = folder / f".{place.part.name}.damaged"  # not a part, and not seen by git
    store.discard(aside)
    place.part.rename(aside)


def _is_readable(place: Place) -> bool:
    try:
        payload(place)
    except store.Damaged:
        return False
    return True


def compact(study: str) -> int:
    """Join a study's records in few parts, once it has ended; the files that it has left.

    What cannot be read stays as it is. Compacted parts are left alone by later calls.
    """
    folder = store.records_folder(study)
    single = [p for p in parts(folder) if not p.name.startswith("part-")]
    whole = [p for p in single if len(headers(p)) == 1 and is_whole(folder, p.name)]
    for chunk in _of_size(whole):
        records = [(header, payload(Place(p, header))) for p in chunk for header in headers(p)]
        sums = "".join(header["sha256"] for header, _ in records)
        write_part(folder / f"part-{hashlib.sha256(sums.encode()).hexdigest()[:12]}", records)
        for part in chunk:  # a kill before here leaves records twice, equal; the next call removes
            store.discard(part)
    return sum(path.is_file() for path in folder.rglob("*"))


def _of_size(whole: list[Path]) -> Iterator[list[Path]]:
    chunk, size = list[Path](), 0
    for part in whole:
        chunk.append(part)
        size += sum(header["length"] for header in headers(part))
        if size > PART:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# --- a record as bytes -----------------------------------------------------------------------


def encoded(record: xr.Dataset) -> tuple[dict[str, Any], bytes]:
    """A record's header, plain JSON, and the bytes of its arrays. `data` is the sha256 of these,
    and `sha256` that of the header: together they cover all of it."""
    arrays, texts, data = list[list](), dict[str, list](), b""
    for variable, values in sorted(record.variables.items(), key=lambda item: str(item[0])):
        if values.dtype.kind in "UOT":
            texts[str(variable)] = [list(values.dims), np.asarray(values.values).tolist()]
            continue
        little = values.values.astype(values.dtype.newbyteorder("<"))
        arrays.append([variable, list(values.dims), little.dtype.str, list(little.shape)])
        data += little.tobytes()
    header: dict[str, Any] = {"name": name(record), "facts": _plain(record.attrs)}
    header["arrays"] = arrays
    header |= {"texts": texts, "coords": sorted(map(str, record.coords))}
    header["data"] = hashlib.sha256(data).hexdigest()
    return {**header, "sha256": _sum(header)}, data


def decoded(header: dict[str, Any], data: bytes) -> xr.Dataset:
    """The inverse of `encoded`."""
    variables: dict[str, Any] = {n: (dims, np.array(v)) for n, (dims, v) in header["texts"].items()}
    start = 0
    for variable, dims, kind, shape in header["arrays"]:
        count = int(np.prod(shape))
        values = np.frombuffer(data, kind, count, start).reshape(shape)
        variables[variable] = (dims, values.astype(values.dtype.newbyteorder("=")))
        start += values.nbytes
    coords = {n: variables.pop(n) for n in header["coords"]}
    return xr.Dataset(variables, coords, header["facts"])


def _plain(facts: dict) -> dict[str, Any]:
    """As JSON gives them back: numpy's numbers become Python's, tuples lists."""
    return json.loads(json.dumps(facts, default=lambda value: value.item(), allow_nan=False))


def _sum(header: dict[str, Any]) -> str:
    """sha256 of a header but for where its record lies."""
    told = {n: v for n, v in header.items() if n not in ("sha256", "start", "length")}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
