"""Aerial scenes before and after, with masks of the buildings that came or went, in TAO's segment layout.

A *place* is fixed: fields, roads, trees, buildings. Each of its two pictures is taken in its own *visit*: another
season, another crop, sun elsewhere, trees grown, cars moved, roofs washed or weathered, the camera a pixel off. Only a
building that stands in one picture and not in the other is a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo_data.paint import RGB, Field, Grid, bilinear, blur, save_png, smooth_noise

SPLITS = {"train": 0.6, "val": 0.15, "test": 0.2, "predict": 0.05}  # shares of the scenes
UNCHANGED_SHARE = 0.15  # of the scenes, beside those where chance leaves all buildings

_GRASS: dict[str, RGB] = {
    "spring": (0.36, 0.48, 0.22),
    "summer": (0.30, 0.42, 0.20),
    "autumn": (0.45, 0.42, 0.24),
    "winter": (0.42, 0.40, 0.33),
}
_LEAVES: dict[str, RGB] = {
    "spring": (0.26, 0.42, 0.14),
    "summer": (0.13, 0.28, 0.10),
    "autumn": (0.50, 0.30, 0.10),
    "winter": (0.30, 0.26, 0.22),
}
SEASONS = tuple(_GRASS)
_NEEDLES: RGB = (0.10, 0.22, 0.13)
_CROPS: tuple[RGB, ...] = (
    (0.34, 0.46, 0.18),
    (0.66, 0.57, 0.30),
    (0.44, 0.34, 0.24),
    (0.22, 0.36, 0.16),
    (0.56, 0.50, 0.40),
)
_ROOFS: tuple[RGB, ...] = (
    (0.62, 0.28, 0.20),
    (0.45, 0.22, 0.18),
    (0.40, 0.41, 0.44),
    (0.72, 0.71, 0.68),
    (0.30, 0.30, 0.34),
)
_ASPHALT: RGB = (0.38, 0.38, 0.39)


@dataclass(frozen=True)
class Building:
    x: float
    y: float
    half: tuple[float, float]
    angle: float
    height: float
    roof: RGB
    gabled: bool

    def outline(self, ground: Grid) -> Field:
        return ground.moved(self.x, self.y, self.angle).box(0, 0, *self.half)


@dataclass(frozen=True)
class Tree:
    x: float
    y: float
    radius: float
    evergreen: bool


@dataclass(frozen=True)
class Road:
    """A straight road right through the picture."""

    x: float
    y: float
    angle: float
    half_width: float


@dataclass(frozen=True)
class Place:
    fields: tuple[tuple[float, float, bool, float], ...]  # centre, whether it is a crop, direction of its rows
    roads: tuple[Road, ...]
    buildings: tuple[Building, ...]
    trees: tuple[Tree, ...]
    texture: Field


@dataclass(frozen=True)
class Visit:
    season: str
    crops: tuple[RGB, ...]  # one per field
    sun: tuple[float, float]  # towards where, and how far for a unit of height, shadows fall
    growth: float
    shift: tuple[float, float]  # misregistration, pixels
    gain: RGB
    haze: float
    focus: float
    noise: float


def draw_place(rng: np.random.Generator, size: int) -> Place:
    angle = float(rng.uniform(0, 90))
    roads = [Road(*rng.uniform(-0.5, 0.5, 2).tolist(), angle, float(rng.uniform(0.05, 0.08)))]
    if rng.random() < 0.6:
        roads.append(Road(*rng.uniform(-0.6, 0.6, 2).tolist(), angle + 90, float(rng.uniform(0.04, 0.06))))
    taken: list[tuple[float, float, float]] = []

    def free_spot(radius: float) -> tuple[float, float] | None:
        for _ in range(20):
            x, y = rng.uniform(-0.95, 0.95, 2).tolist()
            clear_of_roads = all(abs(_across(road, x, y)) > road.half_width + radius for road in roads)
            if clear_of_roads and all(np.hypot(x - u, y - v) > radius + r for u, v, r in taken):
                taken.append((x, y, radius))
                return x, y
        return None

    buildings, trees = [], []
    for _ in range(int(rng.integers(5, 10))):
        half = (float(rng.uniform(0.13, 0.25)), float(rng.uniform(0.1, 0.16)))
        if spot := free_spot(float(np.hypot(*half))):
            roof = _vary(rng, _ROOFS[int(rng.integers(len(_ROOFS)))], 0.12)
            turned = angle + 90 * int(rng.integers(2)) + float(rng.normal(0, 4))
            buildings.append(
                Building(*spot, half, turned, float(rng.uniform(0.08, 0.18)), roof, bool(rng.random() < 0.7))
            )
    for _ in range(int(rng.integers(10, 30))):
        radius = float(rng.uniform(0.035, 0.09))
        if spot := free_spot(1.25 * radius):
            trees.append(Tree(*spot, radius, bool(rng.random() < 0.3)))
    fields = tuple(
        (*rng.uniform(-1.2, 1.2, 2).tolist(), bool(rng.random() < 0.6), float(rng.uniform(0, 180))) for _ in range(6)
    )
    texture = 0.6 * smooth_noise(rng, size, 12) + 0.4 * smooth_noise(rng, size, size // 3)
    return Place(fields, tuple(roads), tuple(buildings), tuple(trees), texture)


def draw_visit(rng: np.random.Generator, num_fields: int) -> Visit:
    direction, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.4)
    return Visit(
        season=str(rng.choice(SEASONS)),
        crops=tuple(_vary(rng, _CROPS[int(rng.integers(len(_CROPS)))], 0.1) for _ in range(num_fields)),
        sun=(float(length * np.cos(direction)), float(length * np.sin(direction))),
        growth=float(rng.uniform(0.75, 1.2)),
        shift=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
        gain=_vary(rng, (1.0, 1.0, 1.0), 0.2),
        haze=float(rng.uniform(0, 0.15)),
        focus=float(rng.uniform(0.3, 0.7)),
        noise=float(rng.uniform(0.008, 0.025)),
    )


def _vary(rng: np.random.Generator, colour: RGB, by: float) -> RGB:
    red, green, blue = (
        np.array(colour) * rng.uniform(1 - by, 1 + by) * rng.uniform(1 - by / 3, 1 + by / 3, 3)
    ).tolist()
    return red, green, blue


def _across(road: Road, x: float, y: float) -> float:
    """Distance from a road's middle line, signed."""
    angle = np.radians(road.angle)
    return float(np.cos(angle) * (y - road.y) - np.sin(angle) * (x - road.x))


def paint_scene(place: Place, standing: Sequence[Building], visit: Visit, rng: np.random.Generator) -> Field:
    """The picture ``(H, W, 3)`` in 0..1 of a place on one visit."""
    size = len(place.texture)
    ground = Grid.of_size(size).moved(visit.shift[0] * 2 / size, visit.shift[1] * 2 / size)
    texture = bilinear(place.texture, (ground.x + 1) * size / 2 - 0.5, (ground.y + 1) * size / 2 - 0.5)

    image = _paint_fields(place, visit, ground, texture)
    for road in place.roads:
        _paint_road(image, road, ground, texture, rng)
    trees = [(tree, ground.disc(tree.x, tree.y, tree.radius * visit.growth)) for tree in place.trees]
    shadow = np.zeros_like(texture)
    for building in standing:
        shadow = np.maximum(shadow, _shadow(ground, building, visit.sun))
    for tree, _ in trees:
        moved = ground.moved(*(0.08 * s for s in visit.sun))
        shadow = np.maximum(shadow, 0.8 * moved.cover(moved.disc(tree.x, tree.y, tree.radius * visit.growth)))
    image *= (1 - 0.55 * shadow)[..., None]
    for building in standing:
        _paint_roof(image, building, ground, visit, texture, rng)
    for tree, crown in trees:
        leaves = _vary(rng, _NEEDLES if tree.evergreen else _LEAVES[visit.season], 0.12)
        sunlit = 1 - 4 * ((ground.x - tree.x) * visit.sun[0] + (ground.y - tree.y) * visit.sun[1])
        bare = 0.6 if visit.season == "winter" and not tree.evergreen else 1.0
        _coat(image, bare * ground.cover(crown), leaves, np.clip(sunlit, 0.6, 1.5) * (1 + 0.25 * texture))

    image = (image * np.array(visit.gain, np.float32)) * (1 - visit.haze) + visit.haze * np.array(
        [0.75, 0.79, 0.84], np.float32
    )
    image = blur(image, visit.focus)
    return image + visit.noise * rng.standard_normal(image.shape, dtype=np.float32)


def _coat(image: Field, cover: Field, colour: RGB, level: Field | float = 1.0) -> None:
    paint = np.array(colour, np.float32) * np.broadcast_to(np.float32(level), cover.shape)[..., None]
    image += cover[..., None] * (paint - image)


def _paint_fields(place: Place, visit: Visit, ground: Grid, texture: Field) -> Field:
    """Every point belongs to the field whose centre is nearest; crops stand in rows."""
    distances = [np.hypot(ground.x - x, ground.y - y) for x, y, _, _ in place.fields]
    nearest = np.argmin(distances, axis=0)
    image = np.empty((*texture.shape, 3), np.float32)
    for i, (x, y, is_crop, direction) in enumerate(place.fields):
        rows = np.sin(ground.moved(x, y, direction).y * 60) if is_crop else 0.0
        colour = np.array(visit.crops[i] if is_crop else _GRASS[visit.season], np.float32)
        level = 1 + 0.1 * texture + 0.07 * rows
        image[nearest == i] = (colour * level[..., None])[nearest == i]
    return image


def _paint_road(image: Field, road: Road, ground: Grid, texture: Field, rng: np.random.Generator) -> None:
    lane = ground.moved(road.x, road.y, road.angle)
    _coat(image, lane.cover(lane.box(0, 0, 4, road.half_width)), _ASPHALT, 1 + 0.06 * texture)
    dashes = lane.cover(lane.box(0, 0, 4, 0.006)) * (np.sin(lane.x * 30) > 0)
    _coat(image, 0.7 * dashes, (0.8, 0.8, 0.78))
    for _ in range(int(rng.integers(0, 5))):  # cars come and go
        side = float(rng.choice((-0.5, 0.5))) * road.half_width
        car = lane.box(float(rng.uniform(-1.2, 1.2)), side, 0.04, 0.019, 0.008)
        _coat(
            image, lane.cover(car), _vary(rng, ((0.85,) * 3, (0.15,) * 3, (0.6, 0.1, 0.1))[int(rng.integers(3))], 0.1)
        )


def _shadow(ground: Grid, building: Building, sun: tuple[float, float]) -> Field:
    """Cover of the ground that a block of the building's height keeps from the sun."""
    reach = building.height * np.hypot(*sun)
    steps = max(2, int(np.ceil(reach / ground.pixel)) + 1)
    swept = np.full_like(ground.x, np.inf)
    for part in np.linspace(0, building.height, steps):
        swept = np.minimum(swept, building.outline(ground.moved(sun[0] * part, sun[1] * part)))
    return ground.cover(swept)


def _paint_roof(
    image: Field, building: Building, ground: Grid, visit: Visit, texture: Field, rng: np.random.Generator
) -> None:
    """A gable with a sunny and a shaded side, or a flat roof with its rim and plant; washed or weathered since."""
    frame = ground.moved(building.x, building.y, building.angle)
    cover = frame.cover(building.outline(ground))
    roof = _vary(rng, building.roof, 0.12)
    length, width = building.half
    if building.gabled:
        angle = np.radians(building.angle)
        towards_sun = float(np.sin(angle) * visit.sun[0] - np.cos(angle) * visit.sun[1])  # of the side y > 0
        tiles = 0.05 * np.sin(frame.x * 90)
        _coat(image, cover, roof, 1 + np.sign(frame.y) * 0.3 * np.clip(towards_sun, -1, 1) + tiles + 0.04 * texture)
        _coat(image, 0.6 * cover * frame.cover(frame.box(0, 0, length, 0.008)), roof, 1.35)
    else:
        _coat(image, cover, roof, 1.15)
        _coat(image, frame.cover(frame.box(0, 0, length - 0.018, width - 0.018)), roof, 0.92 + 0.04 * texture)
        _coat(image, frame.cover(frame.box(0.3 * length, 0.2 * width, 0.03, 0.025)), (0.75, 0.76, 0.78))


def choose_changes(rng: np.random.Generator, place: Place) -> tuple[list[Building], list[Building]]:
    """Which buildings stand before and after: most in both, some in one only, in some scenes none of these."""
    fate = rng.choice(("both", "new", "gone"), len(place.buildings), p=(0.62, 0.24, 0.14))
    if rng.random() < UNCHANGED_SHARE:
        fate[:] = "both"
    before = [b for b, f in zip(place.buildings, fate, strict=True) if f != "new"]
    after = [b for b, f in zip(place.buildings, fate, strict=True) if f != "gone"]
    return before, after


def change_mask(place: Place, before: Sequence[Building], after: Sequence[Building]) -> Field:
    """1 where a building stands in one of the two only, else 0; ``(H, W)``, as if the camera had not been off."""
    ground = Grid.of_size(len(place.texture))
    mask = np.zeros_like(place.texture)
    for building in place.buildings:
        if (building in before) != (building in after):
            mask[building.outline(ground) < 0] = 1
    return mask


_README = """\
Aerial scenes, drawn by scripts/make_demo_data.py (seed {seed}); nothing in here was photographed.

A/<name> was taken before, B/<name> after, {size} x {size} pixels; label/<name> is 255 where a building stands in one of
the two pictures only, else 0. list/train.txt, val.txt, test.txt and predict.txt name the scenes of each split.

What also differs, and is no change: season, crops, height and direction of the sun and so all shadows, growth of the
trees, cars, weathering of roofs, light, haze, focus and noise, and up to a pixel of camera position in each picture.
Some scenes have no change.
"""


def make_scenes(out: Path, *, num_scenes: int = 160, size: int = 128, seed: int = 0) -> dict[str, list[float]]:
    """Write ``out/{A,B,label,list}`` and ``out/README.txt``; the same arguments give the same bytes.

    Returns: per split, the share of changed pixels of each scene.
    Raises: ValueError for fewer scenes than splits or a size below 32.
    """
    if num_scenes < len(SPLITS) or size < 32:
        raise ValueError(f"give --scenes {len(SPLITS)} or more (one per split) and --size 32 or more")
    counts = {split: max(1, round(share * num_scenes)) for split, share in SPLITS.items()}
    counts["train"] = num_scenes - sum(counts.values()) + counts["train"]
    splits = [split for split, count in counts.items() for _ in range(count)]

    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    shares: dict[str, list[float]] = {split: [] for split in SPLITS}
    for i, split in enumerate(splits):
        rng = np.random.default_rng((seed, i))
        place = draw_place(rng, size)
        before, after = choose_changes(rng, place)
        name = f"scene_{i:03d}.png"
        for folder, standing in (("A", before), ("B", after)):
            save_png(out / folder / name, paint_scene(place, standing, draw_visit(rng, len(place.fields)), rng))
        mask = change_mask(place, before, after)
        save_png(out / "label" / name, mask)
        names[split].append(name)
        shares[split].append(float(mask.mean()))
    (out / "list").mkdir(exist_ok=True)
    for split, of_split in names.items():
        (out / "list" / f"{split}.txt").write_text("".join(f"{name}\n" for name in of_split), encoding="utf-8")
    (out / "README.txt").write_text(_README.format(size=size, seed=seed), encoding="utf-8")
    return shares
