"""Scenes to pixels: anti-aliased sprites on a shaded, cluttered, noisy ground."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .world import RADIUS, Scene, SceneObject

#: RGB of the colour words.
PALETTE = {
    "red": (214, 39, 40),
    "orange": (250, 140, 20),
    "yellow": (248, 220, 40),
    "green": (45, 160, 65),
    "cyan": (60, 205, 225),
    "blue": (40, 90, 225),
    "purple": (165, 70, 205),
    "black": (30, 30, 34),
}
_FINE = 8  # sprites are drawn this many times larger and reduced
_STRIPES = 16  # stripe periods over the side of a picture


def _outline(shape: str, r: float) -> list[tuple[float, float]]:
    """Corners of a shape around the origin, inside a circle of radius r."""
    if shape == "circle":
        turns = np.linspace(0, 2 * math.pi, 72, endpoint=False)
        return [(0.87 * r * math.cos(t), 0.87 * r * math.sin(t)) for t in turns]
    if shape == "square":
        a = 0.71 * r
        return [(-a, -a), (a, -a), (a, a), (-a, a)]
    if shape == "triangle":
        return [(0, -r), (0.87 * r, 0.5 * r), (-0.87 * r, 0.5 * r)]
    a, b = 0.3 * r, 0.95 * r  # cross: two bars
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


@cache
def sprite(size: str, texture: str, colour: str, shape: str, side: int) -> tuple[Image.Image, Image.Image]:
    """Colours (RGB) and coverage (L) of an object in a picture of ``side`` pixels; the object is in the middle."""
    r = RADIUS[size] * side
    width = 2 * math.ceil(r) + 1
    corners = [((x + width / 2) * _FINE, (y + width / 2) * _FINE) for x, y in _outline(shape, r)]
    cover = Image.new("L", (width * _FINE, width * _FINE))
    ImageDraw.Draw(cover).polygon(corners, fill=255)
    rgb = np.array(PALETTE[colour], dtype=float)
    paint = np.broadcast_to(rgb, (width * _FINE, width * _FINE, 3)).copy()
    if texture == "striped":
        other = rgb + 0.45 * (255 - rgb) if colour == "black" else 0.35 * rgb
        rows = (np.arange(width * _FINE) + 0.5) / _FINE - width / 2
        paint[(rows * _STRIPES / side + 0.25) % 1 >= 0.5] = other
    fine = Image.fromarray(paint.astype(np.uint8))
    return fine.reduce(_FINE), cover.reduce(_FINE)


def _corner(thing: SceneObject, cover: Image.Image, side: int) -> tuple[int, int]:
    half = cover.width // 2
    return math.floor(thing.x * side) - half, math.floor(thing.y * side) - half


def draw(scene: Scene, side: int, noise: float, clutter: float, rng: np.random.Generator) -> np.ndarray:
    """Picture of a scene, uint8 (side, side, 3).

    Parameters
    ----------
    scene
        Its objects are painted in order, so that later ones cover earlier ones.
    side
        Height and width in pixels.
    noise
        Standard deviation of Gaussian noise per pixel and channel, as a share of white (0 to 1).
    clutter
        0 (plain ground) to 1 (forty grey strokes behind the objects).
    rng
        Source of ground, clutter and noise.
    """
    level, tilt_x, tilt_y = rng.random(3) * (30, 24, 24) + (195, -12, -12)
    ramp = np.linspace(-1, 1, side)
    ground = level + tilt_x * ramp + tilt_y * ramp[:, None]  # (side, side)
    picture = Image.fromarray(ground.astype(np.uint8)).convert("RGB")
    strokes = round(40 * clutter)
    if strokes:
        pen = ImageDraw.Draw(picture)
        where = rng.random((strokes, 5)) * (side, side, 2 * math.pi, 0.12 * side, 90) + (0, 0, 0, 0.02 * side, -60)
        for x, y, turn, length, shade in where.tolist():
            grey = int(level + shade)
            end = (x + length * math.cos(turn), y + length * math.sin(turn))
            pen.line([(x, y), end], fill=(grey, grey, grey), width=max(1, side // 64))
    for thing in scene.objects:
        paint, cover = sprite(*thing[:4], side)
        picture.paste(paint, _corner(thing, cover, side), cover)
    pixels = np.asarray(picture)  # (side, side, 3)
    if noise:
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(255 * noise)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return pixels


def visible(scene: Scene, side: int) -> np.ndarray:
    """Which object each pixel shows, int8 (side, side); −1 is the ground.

    An object shows where it covers at least half of the pixel and no later object does.
    """
    shown = np.full((side, side), -1, dtype=np.int8)
    for i, thing in enumerate(scene.objects):
        _, cover = sprite(*thing[:4], side)
        x, y = _corner(thing, cover, side)
        own = np.zeros((side, side), dtype=bool)
        top, left = max(y, 0), max(x, 0)
        part = np.asarray(cover)[top - y : side - y, left - x : side - x] >= 128
        own[top : top + part.shape[0], left : left + part.shape[1]] = part
        shown[own] = i
    return shown
