"""What a result depends on: frozen, strict specifications, and the key made of them."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from transfusion import terms

# Raised by hand when the meaning of a field, or of the code that trains or compares, changes.
# 2: a network starts from its source's weights in half precision, as they travel.
# 3: weights are those of the last step, and every fold has networks of its own.
SCHEMA = 3
STRICT = ConfigDict(strict=True, extra="forbid")
Native = Literal["float32", "bfloat16"]
Precision = Literal["float32", "bfloat16", "any"]  # any: what the machine is fast at; recorded
Optimizer = Literal["adam", "sgd"]
Augmentation = Literal["mirror", "mirror and crops"]

Model = Annotated[str, AfterValidator(terms.spelt)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Neurons = Count | Annotated[float, Field(gt=0, lt=1)]


def init_name(name: str) -> str:
    """`name` if it is an init, `transfer` or `transfusion:block2`; else a ValueError."""
    base, colon, block = name.partition(":")
    one_of(base, dict.fromkeys(init.rstrip(":") for init in terms.INITS), "init")
    if colon and (base + colon not in terms.INITS or not block):
        by_block = ", ".join(init.rstrip(":") for init in terms.INITS if init.endswith(":"))
        raise ValueError(f"init {name!r}: possible are {by_block} with a block")
    if not colon and base not in terms.INITS:
        raise ValueError(f"init {name!r} needs a block, such as {base}:block2")
    return name


InitName = Annotated[str, AfterValidator(init_name)]


# Fields that came after the first results, with the value that these were computed under: at that
# value they are left out of a key, so that older results keep theirs.
LATER = {"optimizer": "adam", "devices": 1}


_encoded = json.JSONEncoder(allow_nan=False).encode


def key(spec: Any, schema: int = SCHEMA) -> str:
    """First 12 hex digits of the sha256 of a specification's canonical JSON and its schema."""
    told = {"kind": _encoded(type(spec).__name__), "schema": str(schema), **_told(spec)}
    return hashlib.sha256(_object(told).encode()).hexdigest()[:12]


def _told(spec: Any) -> dict[str, str]:
    """Field -> its canonical JSON."""
    values = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return {n: _json(value) for n, value in values.items() if (n, value) not in LATER.items()}


def _json(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_json, value))}]"
    return value.json if isinstance(value, Frozen) else _encoded(value)


def _object(told: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{told[name]}' for name in sorted(told)) + "}"


class Frozen:
    """What the specifications have in common."""

    @cached_property
    def json(self) -> str:
        """Canonical; told once, as thousands of runs share their images, source and recipe."""
        return _object(_told(self))

    @cached_property
    def key(self) -> str:
        return key(self)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data(Frozen):
    """Images of one task. A prepared data set is named `name@digest`, so its content is in the key.

    `train`, `valid`, `test` count images; None takes all of a prepared split. With `folds`, the
    patients of a prepared set are dealt to so many: the one of number `fold` tests, the next
    validates, the rest train. Each fold of a drawn set is drawn anew.
    """

    name: str
    # Pixels, square: below 16 nothing is left after five poolings, and these networks were made for
    # images far below 1,024.
    size: Annotated[int, Field(ge=16, le=1024)]
    train: Count | None = None
    valid: Count | None = None
    test: Count | None = None
    seed: int = 0  # of the synthetic images, and of the choice of a subset
    folds: Annotated[int, Field(ge=3)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    folds_seed: int = 0  # by which patients are dealt

    @model_validator(mode="after")
    def _is_a_fold(self) -> Data:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold}: expected 0 to {(self.folds or 1) - 1}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Init(Frozen):
    """How a network starts, and from what: a run pretrained here, or named weights."""

    name: InitName = "random"
    source: Run | str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optim(Frozen):
    """Adam, or SGD with Nesterov momentum 0.9; a linear warm-up, then a cosine decay.

    The paper's own recipe was not recovered.
    """

    steps: Count
    batch: Count = 32
    lr: Positive = 0.001  # Adam's own default; a study tunes it
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001  # as ResNets were trained (He et al. 2016)
    # Share of the steps. Adam's first steps are as long as its rate, whatever the gradient, and
    # would undo some of what is pretrained; other lengths of the warm-up were not tried.
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    evaluations: Count = 20  # evenly spaced points of the curve: steps are read to a twentieth
    evaluate_at: tuple[Count, ...] = ()  # steps that are points of it beside these
    augmentation: Augmentation = "mirror"
    precision: Precision = "float32"
    optimizer: Optimizer = "adam"
    devices: Count = 1  # each has a share of every batch

    @model_validator(mode="after")
    def _ends_in_time(self) -> Optim:
        late = [step for step in self.evaluate_at if step > self.steps]
        if late:
            raise ValueError(f"evaluate_at {late}: expected steps up to {self.steps}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Run(Frozen):
    """One network trained once."""

    data: Data
    model: Model
    init: Init
    optim: Optim
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Comparison(Frozen):
    """Similarity between all networks of `runs`, each before and after training."""

    runs: tuple[Run, ...]
    # 1,000 images times 16 positions for 64 neurons are 250 datapoints a neuron, five times what
    # `second_moments.ENOUGH` asks for.
    images: Count = 1000  # of the test split
    positions: Count = 16  # random positions an image, the same in every network
    neurons: Neurons = 64  # random channels a layer, or which share: widths differ
    measures: tuple[str, ...] = ("cca", "svcca", "cka")
    seed: int = 0

    @property
    def data(self) -> Data:
        """The images that all its runs share."""
        return self.runs[0].data


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Baseline(Frozen):
    """A logistic regression on what images show at first sight, or on features of a network that
    nobody trained for them (`frozen`: its `model` and `init`)."""

    data: Data
    features: Literal["statistics", "thumbnail", "frozen"]
    model: Model | None = None
    init: Init = Init()
    seed: int = 0

    @model_validator(mode="after")
    def _has_a_network(self) -> Baseline:
        if (self.model is None) == (self.features == "frozen"):
            raise ValueError(f"features {self.features!r} with model {self.model!r}")
        return self


Spec = Run | Comparison | Baseline


def dump(spec: Data | Spec) -> dict:
    """A specification as plain JSON types, with its kind."""
    return {"kind": type(spec).__name__, **asdict(spec)}


def load(fields: dict) -> Data | Spec:
    """The inverse of `dump`; raises pydantic.ValidationError on anything unknown."""
    kinds: dict[str, Any] = {k.__name__: k for k in (Data, Run, Comparison, Baseline)}
    spec = {name: value for name, value in fields.items() if name != "kind"}
    return TypeAdapter(kinds[fields["kind"]]).validate_json(json.dumps(spec))


def plain(name: str) -> str:
    """`name` if a file of the cache may be called so; else a ValueError."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name {name!r}: expected letters, digits, '_', and within it '.' and '-'")
    return name


def one_of(value: str, options: Iterable[str], what: str) -> str:
    """`value` if it is one of `options`; else a ValueError that names them and the nearest."""
    options = list(options)
    if value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}; possible: {', '.join(options)}.{hint}")
