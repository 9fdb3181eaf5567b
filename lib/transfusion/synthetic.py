"""Embedded image sets drawn from a seed: retinas, chest films and everyday-image statistics.

A scene is laid out in continuous coordinates (x to the right, y down, both -1..1) and then drawn
on the pixel grid with antialiased edges, so that a seed shows the same scene at every size.
Image i is drawn from (seed, i) alone, and what images of a patient share from (seed, patient).
"""

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import scipy  # which loads `scipy.ndimage` when it is first used

SIZES = (32, 224)  # smallest and largest image, pixels
STREAMS = ("pair", "eye", "signs", "grade", "person", "film", "disease", "findings", "scene")

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

FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion")
PREVALENCE = (0.25, 0.25, 0.20, 0.22, 0.32)
COMMON = np.array((0.4, 0.6, 0.3, 0.7, 0.8))  # share of a trait in each; correlation: the product
READER_NOISE = 0.05  # share of findings labelled wrongly

SHAPES = ("disc", "triangle", "square", "star", "ring")
TEXTURES = ("grating", "checks", "dots", "cloud")
CLASSES = len(SHAPES) * len(TEXTURES)


class Images(NamedTuple):
    """image: uint8 (n, 3, size, size); target: int8 (n,) or (n, findings); patient: int32 (n,)."""

    image: np.ndarray
    target: np.ndarray
    patient: np.ndarray


def fundus(n: int, size: int, seed: int) -> Images:
    """Retina-like photographs, two eyes a patient (left, right); target (n,) is the grade 0-4.

    Eyes, vessels and signs of diabetic retinopathy are invented. Kinds and numbers of signs follow
    the grading scale (`SIGNS`); `GRADER_NOISE` of the labels are one grade off; `CONFOUNDERS`,
    focus, exposure and pigmentation vary in every grade alike.
    """
    return _collect(n, size, seed, _fundus_case, np.arange(n) // 2)


def cxr(n: int, size: int, seed: int) -> Images:
    """Frontal chest films, grey (equal channels), one or two a patient; target (n, 5) is 0 or 1.

    Anatomy and `FINDINGS` are invented. Findings go together (`COMMON`), each with its
    `PREVALENCE` before `READER_NOISE` of the labels are turned round.
    """
    return _collect(n, size, seed, _cxr_case, _film_patient(np.arange(n)))


def objects(n: int, size: int, seed: int) -> Images:
    """Dead leaves behind one object; target (n,) is shape * len(TEXTURES) + texture.

    Nothing real is shown: occlusion and power-law sizes give the edges and the spectrum of natural
    images, and colour says nothing about the class.
    """
    return _collect(n, size, seed, _objects_case, np.arange(n))


def _film_patient(i):
    return i // 3 * 2 + (i % 3 == 2)  # two films of one patient, one of the next, and again


def _collect(n, size, seed, case, patient):
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


def _rng(seed, stream, index):
    return np.random.default_rng([seed, STREAMS.index(stream), index])


# Drawing


@lru_cache
def _grid(size):
    """x (1, size) and y (size, 1) of the pixel centres."""
    centre = (np.arange(size) + 0.5) * 2 / size - 1
    return centre[None], centre[:, None]


def _rgb(*colour):
    return np.array(colour)[:, None, None]


def _side(signed, edge):
    """Soft step: 0 where `signed` is well below 0, 1 where it is well above."""
    return np.clip(signed / edge + 0.5, 0, 1)


def _bump(*terms):
    """Gaussian bell of the distances given, each in units of its width."""
    return np.exp(-sum(term**2 for term in terms))


def _tint(image, cover, factor):
    """Multiplies the colour under `cover`, as blood and pigment do."""
    image *= 1 - cover * (1 - factor)


def _paint(image, cover, colour):
    """Replaces the colour under `cover`, as what lies on top does."""
    image += (colour - image) * cover


def _stamp(size, x, y, radius, strength=1.0, soft=0.0, line=False):
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
def _spread(cells, size):
    """Weights (size, cells) that spread a coarse row of values smoothly over the pixels."""
    offset = (_grid(size)[1] + 1) / 2 * (cells - 1) - np.arange(cells)
    weight = np.exp(-1.5 * offset**2)
    return weight / weight.sum(1, keepdims=True)


def _cloud(rng, size, octaves=(4, 8, 16, 32)):
    """Smooth noise (size, size) of about unit variance whose amplitude falls as 1/frequency."""
    coarse = [rng.normal(size=(cells, cells)) * octaves[0] / cells for cells in octaves]
    return 1.5 * sum(_spread(len(c), size) @ c @ _spread(len(c), size).T for c in coarse)


def _grow(rng, x, y, heading, curl, length, wander, steps):
    """Paths x, y, direction (k, steps) from x, y (k,), turning by `curl`, straying by `wander`."""
    stray = np.cumsum(rng.normal(size=(len(heading), steps)), 1) * wander / np.sqrt(steps)
    direction = heading[:, None] + curl[:, None] * np.linspace(0, 1, steps) ** 0.7 + stray
    step = length[:, None] / steps * np.exp(1j * direction)
    path = (x + 1j * y)[:, None] + np.cumsum(step, 1)
    return path.real, path.imag, direction


# Fundus


def _fundus_case(size, seed, i):
    rng = _rng(seed, "grade", i)
    severity = 0.8**0.5 * _rng(seed, "pair", i // 2).normal() + 0.2**0.5 * rng.normal()
    grade = int(np.searchsorted(np.cumsum(GRADE_SHARE)[:-1], NormalDist().cdf(severity)))
    label = grade
    if rng.random() < GRADER_NOISE:
        label = {0: 1, 4: 3}.get(grade, grade + rng.choice([-1, 1]))
    return _fundus_image(size, seed, i, grade), label


def _fundus_image(size, seed, i, grade):
    """A right eye, float (3, size, size), mirrored where i is even; `grade` sets signs alone."""
    pair, rng, signs = _rng(seed, "pair", i // 2), _rng(seed, "eye", i), _rng(seed, "signs", i)
    number = {kind: signs.integers(*span[grade], endpoint=True) for kind, span in SIGNS.items()}
    pair.normal()  # the severity, drawn first
    disc = np.array([0.52, 0.0]) + 0.04 * pair.normal(size=2)
    fovea = disc - [0.56, -0.05] + 0.02 * rng.normal(size=2)
    light = _light(size, pair, rng)
    image = light * (1 + 0.05 * _cloud(rng, size))
    x, y = _grid(size)
    from_fovea = np.hypot(x - fovea[0], y - fovea[1])
    _tint(image, _bump(from_fovea / 0.17), _rgb(0.7, 0.6, 0.6))
    _optic_disc(image, light, disc, pair, rng)
    _vessels(image, disc, fovea, rng, number["beading"])
    _confounders(image, light, rng)
    _signs(image, light, disc, number, signs)
    _camera(image, pair, rng)
    return image[:, :, ::-1] if i % 2 == 0 else image


def _light(size, pair, rng):
    """Light off a lightly or darkly pigmented fundus (3, size, size), falling towards the rim."""
    dark = pair.random()
    colour = (1 - dark) * _rgb(0.88, 0.47, 0.24) + dark * _rgb(0.60, 0.27, 0.12)
    colour = colour * np.exp(_rgb(0.06, 0.10, 0.18) * _rgb(*pair.normal(size=3)))
    (x, y), (x0, y0) = _grid(size), 0.25 * rng.normal(size=2)
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
        cover = _stamp(image.shape[1], *disc, radius * wide, share, soft)
        _paint(image, cover, _rgb(*colour) * bright)


def _vessels(image, disc, fovea, rng, beading):
    """Arteries and veins in three generations: arcades from the disc, branches, twigs."""
    tree = [_arcades(rng, disc)]
    for share, steps in ((6, 64), (3, 32)):
        tree.append(_branches(rng, *tree[-1], share, steps))
    cover, skip = 0, max(1, 128 // image.shape[1])  # beads lie no closer than they need to
    for vessels in tree:
        x, y, _, radius, vein = (a[:, ::skip] for a in vessels)
        wave = np.sin(70 * np.hypot(x - disc[0], y - disc[1]))
        away = 1 - _bump(np.hypot(x - fovea[0], y - fovea[1]) / 0.14)  # none at the fovea
        radius, strength = radius * (1 + 0.3 * beading * vein * wave), (0.65 + 0.35 * vein) * away
        cover = np.maximum(cover, _stamp(image.shape[1], x, y, radius, strength, line=True))
    _tint(image, cover, _rgb(0.74, 0.46, 0.48))


def _arcades(rng, disc):
    """x, y, direction, radius, vein (8, steps) of the vessels that leave the disc."""
    down, temporal = np.repeat([-1, 1, -1, 1], 2), np.repeat([True, False], 4)
    vein = np.tile([0.0, 1.0], 4)
    heading = down * np.where(temporal, 1.9, 0.8) + 0.3 * (vein - 0.5) + 0.12 * rng.normal(size=8)
    curl = down * np.where(temporal, 1.5, 0.3) + 0.2 * rng.normal(size=8)
    length = np.where(temporal, 1.6, 0.8) * rng.uniform(0.9, 1.1, 8)
    start = disc[:, None] + 0.02 * rng.normal(size=(2, 8))
    path = _grow(rng, *start, heading, curl, length, 0.4, 96)
    vein = np.repeat(vein[:, None], 96, 1)
    return *path, (0.010 + 0.005 * vein) * np.linspace(1, 0.55, 96), vein


def _branches(rng, x, y, direction, radius, vein, share, steps):
    """As `_arcades`: `share` children of each vessel, thinner and turned aside."""
    k, parent = share * len(x), np.repeat(np.arange(len(x)), share)
    at = parent, rng.integers(x.shape[1] // 6, x.shape[1] - 4, k)
    turn = rng.choice([-1, 1], k) * rng.uniform(0.4, 0.9, k)
    length = steps * rng.uniform(0.0045, 0.010, k)
    path = _grow(rng, x[at], y[at], direction[at] + turn, -0.7 * turn, length, 0.6, steps)
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
        cover = _stamp(image.shape[1], x, y, radius, strength, soft)
        _paint(image, cover, _rgb(*colour) * light.max(0) * 1.2)


def _signs(image, light, disc, number, rng):
    """Signs of retinopathy, as many as `number` says of each kind."""
    blood, bright = _rgb(0.50, 0.22, 0.28), light.max(0) * 1.25

    def cover(kind, lumps, width, radius, strength, soft):
        k = number[kind]
        x, y = np.repeat(_places(rng, k, disc), lumps, 1) + width * rng.normal(size=(2, lumps * k))
        strength = np.repeat(rng.uniform(*strength, k), lumps)
        return _stamp(image.shape[1], x, y, rng.uniform(*radius, lumps * k), strength, soft)

    _tint(image, cover("microaneurysm", 1, 0, (0.010, 0.018), (0.8, 1.0), 0), blood)
    _tint(image, cover("haemorrhage", 4, 0.015, (0.009, 0.033), (0.3, 0.8), 0.015), blood)
    yellow, white = _rgb(1.0, 0.90, 0.50) * bright, _rgb(0.98, 0.88, 0.74) * bright
    _paint(image, cover("exudate", 10, 0.06, (0.006, 0.018), (0.6, 0.8), 0), yellow)
    _paint(image, cover("cotton wool", 4, 0.03, (0.020, 0.045), (0.5, 0.7), 0.05), white)
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
    x, y, _ = _grow(rng, *start, heading, curl, length, 3.0, 48)
    _tint(image, _stamp(image.shape[1], x, y, 0.006, 0.8, line=True), _rgb(0.62, 0.25, 0.28))


def _preretinal(image, rng):
    """Boat-shaped bleeding: blood before the retina that has settled below a level line."""
    (x, y), edge = _grid(image.shape[1]), 0.02 + 2 / image.shape[1]
    x0, y0, radius = rng.uniform((-0.5, -0.5, 0.12), (0.5, 0.5, 0.24))
    boat = _side(radius - np.hypot((x - x0) / 1.3, y - y0), edge) * _side(y - y0, edge)
    _tint(image, 0.95 * boat, _rgb(0.45, 0.15, 0.2))


def _camera(image, pair, rng):
    """Focus, the round field on black, exposure and grain, in place."""
    size, (x, y) = image.shape[1], _grid(image.shape[1])
    blur = rng.uniform(0.002, 0.018) * size / 2
    if blur > 0.25:
        image[:] = scipy.ndimage.gaussian_filter(image, (0, blur, blur), truncate=2.5)
    wide, high = pair.uniform((0.90, 0.75), (0.99, 1.25))  # some cameras cut top and bottom
    inside = np.minimum(wide - np.hypot(x, y), high - abs(y))
    image *= np.exp(0.1 * rng.normal()) * _side(inside, 0.01 + 2 / size)
    image += 0.01 + 0.015 * rng.normal(size=image.shape)


# Chest films


def _cxr_case(size, seed, i):
    person, rng = _rng(seed, "person", int(_film_patient(i))), _rng(seed, "findings", i)
    trait = 0.6**0.5 * person.normal(size=6) + 0.4**0.5 * rng.normal(size=6)
    trait = COMMON * trait[5] + np.sqrt(1 - COMMON**2) * trait[:5]
    present = trait > [NormalDist().inv_cdf(1 - p) for p in PREVALENCE]
    severity = present * rng.uniform(0.2, 1.0, 5)
    return _cxr_image(size, seed, i, severity), present ^ (rng.random(5) < READER_NOISE)


def _cxr_image(size, seed, i, severity):
    """A film, float (3, size, size), with each of FINDINGS as severe (0-1) as given."""
    person, film = _rng(seed, "person", int(_film_patient(i))), _rng(seed, "film", i)
    disease, edge = _rng(seed, "disease", i), 0.02 + 2 / size
    person.normal(size=6)  # the traits behind the findings, drawn first
    turn = person.uniform(0.9, 1.15) * np.exp(0.05j * film.normal())
    shift = 0.08 * film.normal() + 0.08j * film.normal()

    def strokes(x, y, *args, **kwargs):
        place = (x + 1j * y) * turn + shift
        return _stamp(size, place.real, place.imag, *args, **kwargs, line=True)

    x, y = _grid(size)
    body = (x + 1j * y - shift) / turn
    x, y = body.real, body.imag
    atelectasis, cardiomegaly, _, edema, _ = severity
    side = disease.choice([-1, 1])  # the lung that has lost volume
    lungs, wall, floor = _lungs(x, y, 0.16 * atelectasis * (x * side > 0), person, film, edge)
    drawn = x - 0.06 * side * atelectasis  # the heart, drawn over by it
    air = lungs * (1 - 0.85 * _heart(drawn, y, cardiomegaly, person, edge))
    air *= (0.92 + 0.06 * _cloud(film, size)) * _aerated(x, y, floor, severity, disease)
    added = 0.14 * (film.uniform(0.7, 1.4) + 0.6 * edema) * _lung_vessels(strokes, film)
    added += 0.25 * atelectasis * _plates(strokes, side, disease)
    image = _torso(x, y, person, edge) * (0.62 - 0.40 * air + _ribs(x, y, wall, person, edge))
    image += air * added + 0.13 * _clavicles(strokes, person) + 0.2 * _leads(size, film)
    return _develop(image, film)


def _lungs(x, y, raised, person, film, edge):
    """Cover of the lungs (size, size), half-width of the chest and height of the diaphragm."""
    wide, tall = person.uniform((0.66, 1.05), (0.76, 1.2))
    wall = wide * np.sqrt(1 - np.clip((0.35 - y) / tall, 0, 1) ** 2)
    floor = 0.50 + 0.07 * film.normal() + 0.05 * (x > 0) - raised + 0.9 * (abs(x) - 0.34) ** 2
    hilum = 0.11 + 0.05 * _bump((y - 0.02) / 0.2)
    inside = np.minimum(np.minimum(wall - abs(x), floor - y), abs(x) - hilum)
    return _side(inside, edge), wall, floor


def _heart(x, y, cardiomegaly, person, edge):
    wide = person.uniform(0.26, 0.36) * (1 + 0.32 * cardiomegaly)
    tilt = np.exp(-1j * person.uniform(0.3, 0.6))
    axis = (x - 0.09 - 0.05 * cardiomegaly + 1j * (y - 0.27)) * tilt
    ventricles = 1 - np.hypot(axis.real / wide, axis.imag / 0.27)
    vessels = 1 - np.hypot((x - 0.05) / 0.16, (y + 0.02) / 0.36)
    arch = 1 - np.hypot((x - 0.10) / 0.09, (y + 0.30) / 0.11)
    return _side(np.logaddexp.reduce([12 * ventricles, 12 * vessels, 12 * arch]) / 12, 4 * edge)


def _aerated(x, y, floor, severity, disease):
    """Share of air (size, size) that effusion, edema and consolidation leave in the lungs."""
    _, _, consolidation, edema, effusion = severity
    mottled = 1 + 0.3 * _cloud(disease, len(y), (8, 16, 32))
    level = floor + 0.02 - effusion * (0.10 + 1.1 * np.clip(abs(x) - 0.25, 0, 1) ** 2)
    side = disease.choice([-1, 0, 1], p=[0.35, 0.3, 0.35])  # 0: both
    fluid = 0.85 * (effusion > 0) * _side(y - level, 0.06) * (x * side >= 0)
    haze = 0.5 * edema * mottled * _bump((abs(x) - 0.25) / 0.24, (y - 0.02) / 0.36)
    x0, y0, wide, high = disease.uniform((0.28, -0.4, 0.13, 0.13), (0.52, 0.3, 0.24, 0.24))
    patch = _bump(np.hypot((x - disease.choice([-1, 1]) * x0) / wide, (y - y0) / high) ** 2)
    patch *= (consolidation > 0) * (0.15 + 0.45 * consolidation) * mottled
    return (1 - fluid) * (1 - np.clip(haze, 0, 0.9)) * (1 - np.clip(patch, 0, 0.9))


def _plates(strokes, side, disease):
    """Flat strips of collapsed lung above the raised diaphragm."""
    k, along = (disease.integers(1, 4), 1), np.linspace(0, 1, 40)
    x = disease.uniform(0.2, 0.4, k) * along
    y = disease.uniform(-0.05, 0.3, k) + disease.uniform(-0.25, 0.25, k) * x
    radius = disease.uniform(0.012, 0.03, k) * (1 - 0.5 * along)
    return strokes(side * (x + disease.uniform(0.18, 0.36, k)), y, radius, soft=0.02)


def _lung_vessels(strokes, film):
    """Vessels that fan out and fade from both hila."""
    side, fan = np.repeat([-1, 1], 14), np.tile(np.linspace(-1.3, 1.4, 14), 2)
    heading = np.pi / 2 - side * (np.pi / 2 - fan - 0.15 * film.normal(size=28))
    y, curl, length = film.normal((0.02, 0, 0.38), (0.08, 0.7, 0.08), (28, 3)).T
    x, y, _ = _grow(film, 0.14 * side, y, heading, curl, length, 0.9, 64)
    fade = np.linspace(1, 0.15, 64)
    return strokes(x, y, 0.016 * fade**0.5, fade)


def _clavicles(strokes, person):
    along = np.linspace(0, 1, 64)
    x, y = 0.1 + 0.65 * along, person.uniform(-0.62, -0.54) - 0.16 * along
    y = y + 0.04 * np.sin(2 * np.pi * along)
    return strokes(np.append(x, -x), np.append(y, y), 0.028, soft=0.02)


def _torso(x, y, person, edge):
    """Brightness of soft tissue: shoulders, neck, breasts, a denser abdomen and midline."""
    shoulder = -1.3 + 0.9 * np.sqrt(np.clip(abs(x) - 0.15, 0, 1))
    breast, skin = person.uniform((0, 0.9), (0.1, 1.2))
    breast = breast * _side(0.26 - np.hypot(abs(x) - 0.42, (y - 0.2) / 1.2), 0.1)
    trachea = 0.12 * _side(0.035 - abs(x), 0.03) * _side(-0.12 - y, 0.2)
    tissue = 1 + 0.16 * _bump(x / 0.13) + 0.14 * _side(y - 0.5, 0.8) + breast - trachea
    return _side(y - shoulder, 0.06) * _side(skin - abs(x), edge) * tissue


def _ribs(x, y, wall, person, edge):
    """Added brightness of the ribs, behind and in front, and of the spine."""
    u, (gap, dense) = abs(x), person.uniform((0.125, 0.7), (0.155, 1.2))
    behind = np.cos(2 * np.pi * (y - 0.15 * u - 0.5 * u**3) / gap)
    front = np.cos(2 * np.pi * (y + 0.55 * u) / (1.2 * gap))
    cage = _side(wall + 0.03 - u, edge) * _side(u - 0.06, 0.05) * _side(0.5 - y, 0.4)
    ribs = 0.07 * _side(behind - 0.1, 0.9) + 0.03 * _side(front - 0.3, 0.7) * _side(u - 0.3, 0.2)
    spine = 0.04 * _side(0.09 - u, 0.04) * (1 + 0.4 * np.cos(2 * np.pi * y / 0.17))
    return dense * (cage * ribs + spine)


def _leads(size, film):
    """Wires with an electrode, as often with findings as without."""
    k = film.integers(3)
    x0, y0, heading = film.uniform((-0.6, -0.6, -np.pi), (0.6, 0.6, np.pi), (k, 3)).T
    curl, length = 3 * film.normal(size=k), film.uniform(0.6, 1.2, k)
    x, y, _ = _grow(film, x0, y0, heading, curl, length, 1.0, 128)
    return np.maximum(_stamp(size, x, y, 0.008, line=True), _stamp(size, x0, y0, 0.03))


def _develop(image, film):
    """Exposure, contrast and grain; three equal channels."""
    gain, gamma = film.uniform((0.95, 0.8), (1.3, 1.3))
    image = np.clip(gain * image + 0.04 * film.normal(), 0, 1.2) ** gamma
    return np.broadcast_to(image + 0.015 * film.normal(size=image.shape), (3, *image.shape))


# Objects


def _objects_case(size, seed, i):
    rng = _rng(seed, "scene", i)
    label = rng.integers(CLASSES)
    image = _tones(rng)[0] + 0.1 * _cloud(rng, size)
    # Areas follow a power law, as many leaves at each scale as in natural images.
    for radius in 0.1 / np.sqrt(1 - 0.98 * rng.random(20)):
        _leaf(image, rng, rng.uniform(-1, 1, 2), radius, rng.integers(CLASSES))
    _leaf(image, rng, rng.uniform(-0.15, 0.15, 2), rng.uniform(0.65, 0.85), label)
    (x, y), (right, down) = _grid(size), 0.2 * rng.normal(size=2)
    return image * (1 + right * x + down * y) + 0.015 * rng.normal(size=image.shape), label


def _leaf(image, rng, centre, radius, kind):
    """Paints one textured shape, in its own window of the image."""
    shape, texture = SHAPES[kind // len(TEXTURES)], TEXTURES[kind % len(TEXTURES)]
    size, (x, y) = image.shape[1], _grid(image.shape[1])
    turn, tones = radius * np.exp(2j * np.pi * rng.random()), _tones(rng)
    first = np.clip((centre - radius + 1) / 2 * size - 1, 0, size).astype(int)
    last = np.clip((centre + radius + 1) / 2 * size + 2, 0, size).astype(int)
    columns, rows = (slice(*span) for span in zip(first, last, strict=True))
    local = (x[:, columns] - centre[0] + 1j * (y[rows] - centre[1])) / turn
    if texture == "cloud":
        mix = np.clip(0.5 + 0.4 * _cloud(rng, size, (8, 16, 32))[rows, columns], 0, 1)
    else:
        mix = _pattern(rng.uniform(3, 4) * local, texture)
    cover = _side(_within(local, shape), 2 / size / radius)
    _paint(image[:, rows, columns], cover, tones[0] + (tones[1] - tones[0]) * mix)


def _tones(rng):
    """Two colours (2, 3, 1, 1), one darker than the other."""
    colour = _rgb(*(rng.uniform(0.2, 0.8) + 0.12 * rng.normal(size=3)))
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
