"""What each chapter needs run, and the collected Dataset that it shows.

No torch is imported here until something is missing, so a book whose results exist needs none.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import ValidationError
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from transfusion import config, data, filters, store

Spec = config.Run | config.Comparison
Task = config.Data | Spec  # what a process is given; synthetic images are drawn before their runs
Labels = dict[str, str | int]
# No target run has it: a source that began as a target's random network did would resemble it.
SOURCE_SEED = 1_000_000


@dataclass(frozen=True, kw_only=True, config=config.STRICT)
class Knobs:
    """The parameters of the notebooks; params/README.md explains each, with units.

    What every chapter declares has no default here: a study says all of it.
    """

    study: str
    target: str
    source: str
    weights: dict[str, str]
    models: list[str]
    inits: list[config.InitName]
    image_size: int
    train_size: config.Count | None
    valid_size: config.Count | None
    test_size: config.Count | None
    source_size: config.Count
    steps: config.Count
    source_steps: config.Count
    batch: config.Count
    lr: config.Positive
    evaluations: config.Count
    precision: Literal["auto", "float32", "bfloat16"]
    seeds: config.Count
    targets: list[str] | None = None
    images: config.Count = 1000
    positions: config.Count = 16
    neurons: config.Count = 64


# --- chapter and parameters -> runs ----------------------------------------------------------


def runs(chapter: str, **parameters) -> list[Spec]:
    """The runs, or comparisons of them, that a chapter needs; raises ValueError for bad knobs."""
    if chapter in SIMULATED:
        return []
    return [spec for _, spec in _labelled(chapter, _knobs(parameters))]


def _knobs(parameters: dict) -> Knobs:
    for name in parameters:
        config.one_of(name, Knobs.__dataclass_fields__, "parameter")
    for init in parameters.get("inits", []):
        config.one_of(init, get_args(config.InitName), "init")
    try:
        return Knobs(**parameters)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
        raise ValueError("; ".join(lines)) from None


def _labelled(chapter: str, knobs: Knobs) -> list[tuple[Labels, Spec]]:
    return list(CHAPTERS[config.one_of(chapter, CHAPTERS, "chapter")].tasks(knobs))


def _trainings(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """Models x inits x seeds on one target."""
    for model in knobs.models:
        for init in knobs.inits:
            for seed in range(knobs.seeds):
                run = _run(knobs, knobs.target, model, init, seed)
                yield {"model": model, "init": init, "seed": seed}, run


def _comparisons(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """One comparison a model, of all its networks."""
    chosen: dict = {n: getattr(knobs, n) for n in ("images", "positions", "neurons")}
    for model in knobs.models:
        nets = tuple(
            _run(knobs, knobs.target, model, init, seed)
            for init in knobs.inits
            for seed in range(knobs.seeds)
        )
        yield {"model": model}, config.Comparison(runs=nets, **chosen)


def _tasks(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """Models x targets x seeds from random init (data)."""
    for model in knobs.models:
        for target in knobs.targets or [knobs.target]:
            for seed in range(knobs.seeds):
                run = _run(knobs, target, model, "random", seed)
                yield {"model": model, "target": target, "seed": seed}, run


def _run(knobs: Knobs, target: str, model: str, init: config.InitName, seed: int) -> config.Run:
    images = config.Data(
        name=data.resolve(target),
        size=knobs.image_size,
        train=knobs.train_size,
        valid=knobs.valid_size,
        test=knobs.test_size,
    )
    start = config.Init(name=init, source=None if init == "random" else _source(knobs, model))
    return config.Run(
        data=images, model=model, init=start, optim=_optim(knobs, knobs.steps), seed=seed
    )


def _source(knobs: Knobs, model: str) -> config.Run | str:
    """Named pretrained weights where the study has them for a model, else a run on `source`."""
    if model in knobs.weights:
        return knobs.weights[model]
    size = knobs.source_size
    images = config.Data(
        name=data.resolve(knobs.source),
        size=knobs.image_size,
        train=size,
        valid=max(100, size // 10),
        test=max(100, size // 10),
    )
    optim = _optim(knobs, knobs.source_steps)
    return config.Run(data=images, model=model, init=config.Init(), optim=optim, seed=SOURCE_SEED)


def _optim(knobs: Knobs, steps: int) -> config.Optim:
    return config.Optim(
        steps=steps,
        batch=knobs.batch,
        lr=knobs.lr,
        evaluations=knobs.evaluations,
        precision=precision() if knobs.precision == "auto" else knobs.precision,
    )


def precision() -> config.Precision:
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


def gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


# --- runs -> the collected Dataset -----------------------------------------------------------


def collect(chapter: str, **parameters) -> xr.Dataset:
    """The Dataset that a chapter shows; what is missing is computed first, with a progress bar.

    Collected results that hold these very runs are taken as they are. Dimensions are those of
    data_cache/README.md; attrs carry every run's key, status, device, commit and seconds.
    """
    knobs = _knobs(parameters)
    labelled = _labelled(chapter, knobs)
    if is_collected(knobs.study, chapter, [spec for _, spec in labelled]):
        return store.open(knobs.study, chapter)
    compute([spec for _, spec in labelled])
    results = [(labels, spec, result(spec)) for labels, spec in labelled]
    dataset = CHAPTERS[chapter].table(results)
    facts = [_facts(labels, spec, result) for labels, spec, result in results]
    dataset.attrs = {
        "runs": json.dumps(facts),
        "parameters": json.dumps(asdict(knobs)),
        "train_images": _train_images(labelled[0][1]),
    }
    store.save(knobs.study, chapter, dataset)
    return dataset


def _keys(dataset: xr.Dataset) -> list[str]:
    return [run["key"] for run in json.loads(dataset.attrs["runs"])]


def result(spec: Spec) -> xr.Dataset:
    """What was computed for a spec; raises RuntimeError if it is not there."""
    found = store.read(spec.key)
    if found is None:
        raise RuntimeError(f"result {spec.key} vanished after it was computed")
    return found


def _train_images(spec: Spec) -> int:
    run = spec.runs[0] if isinstance(spec, config.Comparison) else spec
    return run.data.train or len(data.split_of(data.load(run.data), "train").image)


def _facts(labels: Labels, spec: Spec, result: xr.Dataset) -> dict:
    names = ("status", "reason", "device", "commit", "torch", "seconds", "best_step")
    return {"key": spec.key, **labels, **{n: result.attrs[n] for n in names if n in result.attrs}}


Results = list[tuple[Labels, Spec, xr.Dataset]]


def _run_table(results: Results) -> xr.Dataset:
    """Curves and test AUC of runs, unstacked along their labels; failed runs are nan."""
    wanted = ["auc", "loss", "test_auc", "test_ap"]
    parts = [result[[n for n in wanted if n in result]] for _, _, result in results]
    return _unstack(_joined(parts), [labels for labels, _, _ in results], "run")


def _joined(parts: list[xr.Dataset], dim: str = "run") -> xr.Dataset:
    """Side by side along a new dimension; nan where one lacks what another has."""
    return xr.concat(
        parts, dim, data_vars="all", coords="minimal", join="outer", combine_attrs="drop"
    )


def _data_table(results: Results) -> xr.Dataset:
    """With what training added to the first layer of one network a target: after a short training
    the noise that a network starts from still hides what it learned."""
    changes = {}
    for labels, spec, _ in results:
        if labels["seed"] == 0:
            before, after = _first_layer(spec)
            changes[labels["target"]] = after - before
    dims = ("target", "filter", "channel", "y", "x")
    change = xr.DataArray(np.stack(list(changes.values())), {"target": list(changes)}, dims)
    return _run_table(results).assign(conv1_change=change)


def _first_layer(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Weights (filter, channel, y, x) before and after training."""
    from transfusion import train

    assert isinstance(spec, config.Run)
    nets = [train.network(spec, trained=trained) for trained in (False, True)]
    before, after = (next(net.parameters()).detach().numpy() for net in nets)
    return before, after


def _filter_table(results: Results) -> xr.Dataset:
    """How far each first-layer filter moved, how well a Gabor fits it, and pictures of one seed."""
    done = [(labels, spec) for labels, spec, result in results if result.attrs["status"] == "done"]
    if not done:
        raise Failed("every run of this chapter failed, so there are no filters to show")
    found = [(labels, _filters(_first_layer(spec))) for labels, spec in done]
    first = {(labels["model"], labels["init"]): part[["grey"]] for labels, part in found[::-1]}
    names: list[Labels] = [{"model": model, "init": init} for model, init in first]
    shown = _unstack(_joined(list(first.values())), names, "run")
    table = _joined([part.drop_vars(["grey", "y", "x"]) for _, part in found])
    table = _unstack(table, [labels for labels, _ in found], "run")
    rows = pd.DataFrame([labels for labels, _, _ in results])  # what failed is nan, not absent
    return table.reindex({n: list(dict.fromkeys(rows[n])) for n in rows}).assign(grey=shown["grey"])


def _filters(states: tuple[np.ndarray, np.ndarray]) -> xr.Dataset:
    fits = np.stack([filters.gabor_fit(weights) for weights in states])
    grey = np.stack([weights.mean(1) for weights in states]).astype(np.float32)
    count, size = grey.shape[1:3]
    coords: dict = {"state": ["initial", "final"], "filter": range(count)}
    coords |= {"y": range(size), "x": range(size)}
    parts: dict = {
        "moved": ("filter", filters.moved(*states)),
        "gabor": (("state", "filter"), fits),
    }
    parts |= {"gabor_level": filters.gabor_level(size)}
    return xr.Dataset(parts | {"grey": (("state", "filter", "y", "x"), grey)}, coords)


def _final_table(results: Results) -> xr.Dataset:
    """Comparisons of trained networks with each other."""
    table = _comparison_table(results).drop_vars("explained")
    return table.isel(pair=((table.state_a == "final") & (table.state_b == "final")).values)


def _change_table(results: Results) -> xr.Dataset:
    """Comparisons of networks before and after training, and the number of their parameters."""
    from transfusion import models

    table = _comparison_table(results).drop_vars(["map", "map_null", "other"])
    counts = [models.parameters(str(model)) for model in table.model.values]
    return table.assign(parameters=("model", counts))


def _comparison_table(results: Results) -> xr.Dataset:
    """Comparisons of several models; networks are named by init, seed and state."""
    parts = []
    for _, spec, result in results:
        runs = spec.runs if isinstance(spec, config.Comparison) else ()
        nets = {run.key: (run.init.name, run.seed) for run in runs}
        names = [
            _pair_name(nets, a, b)
            for a, b in zip(result.net_a.values, result.net_b.values, strict=True)
        ]
        part = result.drop_vars(["net_a", "net_b"]).assign_coords(pair=names)
        parts.append(
            part.assign_coords(depth=("block", range(len(part.block)))).reset_coords("depth")
        )
    stacked = _joined(parts, "model")
    stacked = stacked.assign_coords(model=[labels["model"] for labels, _, _ in results])
    return stacked.assign_coords(_pair_coordinates(stacked["pair"].values))


def _pair_name(nets: Mapping[str, tuple[str, int]], a: str, b: str) -> str:
    """`init seed state | init seed state`."""
    return " | ".join(
        f"{nets[key][0]} {nets[key][1]} {state}" for key, state in (n.split(":") for n in (a, b))
    )


def _pair_coordinates(pairs: Iterable[str]) -> dict[str, tuple[str, list]]:
    fields = [[*a.split(" "), *b.split(" ")] for a, b in (pair.split(" | ") for pair in pairs)]
    names = ("init_a", "seed_a", "state_a", "init_b", "seed_b", "state_b")
    columns = dict(zip(names, map(list, zip(*fields, strict=True)), strict=True))
    return {name: ("pair", values) for name, values in columns.items()}


def _unstack(stacked: xr.Dataset, labels: list[Labels], dim: str) -> xr.Dataset:
    index = pd.MultiIndex.from_frame(pd.DataFrame(labels))
    coords = xr.Coordinates.from_pandas_multiindex(index, dim)
    table = stacked.assign_coords(coords).unstack(dim)
    # Unstacking sorts; the order of the parameters is the order of rows in tables and figures.
    order = {name: list(dict.fromkeys(values)) for name, values in pd.DataFrame(labels).items()}
    return table.reindex(order)


class Chapter(NamedTuple):
    """What a chapter needs, and the table that it shows."""

    tasks: Callable[[Knobs], Iterator[tuple[Labels, Spec]]]
    table: Callable[[Results], xr.Dataset]


CHAPTERS = {
    "data": Chapter(_tasks, _data_table),
    "performance": Chapter(_trainings, _run_table),
    "representations": Chapter(_comparisons, _final_table),
    "overparametrization": Chapter(_comparisons, _change_table),
    "first_layer": Chapter(_trainings, _filter_table),
    "weight_scaling": Chapter(_trainings, _run_table),
}
SIMULATED = ("methods",)  # needs no runs, and so no parameters but those of its own file


# --- computing -------------------------------------------------------------------------------


class Failed(RuntimeError):
    """Some of the work could not be done; what was finished is kept."""


def missing(specs: Iterable[Spec]) -> list[Task]:
    """Whatever is not there yet, of these and of what they need, in the order of need."""
    needed: dict[str, Task] = {}
    for spec in specs:
        if not _there(spec):
            for need in _needs(spec):
                needed.setdefault(need.key, need)
            needed[spec.key] = spec
    return [spec for spec in needed.values() if not _there(spec)]


def _needs(task: Task) -> list[Task]:
    """What must be there, a run with its weights, before a task can start; sources first."""
    if isinstance(task, config.Data):
        return []
    if isinstance(task, config.Comparison):
        needs = [need for run in task.runs for need in [*_needs(run), run]]
        return list({need.key: need for need in needs}.values())
    source = task.init.source
    return [*([*_needs(source), source] if isinstance(source, config.Run) else []), task.data]


def _there(task: Task) -> bool:
    """Whether images are drawn or prepared, or a result is whole, a run's weights included."""
    if isinstance(task, config.Data):
        return task.name not in data.SYNTHETIC or data.drawn_path(task).exists()
    whole = isinstance(task, config.Comparison) or store.complete(task.key)
    return whole and store.read(task.key) is not None


def compute(specs: Iterable[Spec], *, jobs: int | None = None) -> None:
    """Compute what is missing, one process a core (one in all on a GPU), one thread each.

    Everything is checked before anything starts. Raises ValueError for what cannot run, OSError
    for a cache that cannot be written, Failed if some work broke down, after finishing the rest.
    """
    todo = missing(list(specs))
    if not todo:
        return
    store.require_writable()
    _check(todo)
    jobs = jobs or (1 if gpus() else os.cpu_count() or 1)
    errors: dict[str, BaseException] = {}
    start = time.monotonic()
    with tqdm(total=len(todo), desc="computed", unit="task", disable=None, smoothing=0) as bar:
        for done, (key, error) in enumerate(_perform_all(todo, min(jobs, len(todo))), start=1):
            bar.update()
            if bar.disable:  # no terminal: a line a task, for the log
                print(_progress(done, len(todo), start), file=sys.stderr, flush=True)
            if error is not None:
                errors[key] = error
    if errors:
        lines = [
            f"{key}: {error} (log: {store.run_folder(key)}/log.txt)"
            for key, error in errors.items()
        ]
        raise Failed(
            f"{len(errors)} of {len(todo)} could not be computed:\n  " + "\n  ".join(lines)
        )


def _progress(done: int, total: int, start: float) -> str:
    left = (time.monotonic() - start) / done * (total - done)
    return f"{done} of {total} computed, about {left / 60:.1f} min left"


def _check(todo: list[Task]) -> None:
    from transfusion import train  # torch, needed only now

    needed = [task for spec in todo for task in [*_needs(spec), spec]]
    runs = [task for task in needed if isinstance(task, config.Run)]
    for run in {(run.data, run.model, run.init): run for run in runs}.values():
        train.check(run)


def _perform_all(tasks: list[Task], jobs: int) -> Iterator[tuple[str, BaseException | None]]:
    """Each task's key and error (None if it went well), as they end; needs come before tasks."""
    # Set before the processes start: the libraries read it once, when they are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Memory once had is kept: each step asks for the same again, and fresh pages cost 3 to 7 %.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 34))
    spawn = multiprocessing.get_context("spawn")  # a forked CUDA or OpenMP state is broken
    ranks = _ranks(tasks)
    waiting = {task.key: task for task in sorted(tasks, key=lambda t: -ranks[t.key])}
    while waiting:  # a process that is killed takes its pool down; the rest gets a new one
        with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
            yield from _drain(pool, waiting, jobs)


def _drain(
    pool: ProcessPoolExecutor, waiting: dict[str, Task], jobs: int
) -> Iterator[tuple[str, BaseException | None]]:
    """Start what waits, `jobs` at a time, until all is done or the pool is broken."""
    running: dict[Future, str] = {}
    broken = False
    while running or (waiting and not broken):
        while len(running) < jobs and not broken:
            unfinished = waiting.keys() | set(running.values())
            ready = (k for k, t in waiting.items() if not unfinished & {n.key for n in _needs(t)})
            key = next(ready, None)
            if key is None:
                break
            running[pool.submit(_perform, config.dump(waiting.pop(key)))] = key
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                broken, error = True, Failed("its process was killed (out of memory?)")
            yield running.pop(future), error


def _ranks(tasks: list[Task]) -> dict[str, float]:
    """The work that hangs on each task, itself included: what is long or needed goes first."""
    ranks = {task.key: _cost(task) for task in tasks}
    for task in reversed(tasks):
        for need in _needs(task):
            if need.key in ranks:
                ranks[need.key] = max(ranks[need.key], _cost(need) + ranks[task.key])
    return ranks


@cache
def _cost(task: Task) -> float:
    """About how many floating-point operations a task takes."""
    from transfusion import models

    if isinstance(task, config.Data):
        return 1e9 * sum(n or 0 for n in (task.train, task.valid, task.test))
    if isinstance(task, config.Comparison):
        first = task.runs[0]
        return 2 * len(task.runs) * task.images * models.flops(first.model, first.data.size)
    passes = 3 * task.optim.steps * task.optim.batch
    return passes * models.flops(task.model, task.data.size)


def _perform(fields: dict) -> None:
    task = config.load(fields)
    if isinstance(task, config.Data):
        data.load(task)
        return
    from transfusion import comparison, train

    if isinstance(task, config.Comparison):
        comparison.compare(task)
    else:
        train.fit(task)


# --- studies ---------------------------------------------------------------------------------


def studies() -> list[str]:
    return sorted(path.parent.name for path in (store.HOME / "params").glob("*/common.yml"))


def parameters(study: str, chapter: str) -> dict:
    """The parameter files of a study for a chapter, as papermill would join them.

    Raises ValueError for an unknown study, chapter or a study without that file.
    """
    config.one_of(study, studies(), "study")
    config.one_of(chapter, [*CHAPTERS, *SIMULATED], "chapter")
    folder = store.HOME / "params" / study
    if not (folder / f"{chapter}.yml").exists():
        raise ValueError(
            f"study {study!r} has no {chapter}.yml; it has {', '.join(chapters(study))}"
        )
    own = config.read_yaml(folder / f"{chapter}.yml")
    values = own if chapter in SIMULATED else config.read_yaml(folder / "common.yml") | own
    if values.get("study") != study:
        raise ValueError(f"{folder} says study: {values.get('study')!r}, expected {study!r}")
    return values


def chapters(study: str) -> list[str]:
    """The chapters that a study has parameters for, in the order of the book."""
    folder = store.HOME / "params" / study
    return [c for c in (*SIMULATED, *CHAPTERS) if (folder / f"{c}.yml").exists()]


def status(study: str) -> pd.DataFrame:
    """Runs and comparisons of each chapter by state, and whether its results are collected."""
    rows = []
    for chapter in chapters(study):
        specs = runs(chapter, **parameters(study, chapter))
        states = pd.Series([store.status(spec.key) for spec in specs]).value_counts()
        collected = "yes" if is_collected(study, chapter, specs) else "no"
        rows.append({"chapter": chapter, "collected": collected, **states})
    columns = ["chapter", "collected", "done", "failed", "started", "missing"]
    table = pd.DataFrame(rows).reindex(columns=columns).set_index("chapter")
    return table.fillna(dict.fromkeys(columns[2:], 0)).astype(dict.fromkeys(columns[2:], int))


def is_collected(study: str, chapter: str, specs: list[Spec]) -> bool:
    """Whether the collected results are those of these very runs; so it is where none is needed."""
    try:
        return not specs or _keys(store.open(study, chapter)) == [spec.key for spec in specs]
    except (FileNotFoundError, store.Damaged):
        return False
