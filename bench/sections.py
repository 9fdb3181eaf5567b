"""How fast this machine works, as ratios to the plain way (`reference`) in the same run.

Both ways take turns (A B B A), so a ratio survives a machine whose speed drifts; seconds do not.
CPU time counts, but for writing and for several processes, which are timed by the wall.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from PIL import Image
from torch import Tensor, nn
from transfusion import config, experiments, machine, store
from transfusion.images import ingest, tasks
from transfusion.networks import models
from transfusion.similarity import activations, second_moments, simulation, stored
from transfusion.statistics import intervals, metrics
from transfusion.studies import params, schedule
from transfusion.training import fit, loop

from bench import reference
from bench.timing import Row, ceilings, compare, setting, timed

BATCH = 32
EPOCHS = 10  # of the end-to-end case: how often each decoded photograph is used
CHUNKS = 32  # of 16 MiB, of the activations written
PHOTOGRAPH = 587  # pixels; the paper's image size


def run(sections: list[str] | None = None, *, quick: bool = False) -> Iterator[Any]:
    """The setting with the measured ceilings, then a Row a comparison.

    Raises ValueError for an unknown section, ArithmeticError if the two ways differ in what they
    compute.
    """
    default = [name for name in SECTIONS if name != "precision"]  # takes minutes
    chosen = [SECTIONS[config.one_of(name, SECTIONS, "section")] for name in sections or default]
    torch.set_num_threads(1)
    limits = ceilings()
    yield setting() | limits
    for section in chosen:
        yield from section(limits, 0.2 if quick else 1.0, 3 if quick else 5)


# --- sections --------------------------------------------------------------------------------


def step(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """A training step on a batch at hand; the plain way need not even normalise it."""
    precision = machine.precision()
    for model, goal in (("cbr_tiny", None), ("cbr_large_w", 0.75), ("resnet50", None)):
        agree(model, 32)
        plain, ours = _steps(model, 64, precision)
        row = compare("step", f"{model} 64 px", plain, ours, seconds, rounds, goal=1.0)
        work = 3 * BATCH * models.flops(model, 64)
        reached = work / row.ours / limits[f"{precision} convolution"]
        yield replace(row, of_ceiling=reached, ceiling_goal=goal)


def agree(model: str, size: int) -> None:
    """Both ways compute the same: gradients in float64 to 1e-9, the loss in float32 to 3e-5.

    In float32, channels_last sums the batch statistics in another order (1e-5 in ResNet-50), and
    gradients jump where rounding moves a maximum to the pixel beside it. Raises ArithmeticError.
    """
    pixels, target = _batch(size, 16)
    ours = models.build(model, outputs=5).to(loop.device()).to(memory_format=torch.channels_last)
    for kind, allowed, apart in ((torch.float32, 3e-5, np.inf), (torch.float64, 1e-12, 1e-9)):
        images = models.normalise(pixels).to(kind)
        loss, gradient = _gradient(ours.to(kind), images, target)
        expected, exact = _gradient(reference.plain(ours), images.contiguous(), target)
        error = (gradient - exact).norm() / exact.norm()
        if abs(loss - expected) > allowed * expected or error > apart:
            raise ArithmeticError(
                f"{model}, {kind}: losses {loss} and {expected}, gradients {error:.1e} apart"
            )


def _gradient(net: nn.Module, images: Tensor, target: Tensor) -> tuple[float, Tensor]:
    net.zero_grad()
    loss = F.cross_entropy(net(images), target)
    loss.backward()
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    )


def _batch(size: int, images: int = BATCH) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    target = torch.arange(images) % 5
    return pixels.to(loop.device(), memory_format=torch.channels_last), target.to(loop.device())


def _steps(
    model: str, size: int, precision: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    pixels, target = _batch(size)
    net, adam = loop.for_training(models.build(model, outputs=5), config.Optim(steps=1))
    plain = reference.plain(models.build(model, outputs=5)).to(loop.device())
    optimizer, images = torch.optim.Adam(plain.parameters()), models.normalise(pixels).contiguous()
    return (
        lambda: reference.step(plain, optimizer, images, target),
        lambda: loop.update(
            net, adam, loop.augment(pixels, "mirror"), target, F.cross_entropy, precision
        ),
    )


def pipeline(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """A batch of 64 px: against decoding it with PIL, and as a share of a step."""
    pixels, _ = _batch(64, 1000)
    _, whole = _steps("cbr_tiny", 64, machine.precision())

    def ours() -> Tensor:
        return models.normalise(loop.augment(pixels[torch.randint(1000, (BATCH,))], "mirror"))

    with _photographs(BATCH) as folder:
        loader = reference.batches(folder, 64, BATCH)

        def plain() -> list[Tensor]:
            return next(iter(loader))

        yield compare("pipeline", "batch from photographs", plain, ours, seconds, rounds)
    case = "whole cbr_tiny step, for one batch"
    yield compare("pipeline", case, whole, ours, seconds, rounds, goal=20.0)


@contextlib.contextmanager
def _photographs(train_images: int) -> Iterator[Path]:
    """A folder of drawn eyes as large JPEG files, and a quarter more to validate and test on."""
    splits = ["train"] * train_images + ["valid", "test"] * max(4, train_images // 8)
    drawn = tasks.SYNTHETIC["fundus"][0](len(splits), 224, 0)
    with tempfile.TemporaryDirectory() as name:
        lines = ["image,label,patient,split"]
        for i, pixels in enumerate(drawn.image):
            image = Image.fromarray(pixels.transpose(1, 2, 0))
            image.resize((PHOTOGRAPH, PHOTOGRAPH)).save(Path(name) / f"{i}.jpg", quality=90)
            lines.append(f"{i}.jpg,{drawn.target[i]},{i},{splits[i]}")
        (Path(name) / "labels.csv").write_text("\n".join(lines) + "\n")
        yield Path(name)


def sweep(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """Steps a second of one process a core together, against one process alone."""
    cores = os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=spawn) as pool:

        def together(processes: int) -> float:
            """Seconds a step, all processes together."""
            timed = list(pool.map(_time_steps, [1 + seconds] * processes))
            shares.extend(share for _, share in timed)
            return 1 / sum(1 / taken for taken, _ in timed)

        shares: list[float] = []
        together(cores)  # starts them
        shares.clear()
        times = [(together(1), together(cores)) for _ in range(rounds)]
    ratios = tuple(a / b for a, b in times)
    a, b = (float(np.median(way)) for way in zip(*times, strict=True))
    case, share = f"{cores} processes for 1, cbr_tiny 64 px", float(np.median(shares))
    yield Row("sweep", case, a, b, ratios, share, goal=0.85 * cores)


def _time_steps(seconds: float) -> tuple[float, float]:
    """Seconds a step of one process, and the share of a core that it got."""
    torch.set_num_threads(1)
    _, ours = _steps("cbr_tiny", 64, machine.precision())
    ours()
    return timed(ours, seconds, time.perf_counter)


def capture(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """Activations: to moments, against the forward pass alone; to disk, against raw files."""
    images = ingest.prepare("fundus", size=64, n=100).isel(image=slice(64))
    nets = [models.build("resnet50", outputs=5) for _ in range(2)]
    plain = [reference.plain(net).eval().to(loop.device()) for net in nets]
    normal = models.normalise(torch.from_numpy(images["pixels"].values).to(loop.device()))
    extractors = [activations.extractor(net) for net in nets]

    def forward() -> None:
        with torch.no_grad():
            for net in plain:
                net(normal)

    def moments() -> None:
        activations.moments(extractors, images, neurons=64)

    case = "resnet50 64 px, moments for a plain forward pass"
    yield compare("capture", case, forward, moments, seconds, rounds, goal=0.4)
    maps = np.random.default_rng(0).normal(size=(128, 64, 32, 32)).astype(np.float16)
    memory = Path("/dev/shm")  # where there is one: the noise of a disk would hide the difference
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        raw, ours = partial(_write_raw, folder / "raw", maps), partial(_write, folder / "z", maps)
        case, clock = f"{CHUNKS * maps.nbytes >> 20} MiB to zarr, for raw files", time.perf_counter
        yield compare("capture", case, raw, ours, seconds, 2 * rounds, clock=clock, goal=0.8)


def _write_raw(path: Path, maps: np.ndarray) -> None:
    with store.atomic(path) as temporary:
        temporary.mkdir()
        for i in range(CHUNKS):
            (temporary / str(i)).write_bytes(maps.data)


def _write(path: Path, maps: np.ndarray) -> None:
    batches = ({"block1": maps} for _ in range(CHUNKS))
    stored.write_activations(path, lambda start: batches, CHUNKS * len(maps), {}, {})


def cca(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """Canonical correlations of float32 activations in memory, in float64 arithmetic, against the
    textbook's way; one thread."""
    n, few = 20_000, 3 if seconds >= 1 else 1
    x, y = (layer.reshape(n, 512).astype(np.float32) for layer in _layers(n, 1, 512))
    agree_cca(x[:4000, :64], y[:4000, :64])
    plain, ours = partial(reference.cca, x.T.copy(), y.T.copy()), partial(_moments, (x, y), "cca")
    case = f"one pair, 512 neurons, {n:,} datapoints"
    row = compare("cca", case, plain, ours, 0, few, goal=2.0)
    yield replace(row, of_ceiling=n * 1024**2 / row.ours / limits["float64 product"])
    judged = partial(_moments, (x, y), "cca", blocks=10, null=True)
    yield compare("cca", f"{case}, with null and error", plain, judged, 0, few)
    plain, ours = partial(reference.svcca, *plain.args), partial(_moments, (x, y), "svcca")
    yield compare("cca", f"SVCCA, {case}", plain, ours, 0, few, warm=False, goal=5.0)
    yield from _pytorch_cka(few)
    yield _all_pairs(few)
    yield _positions(few)
    yield from _peak(int(1e6 * seconds))


def _layers(images: int, positions: int, neurons: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return simulation.related(rng, images, positions, np.linspace(0.9, 0, neurons), 0.5)


def _moments(
    layers: tuple[Any, ...], measure: str, *, blocks: int = 1, null: bool = False
) -> second_moments.Similarity:
    widths = {"layer": tuple(layer.shape[-1] for layer in layers)}
    found = second_moments.SecondMoments(widths, blocks=blocks, null=null)
    found.update({"layer": layers})
    return getattr(found, measure)("layer")


def agree_cca(x: np.ndarray, y: np.ndarray) -> None:
    """Both ways compute the same coefficients; raises ArithmeticError."""
    for measure, plain in (("cca", reference.cca), ("svcca", reference.svcca)):
        ours, expected = _moments((x, y), measure).coefficients, plain(x.T, y.T)
        if len(ours) != len(expected) or np.abs(ours - expected).max() > 1e-6:
            raise ArithmeticError(f"{measure}: {ours[:3]}... and {expected[:3]}... differ")


def _pytorch_cka(rounds: int) -> Iterator[Row]:
    """Unbiased linear CKA against that library, where the extra `bench` is installed; it compares
    images by images, so few of them."""
    try:
        from cka import cka_from_features
    except ImportError:
        return
    n = 4000
    x, y = (layer.reshape(n, 512) for layer in _layers(n, 1, 512))
    plain = partial(cka_from_features, torch.from_numpy(x), torch.from_numpy(y))
    ours = partial(_moments, (x, y), "linear_cka")
    found, expected = ours(), float(plain())
    if abs(found.mean - expected) > 1e-6:
        raise ArithmeticError(f"CKA: {found.mean}, and by pytorch-cka {expected}")
    case = f"CKA, one pair, 512 neurons, {n:,} images, for pytorch-cka"
    yield compare("cca", case, plain, ours, 0, rounds)


def _all_pairs(rounds: int) -> Row:
    rng = np.random.default_rng(0)
    layers = tuple(rng.normal(size=(8, 20_000, 256)))
    stored = [layer.T.copy() for layer in layers]
    pairs = list(itertools.combinations(range(8), 2))

    def plain() -> None:
        for a, b in pairs:
            reference.cca(stored[a], stored[b])

    def ours() -> None:
        found = second_moments.SecondMoments({"layer": (256,) * 8}, blocks=1, null=False)
        found.update({"layer": layers})
        found.table("layer", ["cca"])

    case = "28 pairs of 8 layers, 256 neurons, 20,000 datapoints"
    return compare("cca", case, plain, ours, 0, rounds, goal=2.5)


def _positions(rounds: int) -> Row:
    """Maps of 64x64 positions: all of them, or 16 of each image with null and error."""
    maps = np.random.default_rng(0).standard_normal((2, 300, 64, 64, 64), dtype=np.float32)

    def plain() -> None:
        reference.cca(*(part.transpose(1, 0, 2, 3).reshape(64, -1) for part in maps))

    def ours() -> None:
        rng = np.random.default_rng(0)
        where = activations.places(rng, 300, 16, [(64, 64)])[0]
        every = np.arange(64)
        layers = tuple(activations.sample(torch.from_numpy(part), where, every) for part in maps)
        _moments(layers, "cca", blocks=10, null=True)

    case = "64 channels of 64x64 maps, 16 positions for all"
    return compare("cca", case, plain, ours, 0, rounds, goal=20.0)


PEAK = """
import numpy as np
from transfusion import similarity

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if "VmHWM" in line).split()[1]) / 1024

rng, before = np.random.default_rng(0), peak()
found = similarity.SecondMoments({"layer": (512, 512)})
for _ in range(DATAPOINTS // 2000):
    found.update({"layer": rng.standard_normal((2, 2000, 512), dtype=np.float32)})
found.cca("layer")
print(peak() - before)
"""


def _peak(datapoints: int) -> Iterator[Row]:
    """Memory above that of the imports, of a process of its own; 150 MiB are allowed."""
    if not Path("/proc/self/status").exists():
        return
    script = PEAK.replace("DATAPOINTS", str(datapoints))
    command = [sys.executable, "-c", script]
    found = float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    case = f"memory, 512 neurons, {datapoints:,} datapoints, for 150 MiB"
    yield Row("cca", case, 150, found, (150 / found,), share=None, goal=1.0, unit="MiB")


def end_to_end(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """A whole small study from photographs: decode, train, validate, test, keep."""
    for model, steps, goal in (("cbr_tiny", 40, 2.5), ("resnet50", 20, 1.7)):
        steps = max(EPOCHS, int(steps * seconds))  # at least one batch of photographs
        with _photographs(steps * BATCH // EPOCHS) as folder:
            plain, ours = _studies(model, folder, steps)
            case = f"{model} 64 px, {steps} steps, {EPOCHS} epochs"
            few = 3 if seconds >= 1 else 1  # of two calls each way
            goal = goal if machine.precision() == "bfloat16" else 1.0
            yield compare("end to end", case, plain, ours, 0, few, warm=False, goal=goal)


def _studies(
    model: str, folder: Path, steps: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    def plain() -> float:
        net = reference.plain(models.build(model, outputs=5))
        return reference.fit(net, folder, size=64, batch=BATCH, steps=steps)

    def ours() -> None:
        with (
            tempfile.TemporaryDirectory() as cache,
            mock.patch.dict(os.environ, TRANSFUSION_CACHE=cache),
        ):
            name = ingest.ingest("bench", size=64, folder=folder)
            optim = config.Optim(steps=steps, evaluations=1, precision=machine.precision())
            images = config.Data(name=name, size=64)
            fit.fit(config.Run(data=images, model=model, init=config.Init(), optim=optim))

    return plain, ours


def _result(spec: config.Spec) -> xr.Dataset:
    found = store.read(spec.key)
    assert found is not None  # it was just computed
    return found


def precision(limits: dict, seconds: float, rounds: int) -> Iterator[Row]:
    """What bfloat16 does to the test AUC of CBR-Tiny on drawn retinas, paired by seed."""
    knobs = params.knobs("quick", "data") | {"targets": ["fundus"], "seeds": 20}
    knobs |= {"image_size": 40, "train_size": 2400, "test_size": 600, "steps": 150}
    kinds = [
        experiments.runs("data", **knobs | {"precision": kind}) for kind in ("float32", "bfloat16")
    ]
    schedule.compute([run for runs in kinds for run in runs])
    results = [[metrics.scored(_result(run)) for run in runs] for runs in kinds]
    auc = 100 * np.array([[float(result.test_auc) for result in way] for way in results])
    times = np.array([[result.attrs["seconds"] for result in way] for way in results])
    found = intervals.interval(auc[1] - auc[0])
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], n = {found.n}"
    (plain, ours), ratios = np.median(times, 1), tuple(times[0] / times[1])
    case = "cbr_tiny on fundus, bfloat16 for float32"
    yield Row("precision", case, plain, ours, ratios, share=None, auc=text)


SECTIONS: dict[str, Callable[[dict, float, int], Iterator[Row]]] = {
    "step": step,
    "pipeline": pipeline,
    "sweep": sweep,
    "capture": capture,
    "cca": cca,
    "end to end": end_to_end,
    "precision": precision,
}
