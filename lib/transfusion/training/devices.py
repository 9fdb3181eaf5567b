"""One run on several devices: every process has the network and a share of each batch.

Gradients, batch-norm statistics and evaluation scores are those of the whole batch, so N processes
train what one would with the same batch, up to the order of sums. All functions do the plain thing
in a single process. `together` starts the processes.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transfusion import machine
from transfusion.networks import freezing


class Broken(RuntimeError):
    """One of the processes ended before its run did; what was saved is kept."""


def together(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in so many processes, which know of each other.

    Raises Broken if one of them dies or fails; the others are then ended.
    """
    with tempfile.TemporaryDirectory() as place, machine.workers(count) as pool:
        ranks = range(count)
        parts = [pool.submit(_join, place, r, count, function, *arguments) for r in ranks]
        for part in futures.wait(parts, return_when=futures.FIRST_EXCEPTION).done:
            if error := part.exception():
                raise Broken(f"one of {count} processes ended: {error}") from error


def _join(place: str, rank: int, count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Meet the others by a file, and talk to them where no other machine hears it."""
    loopback = socket.if_indextoname(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    meeting = dist.FileStore(f"{place}/meeting", count)
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=count)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process writes: one of them all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch, (N, ...): whole rows, parts as equal as can be."""
    return batch.tensor_split(world_size())[dist.get_rank()] if dist.is_initialized() else batch


def weighted(loss: Tensor, labels: Tensor) -> Tensor:
    """A mean over this process's known labels, such that its mean over processes is that over all.

    Negative labels are unknown ones.
    """
    if not dist.is_initialized():
        return loss
    known = (labels >= 0).sum().to(loss.dtype)
    return loss * known * world_size() / total(known.clone())


def total(value: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """In place, in one message for all parameters."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = total(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather(part: Tensor) -> Tensor:
    """The parts of all processes, one after the other."""
    if not dist.is_initialized():
        return part
    parts: list[Tensor] = [part] * world_size()
    dist.all_gather_object(parts, part.cpu())
    return torch.cat([each.to(part.device) for each in parts])


class _Total(torch.autograd.Function):
    """`total` that can be differentiated: the gradient of a sum is the sum of gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return total(value.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return total(gradient.clone())


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm of the whole batch, in training; torch's own SyncBatchNorm needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        exact = x if x.dtype == torch.float64 else x.float()
        count = total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _Total.apply(exact.sum((0, 2, 3))) / count
        centred = exact - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count
        self._keep(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance, self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1


def over_whole_batches(net: nn.Module) -> nn.Module:
    """The network, its batch norm that of whole batches where there are several processes."""
    if world_size() > 1:
        check_shared(net)
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm
    return net


def check_shared(net: nn.Module) -> None:
    """Raise ValueError for a network whose batch norm several processes could not share."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kinds = {type(norm) for norm in norms if not freezing.is_frozen(norm)}
    for kind in kinds - {nn.BatchNorm2d, GlobalBatchNorm}:
        raise ValueError(f"{kind.__name__} cannot be shared by several devices (devices: 1)")
