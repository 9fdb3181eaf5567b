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

from transfusion import parallel

Step = Callable[[Tensor], Tensor]  # row numbers of a batch -> its loss
WARM = 3  # steps before a capture, as PyTorch asks: libraries choose and allocate in them
TRIED = 10  # steps that are timed and compared, of either kind
CLOSE = 1e-3  # by how much their losses may differ: bfloat16 has three digits
log = logging.getLogger(__name__)


def faster(step: Step, rows: Tensor, state: Callable[[], list[Tensor]]) -> tuple[Step, bool]:
    """`step` as a graph and True, where that gives the same losses in less time; else `step` and
    False. `rows` are a batch to try it on, and `state` all tensors that a step changes: they are
    as they were when this returns. What cannot be captured (a shape that depends on values) stays
    as it is."""
    if not rows.is_cuda or parallel.size() > 1:
        return step, False
    before = [tensor.clone() for tensor in state()]
    try:
        graphed = _captured(step, rows)
    except RuntimeError as error:
        _put_back(before, state())
        log.info("no CUDA graph: %s", str(error).splitlines()[0])
        return step, False
    plain, replayed = (_tried(kind, rows, before, state) for kind in (step, graphed))
    _put_back(before, state())
    same = torch.allclose(plain[0], replayed[0], rtol=CLOSE, atol=CLOSE)
    log.info("a step takes %.2f ms, as a graph %.2f ms, losses %s", 1e3 * plain[1],
             1e3 * replayed[1], "agree" if same else "differ")  # fmt: skip
    return (graphed, True) if same and replayed[1] < plain[1] else (step, False)


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
