import pytest
import torch
from transfusion import activations, models, reference

from .conftest import Operators

PRINTED = {
    "cbr_large_t": 8_532_480,
    "cbr_large_w": 8_432_128,
    "cbr_small": 2_108_672,
    "cbr_tiny": 1_076_480,
}


@pytest.mark.parametrize("name", PRINTED)
def test_parameter_counts_are_those_of_the_paper(name):
    assert models.paper_count(models.build(name, outputs=5)) == PRINTED[name]


@pytest.mark.parametrize("name", [*PRINTED, "resnet18"])
@pytest.mark.parametrize("size", [32, 45])
def test_shapes_at_small_sizes(name, size):
    net = models.build(name, outputs=3).eval()
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    assert net(models.normalise(images)).shape == (2, 3)


def test_large_t_is_not_pooled_after_its_last_block():
    net = activations.extractor(models.build("cbr_large_t", outputs=2))
    outputs = net(torch.zeros(1, 3, 64, 64))
    assert [tuple(maps.shape[1:]) for maps in outputs.values()] == [
        (32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 4, 4),
    ]  # fmt: skip


def test_blocks_are_in_order_and_hold_every_weight_but_the_head():
    for name in ("cbr_small", "resnet18"):
        net = models.build(name, outputs=2)
        modules = [module for names in models.blocks(net).values() for module in names]
        for tensor, _ in net.named_parameters():
            assert models.in_head(net, tensor) or tensor.split(".")[0] in modules
    assert list(models.blocks(net)) == ["conv1", "block1", "block2", "block3", "block4"]


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a = models.build("cbr_tiny", outputs=5, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    b = models.build("cbr_tiny", outputs=5, seed=3).state_dict()
    c = models.build("cbr_tiny", outputs=5, seed=4).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["block1.0.weight"], c["block1.0.weight"])


def test_convolutions_start_at_hes_scale():
    weight = models.build("cbr_large_w", outputs=5).block3[0].weight
    expected = (2 / (weight.shape[0] * 49)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.01)


def test_unknown_model_and_channels():
    with pytest.raises(ValueError, match="unknown model 'cbr_huge'; possible: cbr_large_t"):
        models.build("cbr_huge", outputs=5)
    assert models.build("cbr_tiny", outputs=5, channels=1)(torch.zeros(1, 1, 32, 32)).shape == (
        1,
        5,
    )
    with pytest.raises(ValueError, match="takes 3 channels"):
        models.build("resnet18", outputs=5, channels=1)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("resnet50", 32), ("resnet50", 45), ("cbr_large_t", 32)]
)
def test_convolutions_as_products_are_the_same_function(name, size, reduced, monkeypatch):
    """Output and gradients in float64, on the paths of either precision."""
    net = models.build(name, outputs=3, seed=1).double().to(memory_format=torch.channels_last)
    plain = reference.plain(net)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: reduced)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, size, size, dtype=torch.float64, generator=generator)
    outputs = [n(images.to(memory_format=torch.channels_last)) for n in (net, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    with Operators() as seen:
        net(images)
    assert bool(seen.counts.get("im2col")) == reduced  # small maps
    assert bool(seen.counts.get("mm")) == reduced


def test_only_plain_convolutions_become_products():
    net = models.build("mobilenet_v2", outputs=2)
    kinds = {m.groups > 1: type(m) for m in net.modules() if isinstance(m, torch.nn.Conv2d)}
    assert kinds == {True: torch.nn.Conv2d, False: models.Convolution}
