"""What each chapter needs run: knobs -> specifications under their labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import xarray as xr
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from transfusion import config, machine, terms
from transfusion.config import Spec
from transfusion.experiments import tables
from transfusion.experiments.tables import Labels, Results
from transfusion.images import tasks

# No target run has it: a source that began as a target's random network did would resemble it.
SOURCE_SEED = 1_000_000


@dataclass(frozen=True, kw_only=True, config=config.STRICT)
class Knobs:
    """What a study's files and a notebook's setting say; params/README.md has each, with units.

    What every chapter needs has no default here: a study says all of it.
    """

    study: str
    target: str
    folds: Annotated[int, Field(ge=3)] | None = None
    fold: Annotated[int, Field(ge=0)] | None = None
    source: str
    weights: dict[config.Model, str]
    models: list[config.Model]
    inits: list[config.InitName]
    own_inits: dict[config.Model, list[config.InitName]] = field(default_factory=dict)
    image_size: int
    train_size: config.Count | None
    valid_size: config.Count | None
    test_size: config.Count | None
    source_size: config.Count | None
    steps: config.Count
    source_steps: config.Count
    source_image_size: config.Count | None = None
    batch: config.Count
    lr: config.Positive
    tuned: dict[config.Model, config.Positive] = field(default_factory=dict)
    optimizer: config.Optimizer = "adam"
    devices: config.Count = 1
    evaluations: config.Count
    evaluate_at: list[config.Count] = field(default_factory=list)
    augmentation: config.Augmentation = "mirror"
    precision: Literal["auto", "any", "float32", "bfloat16"]
    seeds: config.Count
    targets: list[str] | None = None
    train_sizes: list[config.Count | None] = field(default_factory=list)
    rates: list[config.Positive] = field(default_factory=list)
    grown: dict[config.Model, list[config.Positive]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    variants: dict[str, dict] = field(default_factory=dict)
    images: config.Count = 1000
    positions: config.Count = 16
    neurons: config.Neurons = 64


def runs(chapter: str, **parameters) -> list[Spec]:
    """The runs, or comparisons of them, that a chapter needs; raises ValueError for bad knobs."""
    if chapter in WITHOUT_RUNS:
        return []
    return [spec for _, spec in labelled(chapter, knobs_from(parameters))]


def knobs_from(parameters: dict) -> Knobs:
    for name in parameters:
        config.one_of(name, Knobs.__dataclass_fields__, "parameter")
    try:
        knobs = Knobs(**parameters)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
        raise ValueError("; ".join(lines)) from None
    for model in knobs.own_inits:
        config.one_of(model, knobs.models, "model of own_inits")
    for arm in knobs.tuned:
        model, _, init = arm.partition(" ")
        if not model or not init:
            raise ValueError(f"tuned: {arm!r}: expected `model init`, such as 'resnet50 transfer'")
        config.init_name(init)
    for arm in knobs.grown:
        config.one_of(arm, [f"{m} {i}" for m in knobs.models for i in knobs.inits], "arm of grown")
    if knobs.fold is not None and knobs.fold >= (knobs.folds or 1):
        raise ValueError(f"fold {knobs.fold}: expected 0 to {(knobs.folds or 1) - 1}")
    return knobs


def require_own(chapter: str, parameters: Iterable[str]) -> None:
    """Raise ValueError for knobs that are another chapter's, and would do nothing in this one."""
    own = CHAPTERS[config.one_of(chapter, CHAPTERS, "chapter")].own
    every = {name for each in CHAPTERS.values() for name in each.own}
    for name in every.difference(own).intersection(parameters):
        chapters = [other for other, each in CHAPTERS.items() if name in each.own]
        raise ValueError(f"chapter {chapter!r} has no {name!r}; {', '.join(chapters)} has")


def setting(variables: Mapping[str, Any]) -> dict:
    """The `study` and `setting` among a notebook's variables (its `globals()`), and knobs that
    stand beside them, as papermill puts them there; raises ValueError for two studies."""
    plain = bool | int | float | str | list | dict | None
    knobs = {n: variables[n] for n in Knobs.__dataclass_fields__ if n in variables}
    own = {name: value for name, value in knobs.items() if isinstance(value, plain)}
    own |= variables.get("setting", {})
    if own.setdefault("study", None) != variables.get("study"):
        study = variables.get("study")
        raise ValueError(f"setting names study {own['study']!r}, the notebook {study!r}")
    return own


def labelled(chapter: str, knobs: Knobs) -> list[tuple[Labels, Spec]]:
    found = list(CHAPTERS[config.one_of(chapter, CHAPTERS, "chapter")].tasks(knobs))
    if not found:
        lists = "models, inits, train_sizes, rates or variants"
        raise ValueError(f"chapter {chapter!r} asks for no run: one of {lists} is empty")
    return found


def _scored(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """`_trainings`, and the baselines that they must exceed."""
    yield from _trainings(knobs)
    yield from _baselines(knobs)


def _probed(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """`_scored`, and what the networks' features say before any training for the task."""
    yield from _scored(knobs)
    for model, fold in itertools.product(knobs.models, _folds(knobs)):
        for probe in [init for init in ("random", "transfer") if init in knobs.inits]:
            start = _start(knobs, model, probe)
            images = _images(knobs, knobs.target, fold)
            found = config.Baseline(data=images, features="frozen", model=model, init=start)
            yield {"model": model, "probe": probe, "fold": fold}, found


def _baselines(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    simple: list[Literal["statistics", "thumbnail"]] = ["statistics", "thumbnail"]
    for fold, features in itertools.product(_folds(knobs), simple):
        found = config.Baseline(data=_images(knobs, knobs.target, fold), features=features)
        yield {"baseline": features, "fold": fold}, found


def _trainings(knobs: Knobs) -> Iterator[tuple[Labels, config.Run]]:
    """Models x inits x rates x folds x seeds on one target: at its own rate, or each of `rates`."""
    for model in knobs.models:
        for init in knobs.own_inits.get(model, knobs.inits):
            for rate in [*_asked_rates(knobs), *knobs.grown.get(f"{model} {init}", [])]:
                asked = {"lr": rate} if rate else {}
                for labels, run in _repeated(knobs, knobs.target, model, init, rate):
                    yield {"model": model, "init": init, **asked, **labels}, run


def _asked_rates(knobs: Knobs) -> list[float] | list[None]:
    """The equal rates of all arms; None where each has its own."""
    return list(knobs.rates) if knobs.rates else [None]


def _folds(knobs: Knobs) -> list[int]:
    return list(range(knobs.folds or 1)) if knobs.fold is None else [knobs.fold]


def _sizes(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """Training-set sizes x what `_probed` has; the smaller sets lie within the larger ones."""
    for size in knobs.train_sizes:
        for labels, run in _probed(replace(knobs, train_size=size)):
            yield {"train_images": size or tables.ALL, **labels}, run


def _variants(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """The same arms under other conditions: each variant replaces some knobs."""
    for name, changes in knobs.variants.items():
        for labels, run in _scored(knobs_from(asdict(knobs) | changes)):
            yield {"variant": name, **labels}, run


def _lengths(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """Arms, and pretrainings of `sources`, in the study's length and twice as long."""
    for length in (1, 2):
        for labels, run in _trainings(replace(knobs, steps=length * knobs.steps)):
            yield {**labels, "length": length}, run
        for model in knobs.sources:
            source = _source(replace(knobs, source_steps=length * knobs.source_steps), model)
            if isinstance(source, config.Run):
                labels = {"model": model, "init": "source", "fold": 0, "seed": 0}
                yield {**labels, "length": length}, source


def _comparisons(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """One comparison a model and rate, of all its networks on one fold: pairs share their training
    images. With the networks and baselines themselves: what has not learned is not compared."""
    one = replace(knobs, fold=knobs.fold or 0)
    yield from _scored(one)
    chosen: dict = {n: getattr(knobs, n) for n in ("images", "positions", "neurons")}
    for model, rate in itertools.product(knobs.models, _asked_rates(knobs)):
        arms = [_repeated(one, knobs.target, model, init, rate) for init in knobs.inits]
        nets = tuple(run for arm in arms for _, run in arm)
        asked = {"lr": rate} if rate else {}
        yield {"model": model, **asked}, config.Comparison(runs=nets, **chosen)


def _tasks(knobs: Knobs) -> Iterator[tuple[Labels, Spec]]:
    """Models x targets x folds x seeds from random init (data)."""
    for model, target in itertools.product(knobs.models, knobs.targets or [knobs.target]):
        for labels, run in _repeated(knobs, target, model, "random"):
            yield {"model": model, "target": target, **labels}, run
    for target in knobs.targets or [knobs.target]:
        for labels, found in _baselines(replace(knobs, target=target)):
            yield {"target": target, **labels}, found


def _repeated(
    knobs: Knobs, target: str, model: str, init: str, rate: float | None = None
) -> Iterator[tuple[Labels, config.Run]]:
    """An arm's runs in all folds; these share what they have in common, which is then told once."""
    start = _start(knobs, model, init)
    optim = replace(
        _optim(knobs, knobs.steps, rate or _rate(knobs, model, init)),
        evaluate_at=tuple(knobs.evaluate_at),
        augmentation=knobs.augmentation,
    )
    for fold in _folds(knobs):
        images = _images(knobs, target, fold)
        for seed in range(knobs.seeds):
            run = config.Run(data=images, model=model, init=start, optim=optim, seed=seed)
            yield {"fold": fold, "seed": seed}, run


def _images(knobs: Knobs, target: str, fold: int) -> config.Data:
    return config.Data(
        name=tasks.resolve(target),
        size=knobs.image_size,
        train=knobs.train_size,
        valid=knobs.valid_size,
        test=knobs.test_size,
        folds=knobs.folds,
        fold=fold,
    )


def _start(knobs: Knobs, model: str, init: str) -> config.Init:
    return config.Init(name=init, source=None if init == "random" else _source(knobs, model))


def _rate(knobs: Knobs, model: str, init: str) -> float:
    """The arm's tuned rate, else that of the init it is compared with, else the study's."""
    other = terms.start(init).rated_as
    rates = knobs.tuned
    return rates.get(f"{model} {init}", rates.get(f"{model} {other}", knobs.lr))


def _source(knobs: Knobs, model: str) -> config.Run | str:
    """Named pretrained weights where the study has them for a model, else a run on `source`, with
    all the augmentation that there is: pretrained weights should be as good as can be had."""
    model = terms.about(model).starts_from or model
    if model in knobs.weights:
        return knobs.weights[model]
    name, drawn = tasks.resolve(knobs.source), knobs.source in tasks.SYNTHETIC
    held_out = min(2000, max(100, (knobs.source_size or 0) // 10)) if drawn else None
    images = config.Data(
        name=name,
        size=knobs.source_image_size or knobs.image_size,
        train=knobs.source_size,
        valid=held_out,
        test=held_out,
    )
    optim = _optim(knobs, knobs.source_steps, knobs.lr)
    optim = replace(optim, augmentation="mirror and crops")
    return config.Run(data=images, model=model, init=config.Init(), optim=optim, seed=SOURCE_SEED)


def _optim(knobs: Knobs, steps: int, lr: float) -> config.Optim:
    return config.Optim(
        steps=steps,
        optimizer=knobs.optimizer,
        devices=knobs.devices,
        batch=knobs.batch,
        lr=lr,
        evaluations=knobs.evaluations,
        precision=machine.precision() if knobs.precision == "auto" else knobs.precision,
    )


class Chapter(NamedTuple):
    """What a chapter needs, the table that it shows, and knobs that no other has."""

    tasks: Callable[[Knobs], Iterator[tuple[Labels, Spec]]]
    table: Callable[[Results], xr.Dataset]
    own: tuple[str, ...] = ()


COMPARED = ("images", "positions", "neurons")
CHAPTERS = {
    "data": Chapter(_tasks, tables.data_table, ("targets",)),
    "tuning": Chapter(_trainings, tables.scored_table, ("grown",)),
    "convergence": Chapter(_lengths, tables.last_table, ("sources",)),
    "performance": Chapter(_probed, tables.performance_table),
    "small_data": Chapter(_sizes, tables.small_data_table, ("train_sizes",)),
    "representations": Chapter(_comparisons, tables.final_table, COMPARED),
    "overparametrization": Chapter(_comparisons, tables.change_table, COMPARED),
    "first_layer": Chapter(_scored, tables.filter_table),
    "weight_scaling": Chapter(_scored, tables.scored_table),
    "transfusion": Chapter(_scored, tables.scored_table),
    "hybrids": Chapter(_scored, tables.scored_table),
    "efficiency": Chapter(_scored, tables.with_costs),
    "robustness": Chapter(_variants, tables.scored_table, ("variants",)),
}
# They need no runs, and so no parameters but those of their own file; the front page comes last,
# as it shows what all others have collected.
WITHOUT_RUNS = ("methods", "five_minutes", "intro")
