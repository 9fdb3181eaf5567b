"""What the measurements depend on, and how two ways are timed: in turn, A B B A, so that a ratio
survives a machine whose speed drifts. Seconds do not."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transfusion import machine, provenance
from transfusion.training import loop

SETTINGS = ("OPENBLAS_CORETYPE", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Row:
    """One comparison: seconds a call of both ways and the ratio, one value a round."""

    section: str
    case: str
    plain: float
    ours: float
    ratios: tuple[float, ...]
    share: float | None  # of a core, obtained while timing; None where nothing was timed here
    goal: float | None = None  # of the ratio
    of_ceiling: float | None = None
    ceiling_goal: float | None = None
    auc: str = ""  # what our way changes in it, in points
    unit: str = "ms"  # of `plain` and `ours` as printed; kept in seconds, or in MiB

    @property
    def ratio(self) -> float:
        return float(np.median(self.ratios))

    @property
    def verdict(self) -> str:
        """`met` or `missed`; `no verdict` where the machine was too busy or too uneven to tell."""
        if self.goal is None and self.ceiling_goal is None:
            return ""
        busy = self.share is not None and self.share < 0.5
        if busy or max(self.ratios) > 1.5 * min(self.ratios):
            return "no verdict"
        slow = self.goal is not None and np.quantile(self.ratios, 0.25) < self.goal
        far = self.ceiling_goal is not None and (self.of_ceiling or 0) < self.ceiling_goal
        return "missed" if slow or far else "met"


# --- the machine -----------------------------------------------------------------------------


def setting() -> dict:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "device": loop.device_name(),
        "processor": names[0] if names else platform.processor(),
        "flags": [flag for flag in FLAGS if f" {flag}" in text],
        "cores": os.cpu_count(),
        "load": str(os.getloadavg()[0]),
        "precision": machine.precision(),
        "pytorch-cka": _version("pytorch-cka"),
        **{name: os.environ.get(name, "unset") for name in SETTINGS},
        **provenance.facts(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def ceilings() -> dict[str, float]:
    """Measured floating-point operations a second, and bytes copied a second, of one core."""
    device = loop.device()
    images = torch.randn(16, 256, 16, 16, device=device).to(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 7, 7, device=device).to(memory_format=torch.channels_last)
    matrix = torch.randn(2048, 2048, device=device)
    block = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    work = 2 * images.numel() * 256 * 49
    found = {"copy": 2 * block.numel() / _best(lambda: target.copy_(block))}
    for name in dict.fromkeys(("float32", machine.precision())):
        kind = getattr(torch, name)
        convolve = partial(F.conv2d, images.to(kind), kernel.to(kind), padding=3)
        multiply = partial(torch.matmul, matrix.to(kind), matrix.to(kind))
        found[f"{name} convolution"] = work / _best(convolve)
        found[f"{name} product"] = 2 * 2048**3 / _best(multiply)
    square = np.ones((2048, 2048))
    return found | {"float64 product": 2 * 2048**3 / _best(lambda: square @ square)}


def _best(call: Callable[[], object], seconds: float = 0.3) -> float:
    call()
    return min(timed(call, seconds / 3, clock)[0] for _ in range(3))


def clock() -> float:
    """Processor time; on a GPU that of the wall, once all is done there."""
    if loop.device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(
    call: Callable[[], object], seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds a call, and the share of a core that was obtained."""
    start, cpu, wall, calls = clock(), time.process_time(), time.perf_counter(), 0
    while calls == 0 or clock() - start < seconds:
        call()
        calls += 1
    taken, waited = clock() - start, time.perf_counter() - wall
    share = (time.process_time() - cpu) / waited if loop.device().type == "cpu" else 1.0
    return taken / calls, share


def compare(
    section: str,
    case: str,
    plain: Callable[[], object],
    ours: Callable[[], object],
    seconds: float,
    rounds: int,
    *,
    clock: Callable[[], float] = clock,
    warm: bool = True,
    goal: float | None = None,
) -> Row:
    """Time both in turn, A B B A a round."""
    if warm:
        plain(), ours()
    times: list[tuple[float, float]] = []
    shares: list[float] = []
    for _ in range(rounds):
        four = [timed(call, seconds / 2, clock) for call in (plain, ours, ours, plain)]
        times.append(((four[0][0] + four[3][0]) / 2, (four[1][0] + four[2][0]) / 2))
        shares += [share for _, share in four]
    a, b = (float(np.median(way)) for way in zip(*times, strict=True))
    ratios = tuple(a / b for a, b in times)
    return Row(section, case, a, b, ratios, float(np.median(shares)), goal)
