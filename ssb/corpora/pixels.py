"""The pixels of the corpora `shapes` and `events`: how a scene is rendered, and the frozen encoders of the pixels."""

from dataclasses import dataclass

import numpy as np

VERSION = 1  # raise it whenever a pixel or a feature changes: cached streams of another version are not read
FRAMES, SIDE, STEPS = 16, 48, 8  # frames of a clip, pixels of a side, steps of a stream (two frames each)
RGB = {
    "red": (0xD7, 0x1E, 0x23),
    "orange": (0xFA, 0x82, 0x14),
    "yellow": (0xF0, 0xD7, 0x1E),
    "green": (0x28, 0xAA, 0x3C),
    "cyan": (0x28, 0xCD, 0xD2),
    "blue": (0x23, 0x46, 0xDC),
    "purple": (0x82, 0x32, 0xBE),
    "pink": (0xFA, 0x7D, 0xBE),
}


@dataclass(frozen=True)
class Scene:
    """What a clip shows: one value of WORDS for each attribute (`speed` is "none" where nothing moves)."""

    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    background: str


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a scene, (16 frames, 48, 48, 3) uint8. `rng` draws what no caption mentions: position, phase,
    tilt, exact hue, greys and pattern of the background, pixel noise."""
    x, y, radius, angle = _path(scene, rng)
    colour = np.array(RGB[scene.colour]) + rng.integers(-14, 15, 3)
    cover = _cover(scene.shape, x, y, radius, angle)[
        ..., None
    ]  # (T, H, W, 1), share of each pixel that the shape covers
    ground = _ground(scene.background, rng)[..., None]
    noise = rng.integers(-5, 6, (FRAMES, SIDE, SIDE, 3), np.int8)
    film = ground + cover * (colour.astype(np.float32) - ground) + noise
    return np.clip(film, 0, 255, out=film).astype(np.uint8)


def _path(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Centre x, y (pixels, y down), radius (pixels) and angle (radians) of the shape in each frame, (T,) each."""
    time, fast, pace = np.linspace(0, 1, FRAMES), scene.speed == "fast", rng.uniform(0.9, 1.1)
    start, phase, tilt = rng.random(2), 2 * np.pi * rng.random(), rng.uniform(-0.15, 0.15)
    clock = pace * time * (-1 if scene.motion in ("left", "up", "anticlockwise", "shrink") else 1)
    x, y, angle = np.zeros(FRAMES), np.zeros(FRAMES), np.full(FRAMES, tilt)
    radius = np.full(FRAMES, {"small": 5.5, "large": 10.0}[scene.size])
    if scene.motion in ("left", "right"):
        x = clock * (22 if fast else 9)
    elif scene.motion in ("up", "down"):
        y = clock * (22 if fast else 9)
    elif scene.motion in ("clockwise", "anticlockwise"):  # y points down, so a growing angle turns clockwise
        turn = phase + clock * (9.5 if fast else 4.0)
        x, y = 10 * np.cos(turn), 10 * np.sin(turn)
    elif scene.motion == "bounce":
        y = -13 * np.abs(np.sin(phase + np.pi * clock * (2.5 if fast else 1.0)))
    elif scene.motion == "shake":
        x = 4 * np.sin(phase + 2 * np.pi * clock * (3.5 if fast else 1.5))
    elif scene.motion in ("grow", "shrink"):
        radius = radius * (1 + (1.0 if fast else 0.5) * (clock - clock.mean()))
    elif scene.motion == "spin":
        angle = tilt + clock * (6.0 if fast else 2.5) * (1 if phase < np.pi else -1)
    x, y = (_inside(path, radius.max(), fraction) for path, fraction in zip((x, y), start))
    return x, y, radius, angle


def _inside(path: np.ndarray, margin: float, fraction: float) -> np.ndarray:
    """Shift a path so that it stays `margin` from the border if it can, at this fraction, 0…1, of the free space."""
    low, high = margin - path.min(), SIDE - margin - path.max()
    return path + (low + fraction * (high - low) if high > low else (low + high) / 2)


def _cover(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(T, H, W) float32 in 0…1: how much of each pixel the shape covers, from its signed distance to the outline.

    Sines are rounded before they meet a pixel and the rest is exact in IEEE arithmetic: same bits on every machine."""
    x, y, radius, cos, sin = (
        np.round(part, 5).astype(np.float32)[:, None, None] for part in (x, y, radius, np.cos(angle), np.sin(angle))
    )
    grid = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    right, down = (grid[None, None, :] - x) / radius, (grid[None, :, None] - y) / radius
    u, v = cos * right + sin * down, cos * down - sin * right
    return np.clip(np.float32(0.5) - OUTLINES[shape](u, v) * radius, 0, 1)


def _polygon(u: np.ndarray, v: np.ndarray, sides: int, inner: float, star: bool = False) -> np.ndarray:
    """Distance to a regular polygon, a corner up; star: to the star made of its lengthened sides."""
    first = second = np.float32(-9)
    for k in range(sides):
        turn = (-1 if star else 1) * np.pi / 2 + 2 * np.pi * k / sides
        side = u * np.float32(round(np.cos(turn), 5)) + v * np.float32(round(np.sin(turn), 5))
        second = np.maximum(second, np.minimum(first, side))
        first = np.maximum(first, side)
    return (second if star else first) - np.float32(inner)


OUTLINES = {  # signed distance, negative inside, of a shape of radius 1
    "circle": lambda u, v: np.sqrt(u * u + v * v) - np.float32(1),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - np.float32(0.87),
    "triangle": lambda u, v: _polygon(u, v, 3, 0.6),
    "star": lambda u, v: _polygon(u, v, 5, 0.37, star=True),
    "cross": lambda u, v: np.maximum(
        np.maximum(np.abs(u), np.abs(v)) - np.float32(1), np.minimum(np.abs(u), np.abs(v)) - np.float32(0.33)
    ),
    "ring": lambda u, v: np.abs(np.sqrt(u * u + v * v) - np.float32(0.8)) - np.float32(0.22),
}


def _ground(background: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 greys; no grey is near a colour of RGB."""
    dim, gap = rng.integers(70, 90), rng.integers(45, 60)
    cell, (left, top), slope = rng.integers(5, 8), rng.integers(0, 16, 2), rng.choice([-1, 1])
    row, column = np.mgrid[:SIDE, :SIDE] + np.array([top, left])[:, None, None]
    mark = {
        "dark": np.full((SIDE, SIDE), -1),
        "light": np.full((SIDE, SIDE), 3),
        "stripes": (row + slope * column) // cell % 2,
        "checker": (row // cell + column // cell) % 2,
        "dots": (row % (cell + 2) < 3) & (column % (cell + 2) < 3),
    }[background]
    return (dim + gap * mark).clip(20, 235).astype(np.float32)


def appearance(pixels: np.ndarray) -> np.ndarray:
    """(STEPS, 128) of a clip, from the first frame of each step: 64 shares of a coarse RGB palette, the edges facing 16
    directions (brightness; colourfulness, summed and strongest), and 4 × 4 cells telling where colour is."""
    red, green, blue = np.ascontiguousarray(pixels[::2].transpose(3, 0, 1, 2))  # (T, H, W) each
    bright = np.maximum(np.maximum(red, green), blue)
    vivid = np.maximum(bright - np.minimum(np.minimum(red, green), blue), 24) - np.float32(24)  # greys: 0
    bins = (red >> 6) * 16 + (green >> 6) * 4 + (blue >> 6) + 64 * np.arange(STEPS)[:, None, None]
    palette = np.bincount(bins.ravel(), minlength=64 * STEPS).reshape(STEPS, 64) / SIDE**2
    turn = np.arange(16) * np.pi / 8
    filters = np.round(7 * np.stack([np.cos(turn), np.sin(turn)], axis=1)).astype(np.float32)  # whole: sums are exact
    edges, outline = (
        np.maximum(filters @ _slopes(image.astype(np.float32)).reshape(2, -1), 0).reshape(16, STEPS, -1)
        for image in (bright, vivid)
    )
    parts = np.sqrt(palette), edges.sum(-1).T / 2**18, outline.sum(-1).T / 2**18, outline.max(-1).T / 2**11
    return np.concatenate([*parts, _cells(vivid) / 2**14], axis=1)


def motion(pixels: np.ndarray) -> np.ndarray:
    """(STEPS, 64) of a clip, from the differences of frames at quarter resolution: how fast edges move right, left,
    down and up in each of 4 × 4 cells."""
    image = pixels.transpose(3, 0, 1, 2).astype(np.float32)
    image = image.reshape(3, FRAMES, SIDE // 4, 4, SIDE // 4, 4).sum((3, 5)) / 16  # (3, T, h, w)
    change = np.diff(image, axis=1)
    border = ((0, 0), (0, 0), (1, 1), (1, 1))
    right, down = _slopes(np.pad(image[:, 1:] + image[:, :-1], border, "edge")) / 4
    contrast = _cells((right**2 + down**2).sum(0)) + 1000
    flow_x, flow_y = -(change * right).sum(0), -(change * down).sum(0)
    directions = [np.sqrt(_cells(np.maximum(flow, 0)) / contrast) for flow in (flow_x, -flow_x, flow_y, -flow_y)]
    moves = 4 * np.concatenate(directions, axis=1)  # (T − 1, 64)
    return np.concatenate([moves, moves[-1:]]).reshape(STEPS, 2, -1).mean(1)


def _slopes(image: np.ndarray) -> np.ndarray:
    """Differences rightward and downward, border left out: (…, H, W) → (2, …, H − 2, W − 2)."""
    right = image[..., 1:-1, 2:] - image[..., 1:-1, :-2]
    return np.stack([right, image[..., 2:, 1:-1] - image[..., :-2, 1:-1]])


def _cells(image: np.ndarray) -> np.ndarray:
    """Sums over 4 × 4 cells: (T, H, W) → (T, 16)."""
    frames, height, width = image.shape
    return image.reshape(frames, 4, height // 4, 4, width // 4).sum((2, 4)).reshape(frames, 16)
