import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from transfusion import store
from transfusion.images import ingest
from transfusion.networks import models, parts
from transfusion.similarity import activations, second_moments, stored

from ..conftest import ROOT


def test_extractor_gives_the_named_blocks(rng):
    net = models.build("resnet18", outputs=3).eval()
    images = torch.rand(2, 3, 64, 64)
    expected, seen = {}, {}
    x = net.relu(net.bn1(net.conv1(images)))
    expected["conv1"] = x.clone()
    x = net.maxpool(x)
    for i in range(1, 5):
        x = getattr(net, f"layer{i}")(x)
        expected[f"block{i}"] = x.clone()
    with torch.no_grad():
        seen = activations.extractor(net)(images)
    assert list(seen) == list(expected)
    for block, maps in expected.items():
        torch.testing.assert_close(seen[block], maps)


def test_places_of_one_size_are_distinct_and_shared(rng):
    first, second = activations.places(rng, 5, 16, [(7, 7), (7, 7)])
    assert first is second and first.shape == (5, 16)
    assert all(len(set(row)) == 16 for row in first)
    assert activations.places(rng, 5, 16, [(2, 2)])[0].shape == (5, 4)


def test_places_of_several_sizes_are_the_same_points(rng):
    fine, coarse, whole = activations.places(rng, 50, 16, [(8, 12), (4, 6), (1, 1)])
    y, x = np.divmod(fine, 12)
    np.testing.assert_array_equal(coarse, (y // 2) * 6 + x // 2)
    assert set(fine.ravel()) == set(range(96)) and not whole.any()


def test_sample_takes_the_named_places(rng):
    maps = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2)  # image, channel, y, x
    found = activations.sample(maps, np.array([[3, 0], [1, 2]]), np.array([2, 0]))
    np.testing.assert_array_equal(found[0], [[11, 3], [8, 0]])
    np.testing.assert_array_equal(found[1], [[21, 13], [22, 14]])


def test_a_network_is_itself(cache, tiny_run, images):
    """The same channels in both, whatever the width: an untouched layer has a similarity of 1."""
    net = activations.extractor(models.build("resnet18", outputs=5))
    found = activations.moments([net, net], images.isel(image=slice(100)), positions=4, neurons=8)
    for block in ("conv1", "block4"):
        assert found.cca(block).mean == pytest.approx(1, abs=1e-9)
        assert found.linear_cka(block).value == pytest.approx(1, abs=1e-9)


def test_all_positions_are_the_whole_maps(images):
    nets = [activations.extractor(models.build("cbr_tiny", outputs=5, seed=s)) for s in (0, 1)]
    few = images.isel(image=slice(60))
    found = activations.moments(nets, few, positions=10_000)
    order = np.random.default_rng(0).permutation(60)  # the moments go through images like this
    pixels = models.normalise(torch.from_numpy(few["pixels"].values[order]))
    with torch.no_grad():
        maps = [net(pixels) for net in nets]
    for block in ("block1", "block4"):
        whole = second_moments.SecondMoments({block: (maps[0][block].shape[1],) * 2})
        whole.update({block: [part[block] for part in maps]})
        assert found.datapoints(block) == whole.datapoints(block)
        for measure in ("linear_cka", "procrustes"):
            one, other = (getattr(m, measure)(block).value for m in (found, whole))
            assert one == pytest.approx(other, abs=1e-9)


def test_blocks_beside_each_other(images):
    nets = [activations.extractor(models.build("cbr_tiny", outputs=5, seed=s)) for s in (0, 1)]
    found = activations.moments(nets, images, positions=4, neurons=8, across=[0, 1])
    layer = activations.ACROSS
    assert found.neurons[layer] == (8,) * 8 and found.datapoints(layer) == 4 * 300
    # A block with itself, and with the same block of the other network, as seen at other points.
    assert found.linear_cka(layer, 2, 2).value == pytest.approx(1)
    one, other = found.linear_cka(layer, 0, 4), found.linear_cka("block1", 0, 1)
    assert abs(one.value - other.value) < 5 * (one.se + other.se)


def test_networks_with_other_blocks_are_refused(images):
    nets = [activations.extractor(models.build(m, outputs=5)) for m in ("cbr_tiny", "resnet18")]
    with pytest.raises(ValueError, match="network 1 has the blocks conv1.*network 0 has block1"):
        activations.moments(nets, images)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        activations.moments(nets[:1], images.isel(image=slice(1)))


def test_a_broken_activation_is_named(images):
    net = models.build("cbr_tiny", outputs=5)
    net.block3[1].weight.data[0] = np.nan
    with pytest.raises(ValueError, match="'block3', network 1: activations of image 0 are not fin"):
        nets = [activations.extractor(models.build("cbr_tiny", outputs=5)), net]
        activations.moments([nets[0], activations.extractor(net)], images)


def test_moments_of_stored_activations(images, tmp_path):
    nets = [models.build("cbr_tiny", outputs=5, seed=s) for s in (0, 1)]
    trees = [
        activations.capture(net, images, tmp_path / f"{i}.zarr", dtype="float32")
        for i, net in enumerate(nets)
    ]
    stored = activations.stored_moments(trees, positions=10_000)
    direct = activations.moments([activations.extractor(n) for n in nets], images, positions=10_000)
    for block in ("block1", "block4"):
        found, expected = stored.linear_cka(block), direct.linear_cka(block)
        assert found.value == pytest.approx(expected.value, abs=1e-6)
    with pytest.raises(ValueError, match="activations of the same images, got .250, 300."):
        other = activations.capture(nets[1], images.isel(image=slice(250)), tmp_path / "o.zarr")
        activations.stored_moments([trees[0], other])


def test_a_truncated_store_is_an_error(images, tmp_path):
    tree = activations.capture(models.build("cbr_tiny", outputs=5), images, tmp_path / "kept.zarr")
    chunk = next((tmp_path / "kept.zarr/block2/activation/c").rglob("0/0/0/0"))
    whole = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(ValueError, match="'block2', network 0: activations of image 0 are not fin"):
        activations.stored_moments([tree, tree])
    chunk.write_bytes(whole[:-100])
    with pytest.raises(ValueError):
        activations.stored_moments([tree, tree])


KILLED = """
import os
from tests.similarity.test_activations import {what}
from transfusion import data, models

def killed_in_the_end(*arguments):
    global left
    left -= 1
    return normalise(*arguments) if left else os._exit(9)

left, normalise, models.normalise = {calls}, models.normalise, killed_in_the_end
{what}(data.prepare("fundus", size=32, n=300), "{path}")
"""


def captured(images, path):
    with mock.patch.object(activations, "BATCH", 50):
        tree = activations.capture(models.build("cbr_tiny", outputs=5), images, path)
    return store.checksum(tree["block2"].to_dataset().load())


def reduced(images, path):
    net = activations.extractor(models.build("cbr_tiny", outputs=5))
    with mock.patch.object(activations, "CHECKPOINT_SECONDS", 0):
        found = activations.moments([net, net], images, checkpoint=Path(path))
    return found.cca("block2").coefficients.tobytes()


@pytest.mark.parametrize(("what", "calls", "saved"), [(captured, 5, 2), (reduced, 9, 4)])
def test_killed_at_half_and_resumed_is_the_same_to_the_bit(
    images, tmp_path, monkeypatch, what, calls, saved
):
    """`calls` of the network are begun by the killed process, and `saved` not made again."""
    script = KILLED.format(what=what.__name__, calls=calls, path=tmp_path / "cut.zarr")
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert killed.returncode == 9, killed.stderr
    assert list(tmp_path.glob("*cut.zarr*"))
    counted = mock.Mock(side_effect=models.normalise)
    monkeypatch.setattr(models, "normalise", counted)
    resumed, needed = what(images, tmp_path / "cut.zarr"), counted.call_count
    counted.reset_mock()
    assert resumed == what(images, tmp_path / "whole.zarr")
    assert counted.call_count - needed >= saved


def test_what_another_network_left_is_not_continued(images, tmp_path):
    def batches(start):
        assert start == 0
        yield {"block1": np.ones((2, 3), np.float16)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored.write_activations(tmp_path / "kept.zarr", batches, 300, {}, {"net": "another"})
    assert (tmp_path / ".kept.zarr.partial").exists()
    tree = activations.capture(models.build("cbr_tiny", outputs=5), images, tmp_path / "kept.zarr")
    assert tree["block1"]["activation"].shape == (300, 32, 16, 16)


def test_inplace_relu_does_not_reach_what_is_captured(images):
    """torchvision's ReLUs overwrite their input, here the output of a block."""

    class Overwriting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True)
            self.third, self.last = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Identity()

        def forward(self, x):
            x = self.second(self.first(x))
            third = self.third(x)
            x += third
            return self.last(torch.nn.functional.relu(third, inplace=True) + x)

    blocks = {name: (name,) for name in ("first", "second", "third", "last")}
    net = parts.named(Overwriting(), parts.Plan(blocks, ("none",)))
    pixels = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        first = net.first(pixels)
        second = first.clamp(min=0)
        third = net.third(second)
        found = activations.extractor(net)(pixels)
    assert (first < 0).any() and (third < 0).any()
    torch.testing.assert_close(found["first"], first)
    torch.testing.assert_close(found["second"], second)
    torch.testing.assert_close(found["third"], third)
    torch.testing.assert_close(found["last"], third.clamp(min=0) + second + third)


def test_no_images_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        net = models.build("cbr_tiny", outputs=5)
        activations.capture(net, images.isel(image=slice(0)), tmp_path / "kept.zarr")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ingest.prepare("fundus", size=32, n=300).load()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_captured_activations_are_those_of_the_network(images, tmp_path, dtype):
    net = models.build("cbr_tiny", outputs=5)
    tree = activations.capture(net, images, tmp_path / "kept.zarr", dtype=dtype)
    assert list(tree.children) == ["block1", "block2", "block3", "block4"]
    assert tree.attrs["images"] == 300
    pixels = torch.from_numpy(images["pixels"].values)
    with torch.no_grad():
        expected = activations.extractor(net)(models.normalise(pixels))
    for block, maps in expected.items():
        found = tree[block]["activation"]
        assert found.dims == ("image", "channel", "y", "x") and found.dtype == dtype
        tolerance = 1e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(found.values, maps.numpy(), rtol=tolerance, atol=1e-5)


def test_some_blocks_and_vectors(images, tmp_path):
    net = models.build("resnet18", outputs=5)
    tree = activations.capture(net, images, tmp_path / "kept.zarr", blocks=["block4", "conv1"])
    assert list(tree.children) == ["block4", "conv1"]
    assert tree["conv1"]["activation"].shape == (300, 64, 16, 16)
    with pytest.raises(ValueError, match="unknown block 'blok1'.*Did you mean 'block1'"):
        activations.capture(net, images, tmp_path / "other.zarr", blocks=["blok1"])
    with pytest.raises(ValueError, match="unknown dtype 'bfloat16'"):
        activations.capture(net, images, tmp_path / "other.zarr", dtype="bfloat16")
    assert not (tmp_path / "other.zarr").exists()


def test_overflow_is_an_error_and_leaves_what_was_there(images, tmp_path):
    net = models.build("cbr_tiny", outputs=5)
    before = activations.capture(net, images, tmp_path / "kept.zarr")["block1"].load()
    net.block2[1].bias.data.fill_(1e6)
    with pytest.raises(ValueError, match="block2 overflows float16.*float32"):
        activations.capture(net, images, tmp_path / "kept.zarr")
    after = stored.read_activations(tmp_path / "kept.zarr")["block1"]
    np.testing.assert_array_equal(after["activation"], before["activation"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.zarr"]


def test_what_others_have_put_there_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    zarr.create_group(tmp_path / "group.zarr", attributes={"mine": True})
    for name in ("thesis", "file", "group.zarr"):
        with pytest.raises(ValueError, match=f"{name} is there and is no capture"):
            stored.write_activations(tmp_path / name, lambda start: iter([]), 1, {}, {})
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"
    assert (tmp_path / "file").is_file() and zarr.open_group(tmp_path / "group.zarr").attrs["mine"]


@pytest.mark.parametrize("images", [2, 3, 127, 128, 129, 130, 257, 512])
def test_batches_are_even_and_none_has_a_single_image(images):
    sizes = [rows.stop - rows.start for rows in activations.even(images, 128)]
    assert sum(sizes) == images and max(sizes) <= 128
    assert max(sizes) - min(sizes) <= 1 < min(sizes) + (images == 1)
