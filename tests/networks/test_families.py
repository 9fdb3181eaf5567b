"""Networks by timm's names: one of each family through all that a study asks of it."""

import copy

import pytest
import torch
from transfusion import config, experiments, terms
from transfusion.experiments import plan
from transfusion.networks import inits, models, parts, weights
from transfusion.similarity import comparison
from transfusion.training import fit

from ..conftest import KNOBS

FAMILIES = [
    "densenet121",
    "convnext_tiny",
    "vit_small_patch16_224",
    "swin_tiny",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "regnety_004",
    "vgg11_bn",
    "maxvit_tiny",
    "deit_tiny",
    "deit_tiny_distilled_patch16_224",
]
BLOCKS = ["conv1", "block1", "block2", "block3", "block4"]
INITS = [f"{name}block2" if name.endswith(":") else name for name in terms.INITS]
SIZE = 64


def built(name, size=SIZE, **options):
    return models.build(name, outputs=5, size=size, **options)


# --- by their shapes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "inception_v3", "googlenet"])
def test_blocks_are_five_and_share_out_every_tensor_but_the_head(name):
    with torch.device("meta"):
        net = built(name, None)
    assert list(models.blocks(net)) == BLOCKS
    shared = [models.tensors(net, [block]) for block in BLOCKS]
    body = [tensor for tensor in net.state_dict() if not models.in_head(net, tensor)]
    assert sorted(tensor for part in shared for tensor in part) == sorted(body)
    assert all(shared) and len(body) < len(net.state_dict())


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("vgg11_bn",)])
def test_the_third_quarter_of_depth_is_at_a_sixteenth_of_the_image_in_all(name):
    """As in a ResNet, so that `transfusion:block2` asks the same of each."""
    with torch.device("meta"):
        maps = parts.outputs(built(name, 224).eval(), torch.empty(2, 3, 224, 224))
    tokens = "vit" in name or "deit" in name
    sides = [14, 14, 14, 14] if tokens and "maxvit" not in name else [56, 28, 14, 7]
    assert [maps[block].shape[2] for block in BLOCKS[1:]] == sides
    assert [maps[block].shape[2:] for block in BLOCKS[1:]] == [(side, side) for side in sides]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("densenet121", "features.conv0.weight"),
        ("convnext_tiny", "stem.0.weight"),
        ("vit_small_patch16_224", "patch_embed.proj.weight"),
        ("mobilenetv3_small_100", "conv_stem.weight"),
    ],
)
def test_conv1_is_the_first_layer_and_little_else(name, first):
    with torch.device("meta"):
        net = built(name)
    assert inits.needed("gabor", net) == {first}
    conv1 = models.tensors(net, ["conv1"])
    assert first in conv1 and len(conv1) <= 6


def test_where_the_blocks_of_a_vision_transformer_lie():
    with torch.device("meta"):
        net = built("vit_small_patch16_224")
    block_of = parts.place(net)
    assert [block_of(f"blocks.{i}.attn.qkv.weight") for i in range(12)] == [
        f"block{1 + i // 3}" for i in range(12)
    ]
    assert block_of("pos_embed") == "conv1" and block_of("norm.weight") == "block4"


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_tokens_are_in_their_places_and_those_of_no_place_left_out(name):
    """timm's own reading of the same network is the other method."""
    net, images = built(name).eval(), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = parts.outputs(net, images)
        theirs = net.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    for block, expected in zip(BLOCKS[1:], theirs[2::3], strict=True):
        assert torch.equal(maps[block], expected)


def test_channels_that_come_last_are_turned():
    net, images = built("swin_tiny").eval(), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = parts.outputs(net, images)
        theirs = net.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    for block, expected in zip(BLOCKS[1:], theirs, strict=True):
        assert torch.equal(maps[block], expected)


@pytest.mark.parametrize(("last", "expected"), [(False, (2, 6, 6, 6)), (True, (2, 6, 6, 6))])
def test_a_map_as_wide_as_it_has_channels_is_read_as_its_network_says(last, expected):
    output = torch.arange(2 * 6**3).view(2, 6, 6, 6)
    plan = parts.Plan({"conv1": ("x",)}, ("head",), {"conv1": 6}, channels_last=last)
    found = parts._as_map(plan, "conv1", output, None)
    assert found.shape == expected
    assert torch.equal(found, output.permute(0, 3, 1, 2) if last else output)


@pytest.mark.parametrize(
    "output", [(torch.zeros(2, 3), 4), torch.zeros(2, 7, 3), torch.zeros(2, 3, 4, 4, 4)]
)
def test_an_output_that_is_no_map_is_refused(output):
    net = parts.named(torch.nn.Identity(), parts.Plan({"conv1": ("x",)}, ("head",)))
    with pytest.raises(ValueError, match="conv1 puts out a t.*, which is no map and no square"):
        parts._as_map(parts.plan(net), "conv1", output, None)


def test_pixels_are_what_the_weights_expect():
    grey = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    expected = {
        "vit_small_patch16_224": (200 / 255 - 0.5) / 0.5,  # of its default weights
        "vit_small_patch16_224.dino": (200 / 255 - 0.485) / 0.229,
        "convnext_tiny": (200 / 255 - 0.485) / 0.229,
        "cbr_tiny": (200 / 255 - 0.485) / 0.229,
    }
    for name, red in expected.items():
        with torch.device("meta"):
            net = models.build(name, outputs=2)
        assert models.normalise(grey, net)[0, 0, 0, 0].item() == pytest.approx(red), name


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_the_inceptions_see_pixels_at_half_and_half(name):
    net, seen = models.build(name, outputs=2).eval(), []
    first = net.get_submodule(models.blocks(net)["conv1"][0])
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    grey = torch.full((1, 3, 96, 96), 200, dtype=torch.uint8)
    with torch.no_grad():
        net(models.normalise(grey, net))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 96, 96), (200 / 255 - 0.5) / 0.5))


# --- names, and what cannot be ---------------------------------------------------------------


def test_a_run_has_one_key_by_whatever_name_its_network_goes(tiny_run):
    one, other = (tiny_run(model=name) for name in ("vit_b_32", "vit_base_patch32_224"))
    assert one.key == other.key and one.model == "vit_base_patch32_224"
    knobs = KNOBS | {"models": ["vit_b_32"], "weights": {"vit_b_32": "imagenet@0"}}
    knobs |= {"tuned": {"vit_b_32 random": 0.1}, "own_inits": {"vit_b_32": ["random"]}}
    found = plan.knobs_from(knobs)
    assert found.models == [*found.weights] == [*found.own_inits] == ["vit_base_patch32_224"]
    assert [*found.tuned] == ["vit_base_patch32_224 random"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "resnet5",
            "unknown model 'resnet5'; possible: cbr_large_t, .*, and timm's.*Did you mean 'resnet5",
        ),
        ("maxvit_t", "Did you mean 'maxvit_tiny"),
        ("mobilenet_v3_small", "Did you mean 'mobilenetv3_"),
        ("vit_small_patch16_224.dinoo", "Did you mean 'vit_small_patch16_224.a"),
        ("deit", "Did you mean 'deit_base"),
        ("RESNET50", "Did you mean 'resnet50"),
        ("xception", "Did you mean 'xception41"),  # known to timm, but no more than that
        ("vit_small_patch16_224.", "Did you mean 'vit_small_patch16_224.a"),
        ("", "unknown model ''; possible: .* by their names.$"),
    ],
)
def test_unknown_names_are_told_those_near(name, words):
    with pytest.raises(ValueError, match=words):
        models.build(name, outputs=2)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("inception_v3", 64, r"no images of 64 px \(.*\); sizes that it takes: such as 96, 224, "),
        ("pit_s_224", 64, r"no ordered blocks of pit_s_224\); .*: none; .* 64 px: resnet50"),
        ("vit_small_patch16_224", 33, "in patches of 16 px a rim of 1 px would be left out"),
        ("convnext_tiny", 33, "in patches of 4 px a rim of 1 px would be left out"),
        ("vit_small_r26_s32_224", 64, "first group of layers of vit_small_r26_s32_224 has 30 wei"),
        ("hiera_tiny_224", 64, "tokens of hiera_tiny_224 are not in the order of their places"),
        ("lambda_resnet26t", 64, "required rank 4 tensor"),
        ("selecsls42", 64, "block1 puts out a list, which is no map"),
        ("sequencer2d_s", 64, "timm tells only 3 blocks of sequencer2d_s"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(cache, tiny_run, name, size, words):
    with pytest.raises(ValueError, match=words) as error:
        models.check(name, size)
    assert len(str(error.value).splitlines()) == 1
    run = tiny_run(model=name)
    if size == 64:
        with pytest.raises(ValueError, match=words.replace("64 px", "32 px")):
            fit.check(run)


# --- weights ---------------------------------------------------------------------------------


def test_attention_and_embeddings_are_weights_and_norms_are_not():
    source = _unusual(built("vit_small_patch16_224", seed=1))
    for name in ("mean_var", "permuted"):
        record = inits.apply(name, built("vit_small_patch16_224"), source=source)
        assert record["blocks.0.attn.qkv.weight"] == record["pos_embed"] == "redrawn"
        assert record["blocks.0.norm1.weight"] == "kept"
    record = inits.apply("batch_norm", built("vit_small_patch16_224"), source=source)
    assert {n for n, what in record.items() if what == "copied"} == {
        n for n in record if "norm" in n
    }


def test_attention_of_torchs_own_kind_is_weights_too():
    net = torch.nn.TransformerEncoderLayer(8, 2, 16)
    assert inits._weight_names(net)[:2] == ["self_attn.in_proj_weight", "self_attn.in_proj_bias"]
    assert not any("norm" in name for name in inits._weight_names(net))


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "swin_tiny", "maxvit_tiny"])
def test_weights_of_another_size_are_interpolated(name):
    source = built(name, None, seed=1).state_dict()
    for tensor, values in source.items():
        if "relative_position_bias_table" in tensor:
            values.fill_(0.5)  # what is alike everywhere stays so
    net = built(name, SIZE)
    record = inits.apply("transfer", net, source=source)
    copied = {n for n, what in record.items() if what == "copied"}
    assert copied == {n for n in record if not models.in_head(net, n)}
    other = {n for n in copied if net.state_dict()[n].shape != source[n].shape}
    assert other and all("pos" in name for name in other)  # positions, absolute or relative
    assert all(torch.equal(net.state_dict()[n], source[n]) for n in copied - other)
    for tensor in (n for n in other if "relative_position_bias_table" in n):
        values = net.state_dict()[tensor]
        torch.testing.assert_close(values, torch.full_like(values, 0.5))


def test_kernels_of_another_size_are_of_another_network(cache, tmp_path):
    torch.save(built("vit_small_patch16_224", None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight: expected .*, got .*16, 16\)"):
        weights.import_weights("vit_small_patch32_224", tmp_path / "weights.pth")


def test_a_grey_first_layer_is_found_where_it_is_not_the_first_tensor(cache, tmp_path):
    state, told = built("vit_tiny_patch16_224", None).state_dict(), []
    grey = {"patch_embed.proj.weight": state["patch_embed.proj.weight"].sum(1, keepdim=True)}
    torch.save(state | grey, tmp_path / "weights.pth")
    weights.import_weights("vit_tiny_patch16_224", tmp_path / "weights.pth", told=told)
    assert (
        "patch_embed.proj.weight is for grey images: each of three colours gets a third" in told[0]
    )
    assert "pixels are normalised by means (0.5, 0.5, 0.5)" in told[1]


def test_torchvisions_transformer_sees_its_pixels_and_wrapped_names(cache, tmp_path):
    """It expects ImageNet's mean and deviation, timm's of this name a half and a half."""
    theirs, told = _published("vit_b_32"), []
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(wrapped, tmp_path / "weights.pth")
    kept = weights.named_weights(
        weights.import_weights("vit_b_32", tmp_path / "weights.pth", told=told)
    )
    assert told[0] == "names without their prefix 'module.'"
    ours = models.build("vit_b_32", outputs=7).eval()
    inits.apply("transfer", ours, source=kept)
    pixels = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    seen = {}
    for net, last in ((theirs, theirs.encoder.ln), (ours, ours.norm)):
        last.register_forward_hook(lambda m, i, o, net=net: seen.update({net: o}))
        with torch.no_grad():
            net(models.normalise(pixels, net))
    torch.testing.assert_close(seen[ours], seen[theirs], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("state", [{"a": torch.zeros(3)}, {"a": torch.tensor(1.0)}])
def test_a_file_without_a_matrix_is_refused_in_words(cache, tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights do not fit the network"):
        weights.import_weights("vit_tiny_patch16_224", tmp_path / "weights.pth")


def test_weights_of_another_size_that_cannot_be_interpolated_are_refused():
    source = built("mixer_s16_224", 224, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"mlp_tokens.*: expected .*, got"):
        inits.apply("transfer", built("mixer_s16_224", SIZE), source=source)


def _published(name, outputs=7):
    """torchvision's network of a name, with statistics as training leaves them."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=outputs).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "regnet_y_400mf"])
def test_torchvisions_weights_are_the_same_function_under_timms_names(cache, tmp_path, name):
    theirs, told = _published(name), []
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    kept = weights.named_weights(weights.import_weights(name, tmp_path / "weights.pth", told=told))
    assert told == ["names as timm has them, for torchvision's: the same outputs of images"]
    ours = models.build(name, outputs=7).eval()
    inits.apply("transfer", ours, source=kept)
    with torch.no_grad():
        for mine, other in zip([*ours.parameters()][-2:], [*theirs.parameters()][-2:], strict=True):
            mine.copy_(other)
        images = torch.randn(2, 3, 224, 224)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_torchvisions_weights_of_another_function_are_refused(cache, tmp_path, monkeypatch):
    """MobileNetV3's batch norm has another constant in timm: as were it an alias."""
    monkeypatch.setitem(terms.SPELT, "mobilenet_v3_small", "mobilenetv3_small_100")
    torch.save(_published("mobilenet_v3_small").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="make another function of timm's mobilenetv3_small_100"):
        weights.import_weights("mobilenetv3_small_100", tmp_path / "weights.pth")


def _unusual(net):
    """A state with norms and biases as training may leave them."""
    generator = torch.Generator().manual_seed(1)
    state = copy.deepcopy(net.state_dict())
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.2)
    return state


# --- through all -----------------------------------------------------------------------------


def test_scales_that_are_built_alike_stay_where_scales_are_matched():
    """ConvNeXt scales its blocks by a millionth; rounding is no deviation."""
    source = models.build("convnext_atto", outputs=5, seed=1).state_dict()
    gammas = [name for name in source if name.endswith("gamma")]
    for name in gammas:
        source[name].normal_(0, 0.1)
    net = models.build("convnext_atto", outputs=5)
    record = inits.apply("scale_matched", net, source=source)
    assert {record[name] for name in gammas} <= {"kept"} and gammas
    assert record["stem.0.weight"] == "redrawn"


def test_gabors_go_to_the_first_convolution_whatever_else_has_four_dimensions():
    source = built("visformer_tiny", seed=1).state_dict()
    record = inits.apply("gabor", built("visformer_tiny"), source=source)
    assert [name for name, what in record.items() if what != "kept"] == ["stem.0.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_init_of_every_family(name):
    source = _unusual(built(name, None, seed=1))
    for init in INITS:
        net = built(name)
        record = inits.apply(init, net, source=source)
        changed = {n for n, what in record.items() if what != "kept"}
        assert bool(changed) == (init != "random"), init
        net.train()
        net(torch.randn(4, 3, SIZE, SIZE)).sum().backward()
        assert all(t.isfinite().all() for t in net.state_dict().values()), init


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_trained_from_weights_and_compared(cache, tmp_path, name):
    source = models.build(name, outputs=9, seed=7).state_dict()
    torch.save(source, tmp_path / "weights.pth")
    full = weights.import_weights(name, tmp_path / "weights.pth", "own")
    images = config.Data(name="fundus", size=SIZE, train=24, valid=16, test=24)
    recipe = config.Optim(steps=4, batch=8, evaluations=2, lr=1e-4)
    made = [config.Init(), config.Init(name="transfer", source=full)]
    made.append(config.Init(name="frozen:block2", source=full))
    runs = [config.Run(data=images, model=name, init=i, optim=recipe) for i in made]
    for run in runs:
        fit.check(run)
        assert fit.fit(run).attrs["status"] == "done"
    compared = config.Comparison(runs=tuple(runs[:2]), images=24, positions=2, neurons=8)
    assert comparison.compare(compared).block.values.tolist() == BLOCKS
    frozen = [fit.network(runs[2], trained=trained) for trained in (False, True)]
    for tensor in models.tensors(frozen[0], ["conv1", "block1", "block2"]):
        assert torch.equal(*(net.state_dict()[tensor] for net in frozen)), tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_planned(cache, name):
    knobs = KNOBS | {"models": [name], "inits": ["random"], "image_size": SIZE}
    specs = experiments.runs("performance", **knobs)
    assert {spec.model for spec in specs if isinstance(spec, config.Run)} == {terms.spelt(name)}
    assert models.flops(name, SIZE) > 0 < models.memory(name, SIZE)
