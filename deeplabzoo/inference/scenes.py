"""A drawn photo: something to look at, and to feed to a network, where there is no photo at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from deeplabzoo.errors import DataError

Colour = tuple[int, int, int]
Disc = tuple[float, float, float, float]
"""Centre (x, y) and half axes (across, down) of an ellipse, in units of the picture's height."""

_FINE = 3
"""Everything is drawn this many times larger and scaled down: Pillow draws hard edges."""

_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((74, 140, 214), (206, 230, 246)),
    ((58, 84, 150), (250, 196, 140)),
    ((104, 172, 216), (236, 240, 226)),
)
_PAINTS: tuple[Colour, ...] = ((196, 40, 42), (28, 92, 168), (236, 178, 30), (40, 128, 92), (232, 232, 236))
_CLOTHES: tuple[Colour, ...] = ((214, 72, 60), (64, 96, 176), (240, 200, 72), (110, 70, 140), (56, 140, 120))
_HORIZON = 0.52
_ROAD = (0.74, 0.93)
"""Upper and lower edge, as shares of the height."""


def draw_scene(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draw a landscape with a road, a car, a bus, sheep, people, a tree and an aeroplane.

    The same size and seed give the same picture; the seed chooses the weather, colours and places. Sizes go by the
    height: a wider picture shows more land, not broader things.

    Args:
        height: in pixels, at least 1.
        width: in pixels, at least 1.
        seed: at least 0.

    Returns:
        uint8 array [height, width, 3], RGB.

    Raises:
        DataError: a size or a seed below that.
    """
    if height < 1 or width < 1 or seed < 0:
        raise DataError(
            f"scene of {height} x {width}, seed {seed}: expected sizes of at least 1 and a seed of at least 0"
        )
    random = np.random.default_rng(seed)
    aspect = width / height
    top, bottom = _SKIES[random.integers(len(_SKIES))]
    canvas = _gradient(height * _FINE, width * _FINE, top, bottom, _HORIZON)
    pen = _Pen(canvas)
    _sky(pen, random, aspect)
    _land(pen, random, aspect)
    _tree(pen, aspect * random.uniform(0.05, 0.14), 0.7, random.uniform(0.36, 0.44))
    for place in _spread(random, 3, 0.36 * aspect, 0.96 * aspect):
        _sheep(pen, place, random.uniform(0.64, 0.7), random.uniform(0.085, 0.11), random.random() < 0.5)
    paints = random.permutation(len(_PAINTS))
    # Four places along the road: a vehicle at every other, and people between them.
    places = sorted(_spread(random, 4, 0.04 * aspect, 0.96 * aspect))
    first = int(random.integers(2))
    vehicles, people = places[first::2], places[1 - first :: 2]
    random.shuffle(vehicles)
    _bus(pen, vehicles[0], 0.82, 0.19, _PAINTS[paints[0]])
    _car(pen, vehicles[1], 0.87, 0.11, _PAINTS[paints[1]])
    clothes = random.permutation(len(_CLOTHES))
    for number, place in enumerate(people):
        _person(pen, place, 0.97, random.uniform(0.27, 0.31), _CLOTHES[clothes[number]], _CLOTHES[clothes[number + 2]])
    # Paper-flat areas look like no photo at all; a little grain is what a camera adds.
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BOX)).astype(np.float32)
    return np.clip(small + random.normal(0, 2.5, (height, width, 1)) + 0.5, 0, 255).astype(np.uint8)


class _Pen:
    """Draws on a canvas in units of its height, from the top left."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self.unit = canvas.height
        self.draw = ImageDraw.Draw(canvas)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.draw.polygon([(x * self.unit, y * self.unit) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, round_by: float = 0.0) -> None:
        corners = (left * self.unit, top * self.unit, right * self.unit, bottom * self.unit)
        self.draw.rounded_rectangle(corners, radius=round_by * self.unit, fill=colour)

    def disc(self, x: float, y: float, across: float, down: float, colour: Colour) -> None:
        """An ellipse about (x, y) with these half axes."""
        u = self.unit
        self.draw.ellipse(((x - across) * u, (y - down) * u, (x + across) * u, (y + down) * u), fill=colour)

    def limb(self, points: Sequence[tuple[float, float]], thick: float, colour: Colour) -> None:
        """A line with round ends and joints."""
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(thick * self.unit)), joint="curve")
        for x, y in points:
            self.disc(x, y, thick / 2, thick / 2, colour)

    def soft(self, discs: Sequence[Disc], colour: Colour, strength: int, blur: float) -> None:
        """Blurred ellipses, together of one strength (255 covers)."""
        u, margin = self.unit, 3 * blur
        left = math.floor(min(x - across for x, _, across, _ in discs) * u - margin * u)
        top = math.floor(min(y - down for _, y, _, down in discs) * u - margin * u)
        right = math.ceil(max(x + across for x, _, across, _ in discs) * u + margin * u)
        bottom = math.ceil(max(y + down for _, y, _, down in discs) * u + margin * u)
        mask = Image.new("L", (right - left, bottom - top))
        draw = ImageDraw.Draw(mask)
        for x, y, across, down in discs:
            corners = ((x - across) * u - left, (y - down) * u - top, (x + across) * u - left, (y + down) * u - top)
            draw.ellipse(corners, fill=strength)
        self.canvas.paste(colour, (left, top, right, bottom), mask.filter(ImageFilter.GaussianBlur(blur * u)))

    def shadow(self, x: float, y: float, across: float, down: float) -> None:
        self.soft([(x, y, across, down)], (20, 26, 30), 110, 0.006)


def _spread(random: np.random.Generator, count: int, low: float, high: float) -> list[float]:
    """`count` places from `low` to `high` in random order, apart from each other."""
    step = (high - low) / count
    places = [low + (number + random.uniform(0.25, 0.75)) * step for number in range(count)]
    return [places[number] for number in random.permutation(count)]


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def _gradient(height: int, width: int, top: Colour, bottom: Colour, end: float) -> Image.Image:
    """From `top` to `bottom`, which is reached at the share `end` of the height."""
    share = np.clip(np.arange(height) / (height * end), 0, 1)[:, None]
    column = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.repeat(column[:, None].astype(np.uint8), width, axis=1))


def _sky(pen: _Pen, random: np.random.Generator, aspect: float) -> None:
    sun, high = aspect * random.uniform(0.15, 0.85), random.uniform(0.1, 0.2)
    pen.soft([(sun, high, 0.1, 0.1)], (255, 244, 200), 150, 0.04)
    pen.disc(sun, high, 0.048, 0.048, (255, 240, 184))
    for place in _spread(random, 3, 0, aspect):
        y, size = random.uniform(0.1, 0.3), random.uniform(0.7, 1.2)
        puffs = [(0.03 + 0.022 * math.sin(step * math.pi / 4)) * size for step in range(5)]
        xs = [place + (step - 2) * 0.045 * size for step in range(5)]
        pen.soft(
            [(x, y, puff * 1.3, puff * 0.8) for x, puff in zip(xs, puffs, strict=True)], (255, 255, 255), 215, 0.007
        )
    _aeroplane(pen, aspect * random.uniform(0.25, 0.7), random.uniform(0.1, 0.24), 0.2)


def _land(pen: _Pen, random: np.random.Generator, aspect: float) -> None:
    xs = np.linspace(0, aspect, 200)
    for level, swing, colour in (
        (0.44, 0.05, (126, 152, 166)),
        (0.49, 0.035, (104, 144, 116)),
        (0.56, 0.02, (112, 164, 78)),
    ):
        phase, pace = random.uniform(0, 2 * math.pi), random.uniform(3, 6)
        ys = level + swing * (np.sin(pace * xs + phase) + 0.4 * np.sin(2.7 * pace * xs + 2 * phase))
        ridge = list(zip(xs.tolist(), ys.tolist(), strict=True))
        pen.polygon([(0, 1), *ridge, (aspect, 1)], colour)
    for band in range(12):
        y = 0.62 + band * 0.032
        pen.box(0, y, aspect, 1, _shade((116, 170, 80), 1 - 0.03 * band))
    for _ in range(int(260 * aspect)):
        x, y = random.uniform(0, aspect), random.uniform(0.63, 1)
        pen.limb(
            [(x, y), (x + random.uniform(-0.004, 0.004), y - 0.012)],
            0.002,
            _shade((92, 146, 62), random.uniform(0.8, 1.2)),
        )
    upper, lower = _ROAD
    pen.box(0, upper - 0.008, aspect, lower + 0.01, (196, 188, 170))
    pen.box(0, upper, aspect, lower, (94, 96, 102))
    middle = (upper + lower) / 2
    for dash in range(math.ceil(aspect / 0.16)):
        pen.box(dash * 0.16 + 0.03, middle - 0.004, dash * 0.16 + 0.11, middle + 0.004, (236, 232, 214))


def _aeroplane(pen: _Pen, x: float, y: float, length: float) -> None:
    def at(across: float, down: float) -> tuple[float, float]:
        return x + across * length, y + down * length

    white, grey = (240, 242, 246), (176, 184, 196)
    pen.polygon([at(0.05, 0), at(-0.22, -0.2), at(-0.13, -0.2), at(0.2, 0)], grey)
    pen.polygon([at(-0.42, -0.02), at(-0.52, -0.19), at(-0.43, -0.19), at(-0.28, -0.02)], (196, 52, 56))
    pen.limb([at(-0.42, 0), at(0.42, 0)], 0.1 * length, white)
    pen.polygon([at(-0.46, -0.05), at(-0.55, -0.02), at(-0.42, 0.05)], white)
    pen.polygon([at(0.1, 0.02), at(-0.24, 0.24), at(-0.14, 0.24), at(0.26, 0.02)], grey)
    for window in range(9):
        pen.disc(*at(-0.3 + 0.075 * window, -0.012), 0.011 * length, 0.011 * length, (90, 120, 160))


def _tree(pen: _Pen, x: float, ground: float, height: float) -> None:
    pen.shadow(x, ground, 0.3 * height, 0.035 * height)
    trunk = [(-0.05, 0.0), (-0.03, -0.5), (0.03, -0.5), (0.05, 0.0)]
    pen.polygon([(x + across * height, ground + down * height) for across, down in trunk], (98, 72, 48))
    leaves = (
        (0, -0.6, 0.3, 0.86),
        (-0.16, -0.52, 0.2, 0.9),
        (0.17, -0.55, 0.2, 0.8),
        (-0.05, -0.74, 0.23, 1.08),
        (0.1, -0.7, 0.16, 1.0),
    )
    for across, down, size, light in leaves:
        pen.disc(
            x + across * height,
            ground + down * height,
            size * height,
            size * 0.9 * height,
            _shade((62, 120, 58), light),
        )


def _sheep(pen: _Pen, x: float, ground: float, height: float, faces_left: bool) -> None:
    side = -1 if faces_left else 1
    wool, dark = (240, 236, 224), (52, 46, 44)
    pen.shadow(x, ground, 0.75 * height, 0.1 * height)
    for leg in (-0.4, -0.22, 0.24, 0.42):
        pen.limb([(x + leg * height, ground - 0.45 * height), (x + leg * height, ground)], 0.09 * height, dark)
    for step in range(12):
        angle = step * math.pi / 6
        puff = (x + 0.48 * height * math.cos(angle), ground + (-0.66 + 0.24 * math.sin(angle)) * height)
        pen.disc(*puff, 0.19 * height, 0.17 * height, _shade(wool, 0.86 if math.sin(angle) > 0.3 else 1))
    pen.disc(x, ground - 0.68 * height, 0.52 * height, 0.28 * height, wool)
    head = x + side * 0.72 * height
    pen.disc(head - side * 0.12 * height, ground - 0.98 * height, 0.14 * height, 0.06 * height, dark)
    pen.disc(head, ground - 0.86 * height, 0.15 * height, 0.19 * height, dark)
    pen.disc(head - side * 0.06 * height, ground - 1.03 * height, 0.13 * height, 0.09 * height, wool)
    pen.disc(head + side * 0.05 * height, ground - 0.9 * height, 0.028 * height, 0.028 * height, (250, 250, 250))


def _wheel(pen: _Pen, x: float, y: float, radius: float) -> None:
    for size, colour in ((1, (28, 28, 32)), (0.58, (190, 194, 200)), (0.2, (80, 84, 90))):
        pen.disc(x, y, radius * size, radius * size, colour)


def _car(pen: _Pen, x: float, ground: float, height: float, paint: Colour) -> None:
    def at(across: float, up: float) -> tuple[float, float]:
        return x + across * height, ground - up * height

    pen.shadow(x, ground, 1.5 * height, 0.1 * height)
    pen.polygon([at(-0.95, 0.6), at(-0.6, 1.0), at(0.35, 1.0), at(0.8, 0.6)], _shade(paint, 0.9))
    pen.polygon([at(-0.8, 0.62), at(-0.53, 0.93), at(-0.12, 0.93), at(-0.12, 0.62)], (176, 208, 224))
    pen.polygon([at(-0.04, 0.62), at(-0.04, 0.93), at(0.31, 0.93), at(0.64, 0.62)], (176, 208, 224))
    pen.box(*at(-1.35, 0.64), *at(1.4, 0.2), paint, 0.14 * height)
    pen.box(*at(-1.35, 0.36), *at(1.4, 0.2), _shade(paint, 0.72), 0.07 * height)
    pen.box(*at(-0.02, 0.54), *at(0.12, 0.5), _shade(paint, 0.6))
    pen.disc(*at(1.3, 0.5), 0.07 * height, 0.06 * height, (255, 246, 200))
    pen.disc(*at(-1.29, 0.5), 0.05 * height, 0.06 * height, (150, 20, 20))
    for across in (-0.8, 0.85):
        _wheel(pen, *at(across, 0.22), 0.23 * height)


def _bus(pen: _Pen, x: float, ground: float, height: float, paint: Colour) -> None:
    def at(across: float, up: float) -> tuple[float, float]:
        return x + across * height, ground - up * height

    pen.shadow(x, ground, 1.35 * height, 0.07 * height)
    pen.box(*at(-1.25, 1.0), *at(1.25, 0.14), paint, 0.08 * height)
    pen.box(*at(-1.25, 0.42), *at(1.25, 0.34), _shade(paint, 0.7))
    for window in range(6):
        left = -1.15 + window * 0.36
        pen.box(*at(left, 0.88), *at(left + 0.3, 0.54), (182, 212, 226), 0.03 * height)
    pen.box(*at(1.02, 0.88), *at(1.21, 0.22), (150, 186, 206), 0.03 * height)
    pen.disc(*at(1.2, 0.26), 0.035 * height, 0.035 * height, (255, 246, 200))
    for across in (-0.75, 0.72):
        _wheel(pen, *at(across, 0.14), 0.15 * height)


def _person(pen: _Pen, x: float, ground: float, height: float, shirt: Colour, trousers: Colour) -> None:
    def at(across: float, up: float) -> tuple[float, float]:
        return x + across * height, ground - up * height

    skin = (224, 176, 142)
    pen.shadow(x, ground, 0.2 * height, 0.03 * height)
    pen.limb([at(-0.045, 0.48), at(-0.1, 0.25), at(-0.13, 0.03)], 0.085 * height, _shade(trousers, 0.75))
    pen.limb([at(0.045, 0.48), at(0.08, 0.25), at(0.1, 0.03)], 0.085 * height, _shade(trousers, 0.85))
    pen.limb([at(-0.13, 0.02), at(-0.09, 0.02)], 0.04 * height, (40, 36, 36))
    pen.limb([at(0.1, 0.02), at(0.15, 0.02)], 0.04 * height, (40, 36, 36))
    pen.limb([at(0.09, 0.77), at(0.16, 0.62), at(0.2, 0.48)], 0.06 * height, _shade(shirt, 0.85))
    pen.disc(*at(0.205, 0.46), 0.03 * height, 0.03 * height, skin)
    pen.box(*at(-0.115, 0.82), *at(0.115, 0.46), shirt, 0.05 * height)
    pen.limb([at(-0.09, 0.77), at(-0.17, 0.62), at(-0.15, 0.48)], 0.06 * height, _shade(shirt, 0.8))
    pen.disc(*at(-0.15, 0.46), 0.03 * height, 0.03 * height, skin)
    pen.box(*at(-0.03, 0.86), *at(0.03, 0.8), _shade(skin, 0.9))
    pen.disc(*at(0, 0.92), 0.068 * height, 0.08 * height, skin)
    pen.polygon(
        [at(-0.075, 0.92), at(-0.065, 0.99), at(0, 1.015), at(0.06, 0.985), at(0.07, 0.95), at(0, 0.955)], (70, 48, 34)
    )
