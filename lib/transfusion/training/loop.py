"""Training: one plain loop, resumable, the same bits on a CPU whatever interrupts it.

Every random choice of a run (weights, data order, augmentation) is a function of its seed and of
the step, so a checkpoint needs no generator state, and two inits of one seed see the same batches.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from transfusion import config, provenance, store
from transfusion.images import tasks
from transfusion.networks import models
from transfusion.statistics import metrics
from transfusion.training import devices, graphs

# Images that are scored at once. Between 32 and 1,024 the speed differs by less than 20 % (CBR-Tiny
# and ResNet-50, 64 px); at 224 px the largest map of 256 takes 0.8 GB in ResNet-50. A worker that
# ran out of memory starts again with fewer.
EVALUATION_BATCH = int(os.environ.get("TRANSFUSION_EVALUATION_BATCH", 256))
# And their pixels: at 587 px the first block of CBR-Tiny takes 0.05 GB an image. Up to 112 px
# all of a batch pass.
EVALUATION_PIXELS = 256 * 112**2
RESUME_ANYWAY = "TRANSFUSION_RESUME_ANYWAY"  # the variable that also processes below hear of
SHIFT = 1 / 8  # of an image's side: the four of 32 pixels that are usual with small images
Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and target
Tell = Callable[[int, float], bool]  # hears step and seconds, and says whether to go on
# Of a GPU's free memory, what images may take that lie there while it trains.
RESIDENT = 1 / 2
log = logging.getLogger(__name__)


class NotFinite(ArithmeticError):
    """The loss became NaN or infinite."""


class Stopped(RuntimeError):
    """Who asked for a run gave it up; its checkpoint is kept."""


@dataclass
class Progress:
    """What a checkpoint holds beside weights and optimizer: how far it came, the curve, and the
    commit at which it was begun."""

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    begun: str = field(default_factory=lambda: provenance.facts()["commit"])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seeds(run: config.Run) -> dict[str, int]:
    """Separate seeds for the weights, the redrawn weights, the data order and the augmentation: of
    each fold others, or its chances would be those of all."""
    children = np.random.SeedSequence([run.seed, run.data.fold]).spawn(4)
    names = ("build", "init", "order", "augment")
    return {n: int(c.generate_state(1)[0]) for n, c in zip(names, children, strict=True)}


def for_training(net: nn.Module, optim: config.Optim) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network where and how it trains fastest, and its optimizer; what is frozen has none."""
    net = devices.over_whole_batches(net.to(device()).to(memory_format=torch.channels_last))
    flat = [_flat(parameter) for parameter in net.parameters() if parameter.requires_grad]
    on_gpu = device().type == "cuda"
    # A graph reads what lies on the device: there the rate is a tensor, see _set_lr.
    lr = torch.tensor(optim.lr, device=device()) if on_gpu else optim.lr
    usual: dict = {"lr": lr, "weight_decay": optim.weight_decay, "fused": True}
    if optim.optimizer == "adam":
        return net, torch.optim.Adam(flat, capturable=on_gpu, **usual)
    return net, torch.optim.SGD(flat, momentum=0.9, nesterov=True, **usual)


def _flat(parameter: nn.Parameter) -> nn.Parameter:
    """The same memory in its own order, which takes over the gradient after each backward pass.

    Fused Adam copies whatever is not contiguous, as channels_last is not: 4 to 9 % of a step.
    """
    order = (0, 2, 3, 1) if parameter.dim() == 4 else tuple(range(parameter.dim()))
    flat = nn.Parameter(parameter.detach().permute(order))

    def hand_over(_: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs when it is there
        flat.grad, parameter.grad = parameter.grad.permute(order), None

    parameter.register_post_accumulate_grad_hook(hand_over)
    return flat


def train(
    run: config.Run,
    precision: config.Native,
    images: xr.Dataset,
    net: nn.Module,
    adam: torch.optim.Optimizer,
    progress: Progress,
    checkpoint_seconds: float,
    tell: Tell | None,
) -> dict[str, str | float]:
    """Train to the last step, evaluating on the way; what `graphs` says of the steps.

    Raises NotFinite, or Stopped where `tell` wants no more of it.
    """
    learn, valid = tasks.split_of(images, "train"), tasks.split_of(images, "valid")
    count, target = len(learn.image), torch.from_numpy(learn["target"].values).long().to(device())
    numbered, at = _numbered(learn)
    evaluate_at = _evaluation_steps(run.optim)
    loss_of, losses = LOSSES[images.attrs["task"]], []

    def take(rows: Tensor) -> Tensor:
        batch = augment(numbered(rows), run.optim.augmentation)
        return update(net, adam, batch, target[rows], loss_of, precision)

    start = saved = time.perf_counter()
    net.train()
    first = _rows(run, count, progress.step).to(at)
    _set_lr(adam, learning_rate(run.optim, progress.step))  # the full rate would tear losses apart
    step_on, stepped = graphs.faster(take, first, lambda: _changing(net, adam))
    for step in range(progress.step, run.optim.steps):
        torch.manual_seed(_step_seed(run, step))
        rows = _rows(run, count, step).to(at, non_blocking=True)
        _set_lr(adam, learning_rate(run.optim, step))
        losses.append(step_on(rows))
        progress.step = step + 1
        if progress.step in evaluate_at:
            _evaluate(run, precision, net, valid, torch.stack(losses), progress)
            losses.clear()
            now = time.perf_counter()
            if now - saved >= checkpoint_seconds and progress.step < run.optim.steps:
                progress.seconds, start, saved = progress.seconds + now - start, now, now
                _save(run, precision, net, adam, progress)
            spent = progress.seconds + now - start
            if tell and progress.step < run.optim.steps and not tell(progress.step, spent):
                progress.seconds = spent
                _save(run, precision, net, adam, progress)
                raise Stopped(f"given up at step {progress.step}")
    progress.seconds += time.perf_counter() - start
    return stepped


def _changing(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All tensors that a step changes."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*net.state_dict().values(), *(m for m in moments if isinstance(m, Tensor))]


def update(
    net: nn.Module,
    adam: torch.optim.Optimizer,
    pixels: Tensor,
    target: Tensor,
    loss_of: Loss,
    precision: str,
) -> Tensor:
    """One step on a batch of images (N, 3, H, W) uint8; the loss before it, left on the device."""
    pixels, target = devices.share(pixels), devices.share(target)
    with autocast(precision):
        loss = devices.weighted(loss_of(net(models.normalise(pixels, net)), target), target)
    loss.backward()
    devices.average_gradients(p for group in adam.param_groups for p in group["params"])
    adam.step()
    adam.zero_grad(set_to_none=True)  # the network's own are gone already: see _flat
    return loss.detach()


def _evaluate(
    run: config.Run,
    precision: str,
    net: nn.Module,
    valid: xr.Dataset,
    losses: Tensor,
    progress: Progress,
) -> None:
    """Add a point to the curve; raises NotFinite."""
    loss = float(devices.total(losses.mean())) / devices.world_size()
    if not math.isfinite(loss):
        lr = learning_rate(run.optim, progress.step - 1)
        raise NotFinite(f"loss {loss} by step {progress.step} at learning rate {lr:.3g}")
    reached, error = auc_with_error(valid, scores(net, valid, precision))
    point = {"step": progress.step, "auc": reached, "auc_se": error, "loss": loss}
    progress.curve.append(point)
    log.info(
        "step %d of %d: loss %.4f, validation AUC %.4f",
        progress.step,
        run.optim.steps,
        loss,
        reached,
    )


def state_copy(net: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU, in plain memory order as safetensors wants it."""
    plain = {"memory_format": torch.contiguous_format, "copy": True}
    return {name: t.detach().to("cpu", **plain) for name, t in net.state_dict().items()}


def scores(net: nn.Module, images: xr.Dataset, precision: str) -> np.ndarray:
    """Probabilities (image, output), in evaluation mode; the network's mode is put back."""
    found = predict(net, images, precision)
    multi = images.attrs["task"] == "findings"
    return (found.double().sigmoid() if multi else found.double().softmax(1)).numpy()


def predict(net: nn.Module, images: xr.Dataset, precision: str) -> Tensor:
    """What the network says of images, (image, output) float32 on the CPU; as `scores`."""
    was_training = net.training
    net.eval()
    with torch.no_grad(), autocast(precision):
        parts = [net(models.normalise(devices.share(b), net)).float() for b in batches(images)]
    net.train(was_training)
    return torch.cat([devices.gather(part) for part in parts]).cpu()


def batches(images: xr.Dataset, size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
    """Images in order, (at most size, 3, H, W) uint8 on the device; fewer where they are large."""
    most = max(1, EVALUATION_PIXELS // (images.sizes["y"] * images.sizes["x"]))
    return map(_sent, tasks.batches(images, min(size, most)))


def batch(images: xr.Dataset, rows: slice | np.ndarray) -> Tensor:
    """Images by number, (N, 3, H, W) uint8 on the device."""
    return _sent(tasks.pixels(images, rows))


def _sent(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).to(device(), memory_format=torch.channels_last)


def augment(pixels: Tensor, how: config.Augmentation) -> Tensor:
    """Mirror each image (N, 3, H, W) left-right with probability 1/2 and, with crops, move it by up
    to SHIFT of its sides, what comes in at the rim being mirrored (torchvision's v2 decides once a
    batch)."""
    mirrored = torch.rand(len(pixels), device=pixels.device) < 0.5
    if how == "mirror":
        return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    rows, columns = (_moved(len(pixels), side, pixels.device) for side in pixels.shape[2:])
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    each = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    # Indices on both sides of a slice put it last: (N, H, W, 3), which is channels_last already.
    return pixels[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(count: int, side: int, device: torch.device) -> Tensor:
    """Which row each row (count, side) of moved images shows."""
    most = int(SHIFT * side)
    shift = torch.randint(-most, most + 1, (count, 1), device=device)
    place = (torch.arange(side, device=device) + shift).abs()
    return (side - 1) - ((side - 1) - place).abs()


def learning_rate(optim: config.Optim, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine to zero."""
    warm = max(1, round(optim.warmup * optim.steps))
    decay = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, optim.steps - warm)))
    return optim.lr * min(1.0, (step + 1) / warm) * decay


def autocast(precision: str) -> AbstractContextManager:
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bfloat16")


def _masked_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy over known labels; a negative label is an unknown one."""
    known = (target >= 0).float()  # a weight, not a choice: a CUDA graph has fixed shapes
    answer = target.clamp(min=0).float()
    loss = F.binary_cross_entropy_with_logits(logits, answer, weight=known, reduction="sum")
    return loss / known.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {
    "grades": F.cross_entropy,
    "classes": F.cross_entropy,
    "findings": _masked_bce,
}


def _numbered(images: xr.Dataset) -> tuple[Callable[[Tensor], Tensor], torch.device]:
    """What makes of row numbers a batch on the device, and where it wants them: a GPU keeps all
    images where they fit, or else is sent each batch, as a CPU is."""
    on_gpu = device().type == "cuda"
    if on_gpu and images["pixels"].nbytes < RESIDENT * torch.cuda.mem_get_info()[0]:
        return _on_device(images).__getitem__, device()
    return lambda rows: batch(images, rows.numpy()), torch.device("cpu")


def _on_device(images: xr.Dataset) -> Tensor:
    """All pixels, sent by and by, since on their way they are in memory again."""
    shape = images["pixels"].shape
    how: dict = {"dtype": torch.uint8, "memory_format": torch.channels_last}
    whole, start = torch.empty(shape, device=device(), **how), 0
    for part in batches(images):
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _rows(run: config.Run, images: int, step: int) -> Tensor:
    """The batch of a step: a fresh permutation each epoch, an incomplete last batch dropped."""
    per_epoch = max(1, images // run.optim.batch)
    epoch, place = divmod(step, per_epoch)
    order = _order(seeds(run)["order"], epoch, images)
    return torch.from_numpy(order[place * run.optim.batch : (place + 1) * run.optim.batch])


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(images)


def _step_seed(run: config.Run, step: int) -> int:
    return int(np.random.SeedSequence([seeds(run)["augment"], step]).generate_state(1)[0])


def _evaluation_steps(optim: config.Optim) -> set[int]:
    evenly = np.linspace(0, optim.steps, optim.evaluations + 1).round().astype(int)[1:]
    return {*evenly.tolist(), *optim.evaluate_at}


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def auc_with_error(images: xr.Dataset, probabilities: np.ndarray) -> tuple[float, float]:
    """AUC and its standard error, images of a patient being a cluster."""
    given = images["target"].values, probabilities, images.attrs.get("positive_from")
    asked, said = metrics.binary(*given)
    placed = metrics.placements(asked, said)
    return metrics.auc(*given), metrics.patients_error(asked, placed, images["patient"].values)


def device_name() -> str:
    return torch.cuda.get_device_name() if device().type == "cuda" else "cpu"


def checkpoint(run: config.Run) -> Path:
    return store.run_folder(run.key) / "checkpoint.pt"


def _save(
    run: config.Run,
    precision: str,
    net: nn.Module,
    adam: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    if not devices.first():
        return
    state = {"net": net.state_dict(), "adam": adam.state_dict(), "progress": vars(progress)}
    content = io.BytesIO()
    torch.save(state | {"precision": precision, "code": provenance.identity()}, content)
    store.write_sealed(checkpoint(run), content.getvalue())


def resume(
    run: config.Run, precision: str, net: nn.Module, adam: torch.optim.Optimizer
) -> Progress:
    """Continue from the checkpoint if there is a whole one of this precision and of the code that
    is at work (or of whatever code, where RESUME_ANYWAY is set); else from the start."""
    path = checkpoint(run)
    if not path.exists():
        return Progress()
    try:
        content = io.BytesIO(store.read_sealed(path))
        state = torch.load(content, map_location=device(), weights_only=True)
    except Exception as error:  # cut, flipped, another type, a folder, closed to us
        log.warning("checkpoint %s is unreadable (%s): starting again", path, error)
        return Progress()
    if state["precision"] != precision:
        log.warning("checkpoint %s is in %s: starting again", path, state["precision"])
        return Progress()
    if state["code"] != provenance.identity() and not os.environ.get(RESUME_ANYWAY):
        log.warning("checkpoint %s is of other code: starting again (--resume-anyway)", path)
        return Progress()
    net.load_state_dict(state["net"])
    adam.load_state_dict(state["adam"])
    log.info("resumed at step %d", state["progress"]["step"])
    return Progress(**state["progress"])
