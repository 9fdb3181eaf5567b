"""Drawn retinas with the signs of diabetic retinopathy, in five grades."""

from statistics import NormalDist

import numpy as np
import scipy  # which loads `scipy.ndimage` when it is first used

from transfusion.images.drawn import canvas

GRADE_SHARE = (0.45, 0.15, 0.20, 0.10, 0.10)  # of eyes in grades 0-4
GRADER_NOISE = 0.15  # share of eyes labelled one grade off
# Fewest and most signs of each kind in grades 0-4, after the international clinical scale.
SIGNS = {
    "microaneurysm": ((0, 0), (1, 5), (3, 9), (8, 18), (6, 16)),
    "haemorrhage": ((0, 0), (0, 0), (0, 4), (10, 20), (6, 16)),
    "exudate": ((0, 0), (0, 0), (0, 2), (0, 3), (0, 3)),
    "cotton wool": ((0, 0), (0, 0), (0, 1), (2, 5), (1, 4)),
    "new vessel": ((0, 0), (0, 0), (0, 0), (0, 0), (1, 3)),
    "preretinal": ((0, 0), (0, 0), (0, 0), (0, 0), (0, 1)),
    "beading": ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)),
}
# What occurs in every grade: most of them, radius, softness, colour.
CONFOUNDERS = {
    "drusen": (16, (0.008, 0.020), 0.02, (0.95, 0.75, 0.38)),
    "pigment": (10, (0.010, 0.035), 0.02, (0.42, 0.18, 0.11)),
    "dust": (4, (0.015, 0.050), 0.05, (0.40, 0.30, 0.22)),
    "reflection": (3, (0.030, 0.080), 0.10, (0.95, 0.80, 0.65)),
}


def fundus(n: int, size: int, seed: int) -> canvas.Images:
    """Retina-like photographs, two eyes a patient (left, right); target (n,) is the grade 0-4.

    Eyes, vessels and signs of diabetic retinopathy are invented. Kinds and numbers of signs follow
    the grading scale (`SIGNS`); `GRADER_NOISE` of the labels are one grade off; `CONFOUNDERS`,
    focus, exposure and pigmentation vary in every grade alike.
    """
    return canvas.draw_all(n, size, seed, _fundus_case, np.arange(n) // 2)


# Fundus


def _fundus_case(size, seed, i):
    rng = canvas.rng(seed, "grade", i)
    severity = 0.8**0.5 * canvas.rng(seed, "pair", i // 2).normal() + 0.2**0.5 * rng.normal()
    grade = int(np.searchsorted(np.cumsum(GRADE_SHARE)[:-1], NormalDist().cdf(severity)))
    label = grade
    if rng.random() < GRADER_NOISE:
        label = {0: 1, 4: 3}.get(grade, grade + rng.choice([-1, 1]))
    return _fundus_image(size, seed, i, grade), label


def _fundus_image(size, seed, i, grade):
    """A right eye, float (3, size, size), mirrored where i is even; `grade` sets signs alone."""
    pair, rng, signs = (
        canvas.rng(seed, "pair", i // 2),
        canvas.rng(seed, "eye", i),
        canvas.rng(seed, "signs", i),
    )
    number = {kind: signs.integers(*span[grade], endpoint=True) for kind, span in SIGNS.items()}
    pair.normal()  # the severity, drawn first
    disc = np.array([0.52, 0.0]) + 0.04 * pair.normal(size=2)
    fovea = disc - [0.56, -0.05] + 0.02 * rng.normal(size=2)
    light = _light(size, pair, rng)
    image = light * (1 + 0.05 * canvas.cloud(rng, size))
    x, y = canvas.grid(size)
    from_fovea = np.hypot(x - fovea[0], y - fovea[1])
    canvas.tint(image, canvas.bump(from_fovea / 0.17), canvas.rgb(0.7, 0.6, 0.6))
    _optic_disc(image, light, disc, pair, rng)
    _vessels(image, disc, fovea, rng, number["beading"])
    _confounders(image, light, rng)
    _signs(image, light, disc, number, signs)
    _camera(image, pair, rng)
    return image[:, :, ::-1] if i % 2 == 0 else image


def _light(size, pair, rng):
    """Light off a lightly or darkly pigmented fundus (3, size, size), falling towards the rim."""
    dark = pair.random()
    colour = (1 - dark) * canvas.rgb(0.88, 0.47, 0.24) + dark * canvas.rgb(0.60, 0.27, 0.12)
    colour = colour * np.exp(canvas.rgb(0.06, 0.10, 0.18) * canvas.rgb(*pair.normal(size=3)))
    (x, y), (x0, y0) = canvas.grid(size), 0.25 * rng.normal(size=2)
    fall = pair.uniform(0.15, 0.45) * ((x - x0) ** 2 + (y - y0) ** 2)
    return np.exp(0.12 * rng.normal()) * (1.1 - fall) * colour


def _optic_disc(image, light, disc, pair, rng):
    radius, cup, pale = pair.uniform((0.115, 0.3, 0.85), (0.15, 0.6, 1.0))
    bright = pale * light.max(0) * 1.3
    for share, wide, soft, colour in (
        (0.3, 1.3, 0.15, (0.95, 0.60, 0.33)),
        (0.8, 1.0, 0.05, (1.0, 0.72, 0.42)),
        (0.7, cup, 0.05, (1.0, 0.90, 0.68)),
    ):
        cover = canvas.stamp(image.shape[1], *disc, radius * wide, share, soft)
        canvas.paint(image, cover, canvas.rgb(*colour) * bright)


def _vessels(image, disc, fovea, rng, beading):
    """Arteries and veins in three generations: arcades from the disc, branches, twigs."""
    tree = [_arcades(rng, disc)]
    for share, steps in ((6, 64), (3, 32)):
        tree.append(_branches(rng, *tree[-1], share, steps))
    cover, skip = 0, max(1, 128 // image.shape[1])  # beads lie no closer than they need to
    for vessels in tree:
        x, y, _, radius, vein = (a[:, ::skip] for a in vessels)
        wave = np.sin(70 * np.hypot(x - disc[0], y - disc[1]))
        away = 1 - canvas.bump(np.hypot(x - fovea[0], y - fovea[1]) / 0.14)  # none at the fovea
        radius, strength = radius * (1 + 0.3 * beading * vein * wave), (0.65 + 0.35 * vein) * away
        cover = np.maximum(cover, canvas.stamp(image.shape[1], x, y, radius, strength, line=True))
    canvas.tint(image, cover, canvas.rgb(0.74, 0.46, 0.48))


def _arcades(rng, disc):
    """x, y, direction, radius, vein (8, steps) of the vessels that leave the disc."""
    down, temporal = np.repeat([-1, 1, -1, 1], 2), np.repeat([True, False], 4)
    vein = np.tile([0.0, 1.0], 4)
    heading = down * np.where(temporal, 1.9, 0.8) + 0.3 * (vein - 0.5) + 0.12 * rng.normal(size=8)
    curl = down * np.where(temporal, 1.5, 0.3) + 0.2 * rng.normal(size=8)
    length = np.where(temporal, 1.6, 0.8) * rng.uniform(0.9, 1.1, 8)
    start = disc[:, None] + 0.02 * rng.normal(size=(2, 8))
    path = canvas.grow(rng, *start, heading, curl, length, 0.4, 96)
    vein = np.repeat(vein[:, None], 96, 1)
    return *path, (0.010 + 0.005 * vein) * np.linspace(1, 0.55, 96), vein


def _branches(rng, x, y, direction, radius, vein, share, steps):
    """As `_arcades`: `share` children of each vessel, thinner and turned aside."""
    k, parent = share * len(x), np.repeat(np.arange(len(x)), share)
    at = parent, rng.integers(x.shape[1] // 6, x.shape[1] - 4, k)
    turn = rng.choice([-1, 1], k) * rng.uniform(0.4, 0.9, k)
    length = steps * rng.uniform(0.0045, 0.010, k)
    path = canvas.grow(rng, x[at], y[at], direction[at] + turn, -0.7 * turn, length, 0.6, steps)
    return *path, radius[at][:, None] * np.linspace(0.65, 0.35, steps), vein[parent, :steps]


def _places(rng, k, disc=None):
    """k points x, y spread over the field, off the disc where one is given."""
    radius, angle = 0.86 * np.sqrt(rng.random(k)), 2 * np.pi * rng.random(k)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    if disc is not None:
        x = np.where(np.hypot(x - disc[0], y - disc[1]) < 0.2, -x, x)
    return x, y


def _confounders(image, light, rng):
    for most, radius, soft, colour in CONFOUNDERS.values():
        x, y = _places(rng, rng.integers(most, endpoint=True))
        radius, strength = rng.uniform(*radius, len(x)), rng.uniform(0.2, 0.7, len(x))
        cover = canvas.stamp(image.shape[1], x, y, radius, strength, soft)
        canvas.paint(image, cover, canvas.rgb(*colour) * light.max(0) * 1.2)


def _signs(image, light, disc, number, rng):
    """Signs of retinopathy, as many as `number` says of each kind."""
    blood, bright = canvas.rgb(0.50, 0.22, 0.28), light.max(0) * 1.25

    def cover(kind, lumps, width, radius, strength, soft):
        k = number[kind]
        x, y = np.repeat(_places(rng, k, disc), lumps, 1) + width * rng.normal(size=(2, lumps * k))
        strength = np.repeat(rng.uniform(*strength, k), lumps)
        return canvas.stamp(image.shape[1], x, y, rng.uniform(*radius, lumps * k), strength, soft)

    canvas.tint(image, cover("microaneurysm", 1, 0, (0.010, 0.018), (0.8, 1.0), 0), blood)
    canvas.tint(image, cover("haemorrhage", 4, 0.015, (0.009, 0.033), (0.3, 0.8), 0.015), blood)
    yellow, white = canvas.rgb(1.0, 0.90, 0.50) * bright, canvas.rgb(0.98, 0.88, 0.74) * bright
    canvas.paint(image, cover("exudate", 10, 0.06, (0.006, 0.018), (0.6, 0.8), 0), yellow)
    canvas.paint(image, cover("cotton wool", 4, 0.03, (0.020, 0.045), (0.5, 0.7), 0.05), white)
    _new_vessels(image, disc, number["new vessel"], rng)
    if number["preretinal"]:
        _preretinal(image, rng)


def _new_vessels(image, disc, tufts, rng):
    """Tufts of fine tortuous vessels, the first at the disc as often as elsewhere."""
    places = np.stack(_places(rng, tufts, disc))
    if tufts and rng.random() < 0.5:
        places[:, 0] = disc + 0.08 * rng.normal(size=2)
    k = 16 * tufts
    start = np.repeat(places, 16, 1) + 0.02 * rng.normal(size=(2, k))
    heading, curl, length = rng.uniform((-np.pi, -6, 0.15), (np.pi, 6, 0.4), (k, 3)).T
    x, y, _ = canvas.grow(rng, *start, heading, curl, length, 3.0, 48)
    canvas.tint(
        image,
        canvas.stamp(image.shape[1], x, y, 0.006, 0.8, line=True),
        canvas.rgb(0.62, 0.25, 0.28),
    )


def _preretinal(image, rng):
    """Boat-shaped bleeding: blood before the retina that has settled below a level line."""
    (x, y), edge = canvas.grid(image.shape[1]), 0.02 + 2 / image.shape[1]
    x0, y0, radius = rng.uniform((-0.5, -0.5, 0.12), (0.5, 0.5, 0.24))
    boat = canvas.side(radius - np.hypot((x - x0) / 1.3, y - y0), edge) * canvas.side(y - y0, edge)
    canvas.tint(image, 0.95 * boat, canvas.rgb(0.45, 0.15, 0.2))


def _camera(image, pair, rng):
    """Focus, the round field on black, exposure and grain, in place."""
    size, (x, y) = image.shape[1], canvas.grid(image.shape[1])
    blur = rng.uniform(0.002, 0.018) * size / 2
    if blur > 0.25:
        image[:] = scipy.ndimage.gaussian_filter(image, (0, blur, blur), truncate=2.5)
    wide, high = pair.uniform((0.90, 0.75), (0.99, 1.25))  # some cameras cut top and bottom
    inside = np.minimum(wide - np.hypot(x, y), high - abs(y))
    image *= np.exp(0.1 * rng.normal()) * canvas.side(inside, 0.01 + 2 / size)
    image += 0.01 + 0.015 * rng.normal(size=image.shape)
