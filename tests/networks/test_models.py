import pytest
import torch
from torch import nn
from transfusion.networks import convolution, freezing, models
from transfusion.similarity import activations

from bench import reference

from ..conftest import Operators

PRINTED = {
    "cbr_large_t": 8_532_480,
    "cbr_large_w": 8_432_128,
    "cbr_small": 2_108_672,
    "cbr_tiny": 1_076_480,
}


def paper_count(net: nn.Module) -> int:
    """Parameters as the paper's Table 1 counts them for its CBR networks.

    Weights of every convolution but the first, and of the classifier without its bias: the rule
    that gives all four printed counts exactly.
    """
    kinds = (nn.Conv2d, nn.Linear)
    weights = [module.weight.numel() for module in net.modules() if isinstance(module, kinds)]
    return sum(weights[1:])


@pytest.mark.parametrize("name", PRINTED)
def test_parameter_counts_are_those_of_the_paper(name):
    assert paper_count(models.build(name, outputs=5)) == PRINTED[name]


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
    assert kinds == {True: torch.nn.Conv2d, False: convolution.Convolution}


def test_the_slim_resnet_is_the_full_one_up_to_its_second_block():
    assert models.parameters("resnet50_slim") == 7_140_421
    with torch.device("meta"):
        slim, full = (models.build(name, outputs=5) for name in ("resnet50_slim", "resnet50"))
    body = {n: t for n, t in slim.named_parameters() if not models.in_head(slim, n)}
    assert sum(tensor.numel() for tensor in body.values()) == 7_135_296
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (slim, full)]
    assert shapes[0].keys() == shapes[1].keys()
    for name in models.tensors(slim, models.upto(slim, "block2")):
        assert shapes[0][name] == shapes[1][name]
    for name in ("layer3.0.conv3", "layer4.2.conv3"):
        assert 2 * shapes[0][f"{name}.weight"][0] == shapes[1][f"{name}.weight"][0]


def test_the_slim_resnet_starts_at_hes_scale_and_gives_its_outputs():
    net = models.build("resnet50_slim", outputs=5, seed=1)
    weight = net.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["cbr_tiny", "resnet18", "vgg11", "vit_b_16"])
def test_blocks_share_out_every_tensor_but_the_head(name):
    with torch.device("meta"):
        net = models.build(name, outputs=5)
    parts = [models.tensors(net, [block]) for block in models.blocks(net)]
    body = [tensor for tensor in net.state_dict() if not models.in_head(net, tensor)]
    assert sorted(tensor for part in parts for tensor in part) == sorted(body)


def test_blocks_are_counted_from_the_first():
    resnet, cbr = (models.build(name, outputs=5) for name in ("resnet18", "cbr_tiny"))
    assert models.upto(resnet, "block1") == ["conv1", "block1"]
    assert models.upto(cbr, "conv1") == models.upto(cbr, "block1") == ["block1"]
    with pytest.raises(ValueError, match="unknown block 'block5'; possible: block1, block2"):
        models.upto(cbr, "block5")


def test_frozen_blocks_have_no_gradient_and_their_batch_norm_no_new_statistics():
    net = models.build("resnet18", outputs=5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    frozen = models.tensors(net, models.upto(net, "block2"))
    freezing.freeze(net, models.upto(net, "block2"))
    for mode in (False, True):  # evaluated, and trained again
        net.train(mode)
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name in frozen)
    for name, tensor in net.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == ("running" in name or "tracked" in name) * (name not in frozen), name


@pytest.mark.parametrize("size", [32, 64])
def test_memory_is_what_the_backward_pass_needs(size):
    """By hand: the image, the input and the output of each ReLU, the place of each maximum."""
    by_hand, side = 4 * 3 * size**2, size
    for width in models.CBRS["cbr_tiny"].widths:
        by_hand += 4 * 2 * width * side**2
        side //= 2
        by_hand += (4 + 8) * width * side**2  # maxima, and where they were
    by_hand += 4 * 256 - 4 * 256 * side**2  # the mean needs no input, the classifier does
    assert models.memory("cbr_tiny", size) == by_hand


def test_memory_grows_with_the_number_of_pixels():
    for name in ("cbr_tiny", "resnet50", "resnet50_slim"):
        assert models.memory(name, 128) / models.memory(name, 64) == pytest.approx(4, rel=0.01)
    assert models.memory("resnet50_slim", 64) < models.memory("resnet50", 64)


def test_what_is_frozen_gives_the_same_features_in_every_pass():
    """Stochastic depth too, which draws whole branches of a transformer at random."""
    net = models.build("swin_tiny", outputs=5, size=64)
    images = torch.randn(4, 3, 64, 64)

    def features():
        with torch.no_grad():
            return net.forward_features(images)

    net.train()
    assert not torch.equal(features(), features())
    freezing.freeze(net, models.blocks(net))
    net.train()
    assert torch.equal(features(), features())
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        "head.fc.weight",
        "head.fc.bias",
    }
