"""Drawn shapes and textures, in place of ImageNet's photographs: 20 classes."""

import numpy as np

from transfusion.images.drawn import canvas

SHAPES = ("disc", "triangle", "square", "star", "ring")
TEXTURES = ("grating", "checks", "dots", "cloud")
CLASSES = len(SHAPES) * len(TEXTURES)


def objects(n: int, size: int, seed: int) -> canvas.Images:
    """Dead leaves behind one object; target (n,) is shape * len(TEXTURES) + texture.

    Nothing real is shown: occlusion and power-law sizes give the edges and the spectrum of natural
    images, and colour says nothing about the class.
    """
    return canvas.draw_all(n, size, seed, _objects_case, np.arange(n))


# Objects


def _objects_case(size, seed, i):
    rng = canvas.rng(seed, "scene", i)
    label = rng.integers(CLASSES)
    image = _tones(rng)[0] + 0.1 * canvas.cloud(rng, size)
    # Areas follow a power law, as many leaves at each scale as in natural images.
    for radius in 0.1 / np.sqrt(1 - 0.98 * rng.random(20)):
        _leaf(image, rng, rng.uniform(-1, 1, 2), radius, rng.integers(CLASSES))
    _leaf(image, rng, rng.uniform(-0.15, 0.15, 2), rng.uniform(0.65, 0.85), label)
    (x, y), (right, down) = canvas.grid(size), 0.2 * rng.normal(size=2)
    return image * (1 + right * x + down * y) + 0.015 * rng.normal(size=image.shape), label


def _leaf(image, rng, centre, radius, kind):
    """Paints one textured shape, in its own window of the image."""
    shape, texture = SHAPES[kind // len(TEXTURES)], TEXTURES[kind % len(TEXTURES)]
    size, (x, y) = image.shape[1], canvas.grid(image.shape[1])
    turn, tones = radius * np.exp(2j * np.pi * rng.random()), _tones(rng)
    first = np.clip((centre - radius + 1) / 2 * size - 1, 0, size).astype(int)
    last = np.clip((centre + radius + 1) / 2 * size + 2, 0, size).astype(int)
    columns, rows = (slice(*span) for span in zip(first, last, strict=True))
    local = (x[:, columns] - centre[0] + 1j * (y[rows] - centre[1])) / turn
    if texture == "cloud":
        mix = np.clip(0.5 + 0.4 * canvas.cloud(rng, size, (8, 16, 32))[rows, columns], 0, 1)
    else:
        mix = _pattern(rng.uniform(3, 4) * local, texture)
    cover = canvas.side(_within(local, shape), 2 / size / radius)
    canvas.paint(image[:, rows, columns], cover, tones[0] + (tones[1] - tones[0]) * mix)


def _tones(rng):
    """Two colours (2, 3, 1, 1), one darker than the other."""
    colour = canvas.rgb(*(rng.uniform(0.2, 0.8) + 0.12 * rng.normal(size=3)))
    step = rng.uniform(0.35, 0.65) * rng.choice([-1, 1])
    return np.stack([colour, np.clip(colour + step, 0, 1)])


def _within(local, shape):
    """Signed distance inside a shape of radius 1, about right near its edge."""
    distance = abs(local)
    if shape == "disc":
        return 0.9 - distance
    if shape == "ring":
        return 0.22 - abs(distance - 0.75)
    corners = {"triangle": 3, "square": 4, "star": 5}[shape]
    sector = 2 * np.pi / corners
    angle = np.angle(local) % sector - sector / 2
    if shape == "star":
        return 0.65 + 0.3 * np.cos(corners * angle) - distance
    return np.cos(sector / 2) - distance * np.cos(angle)


def _pattern(local, texture):
    """Share 0-1 of the second tone, periodic in `local`."""
    across, down = np.sin(np.pi * local.real), np.sin(np.pi * local.imag)
    wave = {"grating": across, "checks": 1.4 * across * down, "dots": across + down - 0.6}[texture]
    return np.clip(0.5 + 1.2 * wave, 0, 1)
