"""What decides between a step and its CUDA graph, on a made-up device; a real one is for `gpu`."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transfusion import config
from transfusion.networks import models
from transfusion.training import fit, graphs, loop

ON_GPU = SimpleNamespace(is_cuda=True)


@pytest.fixture
def learner(monkeypatch, tiny_run):
    """A network with its optimizer, and a step that takes longer than it must."""
    monkeypatch.setattr(graphs.torch.cuda, "synchronize", lambda: None)
    net, adam = loop.for_training(models.build("cbr_tiny", outputs=5), config.Optim(steps=1))
    pixels = torch.randint(0, 255, (8, 3, 32, 32), dtype=torch.uint8)
    target = torch.arange(8) % 5

    def step(_, wait=0.05):
        time.sleep(wait)
        return loop.update(net, adam, pixels, target, torch.nn.functional.cross_entropy, "float32")

    return step, lambda: loop._changing(net, adam)


def copies(state):
    return [tensor.clone() for tensor in state()]


def captured_as(monkeypatch, replay):
    """A capture that, as a real one, takes steps before it is ready."""

    def capture(step, rows):
        for _ in range(graphs.WARM):
            step(rows)
        return replay

    monkeypatch.setattr(graphs, "_captured", capture)


def test_a_faster_graph_of_the_same_losses_is_taken_and_leaves_no_trace(learner, monkeypatch):
    step, state = learner
    before = copies(state)
    captured_as(monkeypatch, lambda rows: step(rows, wait=0))
    chosen, found = graphs.faster(step, ON_GPU, state)
    assert chosen is not step and found["stepped"] == "graph"
    assert found["graph_ms"] < found["eager_ms"] and found["losses_apart"] == 0
    after = copies(state)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
    assert all((moment == 0).all() for moment in after[len(before) :]), "still fresh"


def test_a_graph_of_other_losses_or_no_faster_is_not_taken(learner, monkeypatch):
    step, state = learner
    captured_as(monkeypatch, lambda rows: 1.05 * step(rows, wait=0))
    chosen, found = graphs.faster(step, ON_GPU, state)
    assert chosen is step and found["stepped"] == "eager" and found["losses_apart"] > 0.01
    captured_as(monkeypatch, lambda rows: step(rows, wait=0.2))
    assert graphs.faster(step, ON_GPU, state)[1]["stepped"] == "eager"


def test_what_cannot_be_captured_stays_as_it_is(learner, monkeypatch):
    step, state = learner
    step(None)
    before = copies(state)

    def capture(step, rows):
        step(rows)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_captured", capture)
    assert graphs.faster(step, ON_GPU, state) == (step, {"stepped": "eager"})
    assert all(torch.equal(a, b) for a, b in zip(before, copies(state), strict=True))


def test_on_a_cpu_there_is_nothing_to_try(learner):
    step, state = learner
    assert graphs.faster(step, torch.arange(8), state) == (step, {"stepped": "eager"})


def test_a_step_brings_nothing_to_the_device(learner):
    """What a CUDA graph may not do: `normalise` once made its constants at every step."""
    step, _ = learner
    step(None)
    made = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            made.extend([name] if name in ("tensor", "as_tensor", "from_numpy") else [])
            return function(*args, **(kwargs or {}))

    with Watch():
        step(None)
    assert not made


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_graph_takes_the_steps_that_it_stands_for(cache, tiny_run, monkeypatch, optimizer):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run = tiny_run(steps=40, evaluations=4, optimizer=optimizer, precision="bfloat16")
    monkeypatch.setattr(graphs, "faster", lambda step, *_: (step, {"stepped": "eager"}))
    eager = fit._fit(run, "bfloat16", None, 60.0, None)
    monkeypatch.undo()
    monkeypatch.setenv("TRANSFUSION_CACHE", str(cache / "other"))
    graph = fit._fit(run, "bfloat16", None, 60.0, None)
    assert eager.attrs["stepped"] == "eager" and "graph_ms" in graph.attrs
    torch.testing.assert_close(
        torch.tensor(graph.loss.values), torch.tensor(eager.loss.values), rtol=0.02, atol=0.02
    )
