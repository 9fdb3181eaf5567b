"""First-layer filters: how far training moves them, and which are Gabors (paper, Figure 5)."""

from __future__ import annotations

from functools import cache

import numpy as np

# Of the Gabors that a filter is compared with. Of 400 others, drawn at random, the worst fits by
# 0.62 (7 px; chance 0.37) or 0.80 (5 px; 0.61), and half by 0.94 and more.
ANGLES, WAVELENGTHS, WIDTHS, PLACES = 12, 6, 4, 3
NOISE = 2000  # filters of white noise that set the level of chance: 20 of them lie above it


def moved(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each filter (filter, channel, y, x) moved: (filter,), in lengths of a filter.

    That is the root mean square over the layer: pretrained layers have filters of almost no length.
    """
    change, length = (np.sqrt((w**2).sum((1, 2, 3))) for w in (after - before, before))
    return change / np.sqrt((length**2).mean())


def gabor_fit(filters: np.ndarray) -> np.ndarray:
    """The largest share of a filter's variance that one Gabor accounts for: (filter,) in [0, 1].

    Filters (filter, channel, y, x) are averaged over channels, as the paper shows them. Angle,
    wavelength, width and place of the Gabor are searched on a grid; amplitude and phase are free.
    """
    grey = filters.mean(1).reshape(len(filters), -1)
    grey = grey - grey.mean(1, keepdims=True)
    found = (grey @ _gabors(filters.shape[-1])).reshape(len(grey), -1, 2)
    return (found**2).sum(2).max(1) / (grey**2).sum(1)


def gabor_bank(count: int, size: int) -> np.ndarray:
    """`count` grey Gabor filters (filter, y, x) of `size` pixels, of mean 0 and length 1 (E18).

    Eight angles, cosine and sine, and as many wavelengths, from 3 pixels to the filter's size, as
    fill the count; the envelope is as wide as the wave. The paper's own bank was not recovered.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angles = np.arange(8) * np.pi / 8
    wavelengths = np.geomspace(3, size, max(2, -(-count // 16)))
    grid = np.array([(w, p, a) for w in wavelengths for p in (0, np.pi / 2) for a in angles])
    wavelength, phase, angle = grid[:count].T[:, :, None, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    envelope = np.exp(-(x**2 + y**2) / (2 * (wavelength / 2) ** 2))
    bank = envelope * np.cos(2 * np.pi * along / wavelength + phase)
    bank -= bank.mean((1, 2), keepdims=True)
    return bank / np.linalg.norm(bank, axis=(1, 2), keepdims=True)


@cache
def gabor_level(size: int, share: float = 0.99) -> float:
    """The fit that this share of white-noise filters of `size` pixels stays below: chance."""
    noise = np.random.default_rng(0).normal(size=(NOISE, 1, size, size))
    return float(np.quantile(gabor_fit(noise), share))


@cache
def _gabors(size: int) -> np.ndarray:
    """Orthonormal cosine and sine part of each Gabor of zero mean: (pixel, 2 x Gabors)."""
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2)[..., None]
    places = np.linspace(-size / 6, size / 6, PLACES)
    grid = np.meshgrid(
        np.arange(ANGLES) * np.pi / ANGLES,
        np.geomspace(2.5, 2 * size, WAVELENGTHS),
        np.linspace(size / 8, size / 2, WIDTHS),
        places,
        places,
    )
    angle, wavelength, width, x0, y0 = (values.ravel() for values in grid)
    x, y = x - x0, y - y0
    envelope = np.exp(-(x**2 + y**2) / (2 * width**2))
    wave = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength
    pairs = np.stack([envelope * np.cos(wave), envelope * np.sin(wave)], -1)
    pairs = pairs.reshape(size * size, -1, 2)
    pairs = (pairs - pairs.mean(0)).transpose(1, 0, 2)
    return np.linalg.qr(pairs).Q.transpose(1, 0, 2).reshape(size * size, -1)
