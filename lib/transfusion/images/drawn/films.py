"""Drawn chest films with five findings."""

from statistics import NormalDist

import numpy as np

from transfusion.images.drawn import canvas

FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion")
PREVALENCE = (0.25, 0.25, 0.20, 0.22, 0.32)
COMMON = np.array((0.4, 0.6, 0.3, 0.7, 0.8))  # share of a trait in each; correlation: the product
READER_NOISE = 0.05  # share of findings labelled wrongly


def cxr(n: int, size: int, seed: int) -> canvas.Images:
    """Frontal chest films, grey (equal channels), one or two a patient; target (n, 5) is 0 or 1.

    Anatomy and `FINDINGS` are invented. Findings go together (`COMMON`), each with its
    `PREVALENCE` before `READER_NOISE` of the labels are turned round.
    """
    return canvas.draw_all(n, size, seed, _cxr_case, _film_patient(np.arange(n)))


def _film_patient(i):
    return i // 3 * 2 + (i % 3 == 2)  # two films of one patient, one of the next, and again


# Chest films


def _cxr_case(size, seed, i):
    person, rng = canvas.rng(seed, "person", int(_film_patient(i))), canvas.rng(seed, "findings", i)
    trait = 0.6**0.5 * person.normal(size=6) + 0.4**0.5 * rng.normal(size=6)
    trait = COMMON * trait[5] + np.sqrt(1 - COMMON**2) * trait[:5]
    present = trait > [NormalDist().inv_cdf(1 - p) for p in PREVALENCE]
    severity = present * rng.uniform(0.2, 1.0, 5)
    return _cxr_image(size, seed, i, severity), present ^ (rng.random(5) < READER_NOISE)


def _cxr_image(size, seed, i, severity):
    """A film, float (3, size, size), with each of FINDINGS as severe (0-1) as given."""
    person, film = canvas.rng(seed, "person", int(_film_patient(i))), canvas.rng(seed, "film", i)
    disease, edge = canvas.rng(seed, "disease", i), 0.02 + 2 / size
    person.normal(size=6)  # the traits behind the findings, drawn first
    turn = person.uniform(0.9, 1.15) * np.exp(0.05j * film.normal())
    shift = 0.08 * film.normal() + 0.08j * film.normal()

    def strokes(x, y, *args, **kwargs):
        place = (x + 1j * y) * turn + shift
        return canvas.stamp(size, place.real, place.imag, *args, **kwargs, line=True)

    x, y = canvas.grid(size)
    body = (x + 1j * y - shift) / turn
    x, y = body.real, body.imag
    atelectasis, cardiomegaly, _, edema, _ = severity
    side = disease.choice([-1, 1])  # the lung that has lost volume
    lungs, wall, floor = _lungs(x, y, 0.16 * atelectasis * (x * side > 0), person, film, edge)
    drawn = x - 0.06 * side * atelectasis  # the heart, drawn over by it
    air = lungs * (1 - 0.85 * _heart(drawn, y, cardiomegaly, person, edge))
    air *= (0.92 + 0.06 * canvas.cloud(film, size)) * _aerated(x, y, floor, severity, disease)
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
    hilum = 0.11 + 0.05 * canvas.bump((y - 0.02) / 0.2)
    inside = np.minimum(np.minimum(wall - abs(x), floor - y), abs(x) - hilum)
    return canvas.side(inside, edge), wall, floor


def _heart(x, y, cardiomegaly, person, edge):
    wide = person.uniform(0.26, 0.36) * (1 + 0.32 * cardiomegaly)
    tilt = np.exp(-1j * person.uniform(0.3, 0.6))
    axis = (x - 0.09 - 0.05 * cardiomegaly + 1j * (y - 0.27)) * tilt
    ventricles = 1 - np.hypot(axis.real / wide, axis.imag / 0.27)
    vessels = 1 - np.hypot((x - 0.05) / 0.16, (y + 0.02) / 0.36)
    arch = 1 - np.hypot((x - 0.10) / 0.09, (y + 0.30) / 0.11)
    return canvas.side(
        np.logaddexp.reduce([12 * ventricles, 12 * vessels, 12 * arch]) / 12, 4 * edge
    )


def _aerated(x, y, floor, severity, disease):
    """Share of air (size, size) that effusion, edema and consolidation leave in the lungs."""
    _, _, consolidation, edema, effusion = severity
    mottled = 1 + 0.3 * canvas.cloud(disease, len(y), (8, 16, 32))
    level = floor + 0.02 - effusion * (0.10 + 1.1 * np.clip(abs(x) - 0.25, 0, 1) ** 2)
    side = disease.choice([-1, 0, 1], p=[0.35, 0.3, 0.35])  # 0: both
    fluid = 0.85 * (effusion > 0) * canvas.side(y - level, 0.06) * (x * side >= 0)
    haze = 0.5 * edema * mottled * canvas.bump((abs(x) - 0.25) / 0.24, (y - 0.02) / 0.36)
    x0, y0, wide, high = disease.uniform((0.28, -0.4, 0.13, 0.13), (0.52, 0.3, 0.24, 0.24))
    patch = canvas.bump(np.hypot((x - disease.choice([-1, 1]) * x0) / wide, (y - y0) / high) ** 2)
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
    x, y, _ = canvas.grow(film, 0.14 * side, y, heading, curl, length, 0.9, 64)
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
    breast = breast * canvas.side(0.26 - np.hypot(abs(x) - 0.42, (y - 0.2) / 1.2), 0.1)
    trachea = 0.12 * canvas.side(0.035 - abs(x), 0.03) * canvas.side(-0.12 - y, 0.2)
    tissue = 1 + 0.16 * canvas.bump(x / 0.13) + 0.14 * canvas.side(y - 0.5, 0.8) + breast - trachea
    return canvas.side(y - shoulder, 0.06) * canvas.side(skin - abs(x), edge) * tissue


def _ribs(x, y, wall, person, edge):
    """Added brightness of the ribs, behind and in front, and of the spine."""
    u, (gap, dense) = abs(x), person.uniform((0.125, 0.7), (0.155, 1.2))
    behind = np.cos(2 * np.pi * (y - 0.15 * u - 0.5 * u**3) / gap)
    front = np.cos(2 * np.pi * (y + 0.55 * u) / (1.2 * gap))
    cage = (
        canvas.side(wall + 0.03 - u, edge) * canvas.side(u - 0.06, 0.05) * canvas.side(0.5 - y, 0.4)
    )
    ribs = 0.07 * canvas.side(behind - 0.1, 0.9) + 0.03 * canvas.side(
        front - 0.3, 0.7
    ) * canvas.side(u - 0.3, 0.2)
    spine = 0.04 * canvas.side(0.09 - u, 0.04) * (1 + 0.4 * np.cos(2 * np.pi * y / 0.17))
    return dense * (cage * ribs + spine)


def _leads(size, film):
    """Wires with an electrode, as often with findings as without."""
    k = film.integers(3)
    x0, y0, heading = film.uniform((-0.6, -0.6, -np.pi), (0.6, 0.6, np.pi), (k, 3)).T
    curl, length = 3 * film.normal(size=k), film.uniform(0.6, 1.2, k)
    x, y, _ = canvas.grow(film, x0, y0, heading, curl, length, 1.0, 128)
    return np.maximum(canvas.stamp(size, x, y, 0.008, line=True), canvas.stamp(size, x0, y0, 0.03))


def _develop(image, film):
    """Exposure, contrast and grain; three equal channels."""
    gain, gamma = film.uniform((0.95, 0.8), (1.3, 1.3))
    image = np.clip(gain * image + 0.04 * film.normal(), 0, 1.2) ** gamma
    return np.broadcast_to(image + 0.015 * film.normal(size=image.shape), (3, *image.shape))
