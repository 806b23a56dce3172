"""A small AOI data set: tiles of assembled circuit boards beside their golden tiles, in TAO's classify layout.

A *design* fixes what stands where; its golden tiles were taken once. Boards of a design come in *lots* (resist colour,
print, date code, paste and part suppliers) and each is photographed in its own *capture* (light level and drift, focus,
noise). None of these depends on whether a part is good, so only the part itself tells. A surface is described by its
colour, how metallic it is and how steep, and each light shows these differently.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo_data.paint import RGB, Field, Grid, blur, save_png, smooth_noise

PASS, NO_PASS, GOOD = "PASS", "NO_PASS", "none"
DEFECTS = ("missing", "shifted", "rotated", "tombstoned", "bridged", "wrong_part")
SPLITS = {"train": 0.6, "val": 0.15, "test": 0.2, "infer": 0.05}  # shares of the boards
COLUMNS = ("input_path", "golden_path", "label", "object_name", "component", "board", "defect")
BOARDS_PER_LOT = 3


@dataclass(frozen=True)
class Kind:
    """A kind of component. Lengths are in half tiles, the part lying along x."""

    prefix: str  # of its names on the board
    half: tuple[float, float]  # half length and half width of the body
    pads: tuple[tuple[float, float, float, float], ...]  # x, y, half width, half height
    colour: RGB
    name_at: tuple[float, float] = (0.0, 0.63)  # centre of the printed name
    leaded: bool = False  # metal legs beside the body, instead of metal ends on it
    substitutes: tuple[str, ...] = ()  # kinds that fit its pads: what a wrong reel puts there

    @property
    def defects(self) -> tuple[str, ...]:
        own = ("bridged",) if self.leaded else ("tombstoned",)
        return ("missing", "shifted", "rotated", *own, *(("wrong_part",) if self.substitutes else ()))


_CHIP_PADS = ((-0.52, 0.0, 0.19, 0.27), (0.52, 0.0, 0.19, 0.27))
_LARGE_PADS = ((-0.56, 0.0, 0.18, 0.3), (0.56, 0.0, 0.18, 0.3))
KINDS = {
    "resistor": Kind("R", (0.52, 0.25), _CHIP_PADS, (0.09, 0.09, 0.11), substitutes=("capacitor", "diode")),
    "capacitor": Kind("C", (0.52, 0.25), _CHIP_PADS, (0.62, 0.47, 0.33), substitutes=("resistor", "diode")),
    "diode": Kind("D", (0.50, 0.24), _CHIP_PADS, (0.15, 0.14, 0.15), substitutes=("resistor", "capacitor")),
    "tantalum": Kind(
        "C", (0.56, 0.33), _LARGE_PADS, (0.85, 0.64, 0.18), name_at=(0.0, 0.71), substitutes=("diode", "resistor"),
    ),
    "sot23": Kind(
        "Q", (0.46, 0.23), ((-0.3, 0.42, 0.12, 0.17), (0.3, 0.42, 0.12, 0.17), (0.0, -0.42, 0.12, 0.17)),
        (0.13, 0.13, 0.14), name_at=(-0.72, -0.55), leaded=True,
    ),
    "soic8": Kind(
        "U", (0.64, 0.36), tuple((x, y, 0.09, 0.18) for y in (-0.54, 0.54) for x in (-0.48, -0.16, 0.16, 0.48)),
        (0.16, 0.16, 0.17), name_at=(0.0, 0.87), leaded=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A place on a design: what belongs there and what lies round it."""

    name: str
    kind: str
    code: str
    angle: float
    scale: float
    tracks: tuple[tuple[float, float, float, float], ...]  # boxes of copper under the resist
    vias: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Lot:
    """What varies between deliveries of boards and parts."""

    resist: RGB
    print_level: float
    print_offset: tuple[float, float]
    date_code: str
    paste: float  # how far solder climbs
    tint: dict[str, tuple[float, float, float]]  # factor on a kind's body colour


@dataclass(frozen=True)
class Capture:
    """How the camera saw one board."""

    focus: float  # blur, pixels at a tile of 64
    noise: float
    gain: dict[str, RGB]
    drift: dict[str, tuple[float, float]]  # relative change of light across a half tile, x and y


class Surface:
    """What the camera looks at: colour ``(H, W, 3)``, metal 0..1 and steepness 0 (flat) .. 1, both ``(H, W)``."""

    def __init__(self, size: int, colour: RGB) -> None:
        self.colour = np.empty((size, size, 3), np.float32)
        self.colour[:] = colour
        self.metal = np.zeros((size, size), np.float32)
        self.steep = np.zeros((size, size), np.float32)

    def coat(self, cover: Field, colour: RGB, metal: float = 0.0, steep: Field | float = 0.0) -> None:
        self.colour += cover[..., None] * (np.array(colour, np.float32) - self.colour)
        self.metal += cover * (np.float32(metal) - self.metal)
        self.steep += cover * (np.float32(steep) - self.steep)

    def shade(self, factor: Field) -> None:
        self.colour *= factor[..., None]


# ------------------------------------------------------------------------------------------------ lights


def _solder_light(s: Surface) -> Field:
    """Ring of three colours, as AOI machines have: flat metal mirrors the red, slopes green, steep solder blue."""
    ramp = [np.exp(-(((s.steep - centre) / width) ** 2)) for centre, width in ((0.0, 0.3), (0.45, 0.22), (0.95, 0.38))]
    metal = np.stack(ramp, -1) * np.array([0.95, 0.8, 1.0], np.float32) + 0.06
    return _mix(
        s.colour * np.array([0.42, 0.45, 0.62], np.float32) + np.array([0.01, 0.015, 0.04], np.float32), metal, s.metal
    )


def _white_light(s: Surface) -> Field:
    return _mix(s.colour, (0.86 - 0.62 * s.steep)[..., None] * np.array([0.98, 0.99, 1.0], np.float32), s.metal)


def _uniform_light(s: Surface) -> Field:
    return _mix(0.85 * s.colour + 0.05, (0.8 - 0.25 * s.steep)[..., None] * np.array([1, 1, 1], np.float32), s.metal)


def _low_angle_light(s: Surface) -> Field:
    return _mix(0.4 * s.colour, (0.08 + 0.85 * s.steep)[..., None] * np.array([1, 1, 1], np.float32), s.metal)


def _mix(dull: Field, metal: Field, share: Field) -> Field:
    return dull + share[..., None] * (metal - dull)


LIGHTS: dict[str, Callable[[Surface], Field]] = {
    "SolderLight": _solder_light,
    "WhiteLight": _white_light,
    "UniformLight": _uniform_light,
    "LowAngleLight": _low_angle_light,
}


# ------------------------------------------------------------------------------------------------ what varies


def draw_design(rng: np.random.Generator, num_parts: int) -> list[Part]:
    """A board's bill of materials: every kind about equally often, in values and directions of its own."""
    kinds, count = list(KINDS), Counter[str]()
    parts = []
    for i in range(num_parts):
        kind = kinds[i % len(kinds)]
        count[KINDS[kind].prefix] += 1
        tracks = []
        for _ in range(int(rng.integers(1, 4))):
            across, at, half = rng.random() < 0.5, float(rng.uniform(-0.9, 0.9)), float(rng.uniform(0.03, 0.09))
            tracks.append((at, 0.0, half, 2.0) if across else (0.0, at, 2.0, half))
        vias = tuple(
            (float(rng.choice((-0.84, 0.84))), float(rng.uniform(-0.85, 0.85))) for _ in range(rng.integers(0, 3))
        )
        parts.append(
            Part(
                name=f"{KINDS[kind].prefix}{count[KINDS[kind].prefix]}",
                kind=kind,
                code="".join(str(d) for d in rng.integers(1, 10, 2)) + str(rng.integers(0, 5)),
                angle=float(rng.choice((0, 90, 180, 270))),
                scale=float(rng.uniform(0.9, 1.08)),
                tracks=tuple(tracks),
                vias=vias,
            )
        )
    return parts


def draw_lot(rng: np.random.Generator) -> Lot:
    green = np.array([0.07, 0.33, 0.16], np.float32) * rng.uniform(0.7, 1.35) * rng.uniform(0.82, 1.18, 3)
    return Lot(
        resist=tuple(green.tolist()),
        print_level=float(rng.uniform(0.6, 0.92)),
        print_offset=tuple(rng.normal(0, 0.035, 2).tolist()),
        date_code="".join(str(d) for d in rng.integers(0, 10, 4)),
        paste=float(rng.uniform(0.75, 1.3)),
        tint={kind: tuple((rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)).tolist()) for kind in KINDS},
    )


def draw_capture(rng: np.random.Generator, lights: Sequence[str]) -> Capture:
    return Capture(
        focus=float(rng.uniform(0.25, 0.85)),
        noise=float(rng.uniform(0.008, 0.03)),
        gain={light: tuple((rng.uniform(0.68, 1.32) * rng.uniform(0.92, 1.08, 3)).tolist()) for light in lights},
        drift={light: tuple(rng.normal(0, 0.09, 2).tolist()) for light in lights},
    )


# ------------------------------------------------------------------------------------------------ painting a tile

_TIN: RGB = (0.8, 0.8, 0.82)
_END = (0.46, 0.0, 0.24)  # x, y and half length of a chip on end, seen from above as it leans to the middle


def paint_tile(
    part: Part, defect: str, lot: Lot, rng: np.random.Generator, size: int, shift: tuple[float, float]
) -> Surface:
    """The surface of one tile, ``size`` pixels square. ``shift``: where the stage stopped, pixels."""
    board = Grid.of_size(size)
    pixel = board.pixel
    board = board.moved(shift[0] * pixel, shift[1] * pixel, float(rng.normal(0, 0.5)))
    frame = board.moved(angle=part.angle)
    frame = Grid(frame.x / np.float32(part.scale), frame.y / np.float32(part.scale), pixel / part.scale)
    kind = KINDS[part.kind]

    surface = Surface(size, lot.resist)
    _paint_board(surface, board, part, rng)
    _paint_print(surface, frame, part, lot)
    mounted = str(rng.choice(kind.substitutes)) if defect == "wrong_part" else part.kind
    place = _placement(frame, defect, rng)
    body = (
        place.box(*_END, kind.half[1], 0.03) if defect == "tombstoned" else place.box(0, 0, *KINDS[mounted].half, 0.03)
    )
    legs = _legs(place, kind) if kind.leaded else []
    _paint_solder(surface, frame, kind, [] if defect == "missing" else legs or [body], lot, rng)
    if defect == "bridged":
        _paint_bridge(surface, frame, kind, rng)
    for leg in legs if defect != "missing" else []:
        surface.coat(place.cover(leg), _TIN, 1.0, np.clip(0.12 + 0.5 * np.exp(-np.maximum(body, 0) / 0.07), 0, 1))
    if defect == "tombstoned":
        _paint_end(surface, place, body, mounted, lot)
    elif defect != "missing":
        _paint_body(surface, place, body, mounted, part, lot)
    _paint_dust(surface, board, rng)
    return surface


def _placement(frame: Grid, defect: str, rng: np.random.Generator) -> Grid:
    """The frame of the component on its pads: a good machine is right to a few hundredths and a degree or two."""
    dx, dy, angle = rng.normal(0, 0.012), rng.normal(0, 0.012), rng.normal(0, 0.8)
    sign = 1 if rng.random() < 0.5 else -1
    if defect == "shifted":  # off its pads: sideways, or along itself
        far = sign * rng.uniform(0.22, 0.36)
        dx, dy = (dx, dy + far) if rng.random() < 0.6 else (dx + far, dy)
    elif defect == "rotated":
        angle += sign * rng.uniform(22, 45)
    elif defect in ("tombstoned", "wrong_part") and sign < 0:
        angle += 180
    return frame.moved(float(dx), float(dy), float(angle))


def _paint_board(s: Surface, board: Grid, part: Part, rng: np.random.Generator) -> None:
    """Resist with the glass weave shining through, copper tracks under it, tented vias."""
    size = len(s.metal)
    weave = np.sin(board.x * 38 + rng.uniform(0, 6)) + np.sin(board.y * 38 + rng.uniform(0, 6))
    s.shade(1 + 0.035 * weave + 0.06 * smooth_noise(rng, size, 5) + 0.03 * smooth_noise(rng, size, size // 3))
    for track in part.tracks:
        s.shade(1 + 0.45 * board.cover(board.box(*track)))
    for x, y in part.vias:
        s.coat(board.cover(board.disc(x, y, 0.09)), (0.55, 0.5, 0.3), 0.4, 0.3)
        s.coat(board.cover(board.disc(x, y, 0.045)), (0.05, 0.08, 0.05))


def _paint_print(s: Surface, frame: Grid, part: Part, lot: Lot) -> None:
    """White print: the outline beside a part and its name; every lot prints a little elsewhere."""
    kind = KINDS[part.kind]
    ink = (lot.print_level,) * 3
    at = frame.moved(*lot.print_offset)
    s.coat(0.85 * at.text(part.name, *kind.name_at, 0.22), ink)
    if kind.leaded:
        s.coat(0.9 * at.cover(at.disc(-0.78, 0.5, 0.05)), ink)  # beside the first pin
    else:
        for y in (-1, 1):
            s.coat(0.9 * at.cover(at.box(0, y * (kind.half[1] + 0.14), 0.24, 0.022)), ink)


def _paint_solder(
    s: Surface, frame: Grid, kind: Kind, touching: list[Field], lot: Lot, rng: np.random.Generator
) -> None:
    """Solder on the pads: flat in the middle, round at the rim, and climbing what it touches."""
    size = len(s.metal)
    ripple = 0.09 * smooth_noise(rng, size, 9)
    near = np.minimum.reduce(touching) if touching else None
    for x, y, half_width, half_height in kind.pads:
        pad = frame.box(x, y, half_width, half_height, 0.05)
        steep = 0.5 * np.exp(np.minimum(pad, 0) / 0.05)
        if near is not None:
            reach = 0.09 * lot.paste * float(rng.uniform(0.75, 1.3))
            steep = np.maximum(steep, np.exp(-np.maximum(near, 0) / reach) * float(rng.uniform(0.8, 1.0)))
        s.coat(frame.cover(pad), _TIN, 1.0, np.clip(steep + ripple, 0, 1))


def _paint_bridge(s: Surface, frame: Grid, kind: Kind, rng: np.random.Generator) -> None:
    """Solder between two neighbouring pads of a row."""
    pairs = [(a, b) for a in kind.pads for b in kind.pads if a[1] == b[1] and 0 < b[0] - a[0] < 0.7]
    closest = min(b[0] - a[0] for a, b in pairs)
    pairs = [(a, b) for a, b in pairs if b[0] - a[0] < closest + 0.01]
    a, b = pairs[int(rng.integers(len(pairs)))]
    outward = float(np.sign(a[1]))
    y = a[1] + outward * float(rng.uniform(0.0, 0.06))
    bridge = frame.box((a[0] + b[0]) / 2, y, (b[0] - a[0]) / 2 + 0.03, float(rng.uniform(0.12, 0.18)), 0.07)
    s.coat(frame.cover(bridge), _TIN, 1.0, 0.75 * np.exp(np.minimum(bridge, 0) / 0.05))


def _legs(place: Grid, kind: Kind) -> list[Field]:
    """From the body's edge to the middle of each pad."""
    legs = []
    for x, y, half_width, _ in kind.pads:
        foot, root = np.sign(y) * (abs(y) + 0.04), np.sign(y) * (kind.half[1] - 0.04)
        legs.append(place.box(x, (foot + root) / 2, 0.68 * half_width, abs(foot - root) / 2, 0.02))
    return legs


def _paint_body(s: Surface, place: Grid, body: Field, mounted: str, part: Part, lot: Lot) -> None:
    cover, (length, width) = place.cover(body), KINDS[mounted].half
    round_edge = 0.6 * np.exp(np.minimum(body, 0) / 0.03)
    _paint_shadow(s, body, 0.05)
    s.coat(cover, _body_colour(mounted, lot))
    s.shade(1 - 0.25 * cover * round_edge)
    if mounted in ("resistor", "capacitor"):
        end = 0.15 if mounted == "resistor" else 0.18
        for x in (-length + end / 2, length - end / 2):
            s.coat(cover * place.cover(place.box(x, 0, end / 2, width)), _TIN, 1.0, round_edge)
    if mounted == "resistor":
        s.coat(0.9 * cover * place.text(part.code, 0, 0, 0.3), (0.85,) * 3)
    elif mounted == "diode":
        for x in (-length + 0.04, length - 0.04):
            s.coat(cover * place.cover(place.box(x, 0, 0.04, width * 0.6)), _TIN, 1.0, 0.3)
        s.coat(cover * place.cover(place.box(-length + 0.22, 0, 0.07, width)), (0.75, 0.75, 0.73))
    elif mounted == "tantalum":
        s.coat(cover * place.cover(place.box(-length + 0.15, 0, 0.09, width)), (0.42, 0.22, 0.08))
        s.coat(0.85 * cover * place.text(part.code, 0.14, 0, 0.26), (0.3, 0.18, 0.08))
    elif mounted == "sot23":
        s.coat(0.75 * cover * place.text(part.code[:2] + lot.date_code[0], 0, 0, 0.24), (0.75,) * 3)
    elif mounted == "soic8":
        s.coat(0.7 * cover * place.text("L" + part.code, 0.04, -0.1, 0.2), (0.75,) * 3)
        s.coat(0.7 * cover * place.text(lot.date_code, 0.04, 0.16, 0.2), (0.75,) * 3)
        s.coat(cover * place.cover(place.disc(-0.5, 0.22, 0.055)), (0.05,) * 3)


def _paint_end(s: Surface, place: Grid, end: Field, mounted: str, lot: Lot) -> None:
    """A chip standing on one end: a slice of its long side, and its other end, of bare metal, towards the camera."""
    _paint_shadow(s, end, 0.15)
    s.coat(place.cover(end), _body_colour(mounted, lot))
    cap = place.box(0.54, 0, 0.15, KINDS[mounted].half[1], 0.03)
    s.coat(place.cover(cap), _TIN, 1.0, 0.15 + 0.6 * np.exp(np.minimum(cap, 0) / 0.04))


def _paint_shadow(s: Surface, body: Field, reach: float) -> None:
    s.shade(1 - 0.35 * np.exp(-np.maximum(body, 0) / reach))


def _body_colour(mounted: str, lot: Lot) -> RGB:
    red, green, blue = (float(c * t) for c, t in zip(KINDS[mounted].colour, lot.tint[mounted], strict=True))
    return red, green, blue


def _paint_dust(s: Surface, board: Grid, rng: np.random.Generator) -> None:
    """Specks, lint and flux stains, as any board has."""
    for _ in range(int(rng.poisson(1.2))):
        x, y, radius, level = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.02, 0.06), rng.uniform(0.3, 0.8)
        s.coat(0.7 * board.cover(board.disc(float(x), float(y), float(radius))), (float(level),) * 3)
    if rng.random() < 0.4:
        stain = board.disc(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.2, 0.45)))
        s.shade(1 - 0.25 * np.exp(-((stain / 0.06) ** 2)))


def photograph(s: Surface, light: str, capture: Capture, rng: np.random.Generator) -> Field:
    """The picture ``(H, W, 3)`` in 0..1 of a surface under one light."""
    size = len(s.metal)
    grid = Grid.of_size(size)
    dx, dy = capture.drift[light]
    level = (
        np.array(capture.gain[light], np.float32)
        * (1 + dx * grid.x + dy * grid.y)[..., None]
        * float(rng.uniform(0.95, 1.05))
    )
    image = blur(LIGHTS[light](s) * level, capture.focus * size / 64)
    noise = (
        rng.standard_normal(image.shape, dtype=np.float32) * capture.noise * np.sqrt(np.maximum(image, 0) + 0.05) * 1.6
    )
    return image + noise.astype(np.float32)


# ------------------------------------------------------------------------------------------------ the data set

_README = """\
Circuit boards, drawn by scripts/make_demo_data.py (seed {seed}); nothing in here was photographed.

Every row of train.csv, val.csv, test.csv and infer.csv is one component on one board, beside the golden picture of the
same place on the same board design. No board is in two of the files. Tiles are {size} x {size} pixels, one per light:
  images/<input_path>/<object_name>_<light>.png     the component that was inspected
  images/<golden_path>/<object_name>_<light>.png    how it should look
Lights: {lights}. SolderLight is a ring of three colours: flat metal looks red, slopes green, steep solder blue.

label      PASS or NO_PASS
component  resistor, capacitor, diode, tantalum (capacitor), sot23 (transistor), soic8 (integrated circuit)
defect     none
           missing      the pads are empty
           shifted      the component lies beside its pads
           rotated      it lies askew
           tombstoned   it stands on one of its ends
           bridged      solder joins two pads
           wrong_part   another component that fits the pads

What differs between good components, as on a real line: up to two pixels of shift, level, tint and drift of the light,
focus and noise of the camera, colour of the boards, place and brightness of the print, date codes, tint of the
components, amount and shine of the solder, dust and stains. All of it is drawn without looking at the label.
"""


def plan_defects(rng: np.random.Generator, design_of: Sequence[list[Part]], share: float) -> list[dict[str, str]]:
    """Per board, part name -> defect: about ``share`` of its parts, every kind of defect about equally often."""
    used, plan = Counter[str](), []
    for parts in design_of:
        count = int(share * len(parts) + rng.random())
        chosen: dict[str, str] = {}
        for i in rng.permutation(len(parts))[:count]:
            options = list(rng.permutation(KINDS[parts[i].kind].defects))
            defect = str(min(options, key=lambda d: used[d]))
            used[defect] += 1
            chosen[parts[i].name] = defect
        plan.append(chosen)
    return plan


def split_boards(rng: np.random.Generator, num_boards: int) -> dict[int, str]:
    """Board -> split, in the shares of ``SPLITS``; every split gets one board at least."""
    counts = {split: max(1, round(share * num_boards)) for split, share in SPLITS.items()}
    counts["train"] = num_boards - sum(counts.values()) + counts["train"]
    names = [split for split, count in counts.items() for _ in range(count)]
    return dict(zip(rng.permutation(num_boards).tolist(), names, strict=True))


def make_boards(
    out: Path,
    *,
    num_boards: int = 40,
    num_parts: int = 18,
    num_designs: int = 2,
    size: int = 64,
    lights: Sequence[str] = ("SolderLight", "WhiteLight"),
    defect_share: float = 0.17,
    seed: int = 0,
) -> dict[str, list[dict[str, str]]]:
    """Write ``out/images``, ``out/{train,val,test,infer}.csv`` and ``out/README.txt``.

    The same arguments give the same bytes. Returns: the rows of each CSV.
    Raises: ValueError for an argument that no data set can be made from.
    """
    if num_boards < len(SPLITS):
        raise ValueError(f"{num_boards} boards cannot fill {len(SPLITS)} splits: give --boards {len(SPLITS)} or more")
    if size < 16 or num_parts < 1 or num_designs < 1 or not 0 <= defect_share <= 1:
        raise ValueError("give --size 16 or more, --parts and --designs 1 or more, --defects from 0 to 1")
    if unknown := set(lights) - set(LIGHTS):
        raise ValueError(f"unknown light {sorted(unknown)[0]}: choose from {', '.join(LIGHTS)}")
    rng = np.random.default_rng((seed, 0))
    designs = [draw_design(rng, num_parts) for _ in range(num_designs)]
    split_of = split_boards(rng, num_boards)
    plan = plan_defects(rng, [designs[b % num_designs] for b in range(num_boards)], defect_share)

    def shoot(folder: str, parts: list[Part], lot: Lot, key: int, defects: dict[str, str]) -> None:
        rng = np.random.default_rng((seed, 1, key))
        capture = draw_capture(rng, lights)
        for part in parts:
            shift = tuple(rng.uniform(-2, 2, 2).tolist())
            surface = paint_tile(part, defects.get(part.name, GOOD), lot, rng, size, shift)
            for light in lights:
                save_png(out / "images" / folder / f"{part.name}_{light}.png", photograph(surface, light, capture, rng))

    for d, parts in enumerate(designs):
        shoot(f"golden/design_{d}", parts, draw_lot(np.random.default_rng((seed, 2, d))), d, {})
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for b in range(num_boards):
        d, board = b % num_designs, f"board_{b:03d}"
        lot = draw_lot(np.random.default_rng((seed, 3, b // BOARDS_PER_LOT)))
        shoot(f"boards/{board}", designs[d], lot, num_designs + b, plan[b])
        rows[split_of[b]] += list(_rows(board, f"design_{d}", designs[d], plan[b]))
    for split, split_rows in rows.items():
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(split_rows)
    (out / "README.txt").write_text(_README.format(size=size, lights=", ".join(lights), seed=seed), encoding="utf-8")
    return rows


def _rows(board: str, design: str, parts: list[Part], defects: dict[str, str]) -> Iterator[dict[str, str]]:
    for part in parts:
        yield {
            "input_path": f"boards/{board}",
            "golden_path": f"golden/{design}",
            "label": NO_PASS if part.name in defects else PASS,
            "object_name": part.name,
            "component": part.kind,
            "board": board,
            "defect": defects.get(part.name, GOOD),
        }
