"""What all drawn sets are made with: random streams, antialiased shapes, light and paint.

A scene is laid out in continuous coordinates (x to the right, y down, both -1..1) and then drawn
on the pixel grid with antialiased edges, so that a seed shows the same scene at every size.
Image i is drawn from (seed, i) alone, and what images of a patient share from (seed, patient).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIZES = (32, 224)  # smallest and largest image, pixels
STREAMS = ("pair", "eye", "signs", "grade", "person", "film", "disease", "findings", "scene")


class Images(NamedTuple):
    """image: uint8 (n, 3, size, size); target: int8 (n,) or (n, findings); patient: int32 (n,)."""

    image: np.ndarray
    target: np.ndarray
    patient: np.ndarray


def draw_all(n, size, seed, case, patient):
    if n < 1:
        raise ValueError(f"n: expected at least 1 image, got {n}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size: expected {SIZES[0]} to {SIZES[1]} pixels, got {size}")
    image, target = np.empty((n, 3, size, size), np.uint8), []
    for i in range(n):
        scene, label = case(size, seed, i)
        image[i] = np.clip(scene * 255 + 0.5, 0, 255)
        target.append(label)
    return Images(image, np.array(target, np.int8), patient.astype(np.int32))


def rng(seed, stream, index):
    return np.random.default_rng([seed, STREAMS.index(stream), index])


# Drawing


@lru_cache
def grid(size):
    """x (1, size) and y (size, 1) of the pixel centres."""
    centre = (np.arange(size) + 0.5) * 2 / size - 1
    return centre[None], centre[:, None]


def rgb(*colour):
    return np.array(colour)[:, None, None]


def side(signed, edge):
    """Soft step: 0 where `signed` is well below 0, 1 where it is well above."""
    return np.clip(signed / edge + 0.5, 0, 1)


def bump(*terms):
    """Gaussian bell of the distances given, each in units of its width."""
    return np.exp(-sum(term**2 for term in terms))


def tint(image, cover, factor):
    """Multiplies the colour under `cover`, as blood and pigment do."""
    image *= 1 - cover * (1 - factor)


def paint(image, cover, colour):
    """Replaces the colour under `cover`, as what lies on top does."""
    image += (colour - image) * cover


def stamp(size, x, y, radius, strength=1.0, soft=0.0, line=False):
    """Largest cover (size, size) by discs at x, y (k,); with `line` they are beads of strokes.

    Cover is the share of a pixel that lies within: less than a pixel's width of a stroke, and of
    a disc in both directions, which keeps small signs as visible as a camera would.
    """
    canvas = np.zeros((size + 2, size + 2))  # what falls outside lands on the border
    if np.size(x):
        pixel = 2 / size
        x, y, radius, strength = np.broadcast_arrays(x, y, radius, strength)
        x, y, radius, strength = (a.reshape(-1, 1, 1) for a in (x, y, radius, strength))
        edge = np.hypot(pixel, soft)
        reach = int(np.ceil((radius.max() + edge / 2) / pixel))
        near = np.arange(-reach, reach + 1)
        column = np.floor((x + 1) / pixel).astype(int) + near
        row = np.floor((y + 1) / pixel).astype(int) + near[:, None]
        off = np.hypot((column + 0.5) * pixel - 1 - x, (row + 0.5) * pixel - 1 - y)
        within = np.minimum(radius, off + edge / 2) - np.maximum(-radius, off - edge / 2)
        cover = np.clip(within / edge, 0, 1) * strength
        if not line:
            cover *= np.minimum(1, np.pi / 2 * radius / edge)
        place = np.clip(row + 1, 0, size + 1) * (size + 2) + np.clip(column + 1, 0, size + 1)
        np.maximum.at(canvas.reshape(-1), place.ravel(), cover.ravel())
    return canvas[1:-1, 1:-1]


@lru_cache
def enlarge(cells, size):
    """Weights (size, cells) that spread a coarse row of values smoothly over the pixels."""
    offset = (grid(size)[1] + 1) / 2 * (cells - 1) - np.arange(cells)
    weight = np.exp(-1.5 * offset**2)
    return weight / weight.sum(1, keepdims=True)


def cloud(rng, size, octaves=(4, 8, 16, 32)):
    """Smooth noise (size, size) of about unit variance whose amplitude falls as 1/frequency."""
    coarse = [rng.normal(size=(cells, cells)) * octaves[0] / cells for cells in octaves]
    return 1.5 * sum(enlarge(len(c), size) @ c @ enlarge(len(c), size).T for c in coarse)


def grow(rng, x, y, heading, curl, length, wander, steps):
    """Paths x, y, direction (k, steps) from x, y (k,), turning by `curl`, straying by `wander`."""
    stray = np.cumsum(rng.normal(size=(len(heading), steps)), 1) * wander / np.sqrt(steps)
    direction = heading[:, None] + curl[:, None] * np.linspace(0, 1, steps) ** 0.7 + stray
    step = length[:, None] / steps * np.exp(1j * direction)
    path = (x + 1j * y)[:, None] + np.cumsum(step, 1)
    return path.real, path.imag, direction
