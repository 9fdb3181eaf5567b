"""A training step as a CUDA graph: recorded once and replayed, where that is faster.

A graph spares the launches of some hundred kernels a step, which is most of a step where batches
and images are small (docs.pytorch.org, "CUDA semantics", section "CUDA Graphs").
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from transfusion.training import devices

Step = Callable[[Tensor], Tensor]  # row numbers of a batch -> its loss
WARM = 3  # steps before a capture, as PyTorch asks: libraries choose and allocate in them
TRIED = 10  # steps that are timed and compared, of either kind
CLOSE = 1e-2  # of the largest loss: kernels that add in any order, in bfloat16, ten steps long
log = logging.getLogger(__name__)


def faster(
    step: Step, rows: Tensor, state: Callable[[], list[Tensor]]
) -> tuple[Step, dict[str, str | float]]:
    """`step`, or the same as a graph, where that gives the same losses in less time; and which it
    is with what was measured, for the record.

    `rows` are a batch to try it on, and `state` all tensors that a step changes: they are as they
    were when this returns. What cannot be captured (a shape that hangs on values) stays as it is.
    """
    if not rows.is_cuda or devices.world_size() > 1:
        return step, {"stepped": "eager"}
    before = [tensor.clone() for tensor in state()]
    try:
        graphed = _captured(step, rows)
    except RuntimeError as error:
        _put_back(before, state())
        log.warning("no CUDA graph: %s", str(error).splitlines()[0])
        return step, {"stepped": "eager"}
    (plain, eager), (replayed, graph) = (_tried(s, rows, before, state) for s in (step, graphed))
    _put_back(before, state())
    apart = float((plain - replayed).abs().max() / plain.abs().max())
    found = {"eager_ms": 1e3 * eager, "graph_ms": 1e3 * graph, "losses_apart": apart}
    log.info("a step takes %(eager_ms).2f ms, as a graph %(graph_ms).2f ms", found)
    if apart < CLOSE and graph < eager:
        return graphed, {"stepped": "graph", **found}
    return step, {"stepped": "eager", **found}


def _captured(step: Step, rows: Tensor) -> Step:
    rows, stream = rows.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step(rows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(rows)

    def replay(batch: Tensor) -> Tensor:
        rows.copy_(batch)
        graph.replay()
        return loss.clone()

    return replay


def _tried(
    step: Step, rows: Tensor, before: list[Tensor], state: Callable[[], list[Tensor]]
) -> tuple[Tensor, float]:
    """Losses of some steps from the state before, and seconds of one."""
    _put_back(before, state())
    torch.cuda.synchronize()
    start, losses = time.perf_counter(), []
    for seed in range(TRIED):
        torch.manual_seed(seed)
        losses.append(step(rows))
    torch.cuda.synchronize()
    return torch.stack(losses), (time.perf_counter() - start) / TRIED


@torch.no_grad()
def _put_back(before: list[Tensor], now: list[Tensor]) -> None:
    """In place; what an optimizer has made since, its first moments, was zero before."""
    for old, tensor in zip(before, now, strict=False):
        tensor.copy_(old)
    for tensor in now[len(before) :]:
        tensor.zero_()
