import numpy as np
import pytest
from transfusion.networks import gabors


def gabor(size, angle, wavelength, width, phase, centre=(0, 0)):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    x, y = x - centre[0], y - centre[1]
    wave = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase
    return np.exp(-(x**2 + y**2) / (2 * width**2)) * np.cos(wave)


@pytest.mark.parametrize("size", [5, 7])
def test_gabors_fit_whatever_their_angle_phase_and_size(size, rng):
    drawn = [
        gabor(size, rng.uniform(0, np.pi), rng.uniform(3.5, size), rng.uniform(1.2, size / 3),
              rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5, 2))
        for _ in range(50)
    ]  # fmt: skip
    colour = np.stack(drawn)[:, None] * rng.uniform(0.5, 2, (50, 3, 1, 1))
    fits = gabors.gabor_fit(colour)
    assert (fits > gabors.gabor_level(size)).all() and np.median(fits) > 0.9
    np.testing.assert_allclose(gabors.gabor_fit(0.01 * colour + 3), fits)  # amplitude, mean


@pytest.mark.parametrize("size", [5, 7])
def test_one_noise_filter_in_a_hundred_passes_for_a_gabor(size, rng):
    noise = rng.normal(size=(2000, 3, size, size))
    share = (gabors.gabor_fit(noise) > gabors.gabor_level(size)).mean()
    assert 0.003 < share < 0.02


def test_what_one_gabor_cannot_be(rng):
    crossed = gabor(7, 0, 4, 2, 0) + gabor(7, np.pi / 2, 4, 2, np.pi / 2)
    assert gabors.gabor_fit(crossed[None, None])[0] < 0.7


def test_moved_is_in_lengths_of_a_filter(rng):
    before = rng.normal(size=(6, 3, 5, 5))
    before[0] = 0  # pretrained layers have such
    change = rng.normal(size=before.shape)
    moved = gabors.moved(before, before + change)
    length = np.sqrt((before**2).sum() / 6)
    np.testing.assert_allclose(moved, np.linalg.norm(change.reshape(6, -1), axis=1) / length)
    np.testing.assert_allclose(gabors.moved(before, 1.1 * before).max(), 0.1, rtol=0.5)


@pytest.mark.parametrize(("count", "size"), [(32, 5), (64, 7), (512, 16)])
def test_a_bank_holds_gabors_all_different(count, size):
    bank = gabors.gabor_bank(count, size)
    assert bank.shape == (count, size, size)
    np.testing.assert_allclose(bank.mean((1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=(1, 2)), 1)
    flat = bank.reshape(count, -1)
    assert np.triu(flat @ flat.T, 1).max() < 0.999
    assert (gabors.gabor_fit(bank[:, None]) > gabors.gabor_level(size)).mean() > 0.95


def test_the_bank_of_the_first_filters_is_cosines_then_sines_of_eight_angles():
    bank = gabors.gabor_bank(16, 7)
    turned = np.rot90(bank, axes=(1, 2))
    np.testing.assert_allclose(bank[4], turned[0], atol=1e-12)  # a quarter turn
    np.testing.assert_allclose(bank[:8], bank[:8, ::-1, ::-1], atol=1e-12)  # cosines are even
    np.testing.assert_allclose(bank[8:], -bank[8:, ::-1, ::-1], atol=1e-12)
