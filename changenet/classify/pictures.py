"""A look at the pictures that the rows of a CSV name: all of them decoded, or a glance at some. No torch.

What is remembered of a picture is what is odd about it: a data set may have millions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from changenet.classify.rows import Image, PairRow, PairTable, named_images
from fiducial.data.checks import check_brightness, check_whole_files, spread
from fiducial.data.listing import not_files
from fiducial.data.looks import DECODED, GLANCE, Wrong, look_at
from fiducial.errors import Problem

__all__ = ["Images", "Seen", "decode_all", "glance_at_some"]

LOOKED_AT = 1000
"""Images of a split that every action takes a glance at, spread evenly; ``check`` decodes all."""
DEEP_IMAGES = 24
"""Images of a split that every action looks at for how bright they are, where they have 16 bits."""


@dataclass
class Images:
    """The images that rows name, each once, and those of their files that are missing."""

    table: PairTable
    first: Mapping[Image, PairRow]
    """Every image with the first row that names it."""
    missing: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, table: PairTable) -> Images:
        """The images of a table, not looked at yet."""
        return cls(table, named_images(table))

    def take_out_missing(self) -> list[tuple[PairRow, Path]]:
        """Look for every file; those that are not there, with the rows that name them, in the order of the rows."""
        paths = self.table.layout.paths
        self.missing = not_files(path for image in sorted(self.first) for path in paths(*image))
        if not self.missing:
            return []
        return [
            (row, Path(path)) for image, row in self.first.items() for path in paths(*image) if path in self.missing
        ]

    def files(self) -> Iterator[tuple[Image, str]]:
        """Every file that is there, with its image."""
        for image in self.first:
            for path in self.table.layout.paths(*image):
                if path not in self.missing:
                    yield image, path

    def some(self, most: int) -> list[tuple[Image, str]]:
        """At most so many files, evenly spread."""
        paths = self.table.layout.paths
        if self.missing:
            return spread(list(self.files()), most)
        images, lights = list(self.first), self.table.layout.num_files
        places = spread(range(len(images) * lights), most)
        return [(images[i // lights], paths(*images[i // lights])[i % lights]) for i in places]

    def where(self, image: Image) -> str:
        """The CSV line that names an image first."""
        return self.table.where(self.first[image])

    def tests(self) -> set[Image]:
        """Those that are test images, whatever else they are."""
        return {self.table.test_image(row) for row in self.table.rows}


@dataclass
class Seen:
    """What a look at images found."""

    images: Images
    problems: list[Problem]
    sizes: dict[str, int] = field(default_factory=dict)
    """How many files have each size, the most frequent first."""
    brightest: dict[Image, list[int]] = field(default_factory=dict)
    """The highest values of the files of images with 16 bits."""

    def check_brightness(self) -> Iterator[Problem]:
        """Test images and goldens apart: one camera may have written 12 bits, another 16."""
        if not self.brightest:
            return
        tests = self.images.tests()
        for what, are_tests in (("test images", True), ("goldens", False)):
            values = (n for image, found in self.brightest.items() if (image in tests) == are_tests for n in found)
            yield from check_brightness(str(self.images.table.csv_path), values, what)


def decode_all(images: Images) -> Seen:
    """Decode every file that is there: which cannot be, which lights of one image differ in size, what has pages."""
    seen = Seen(images, [])
    sizes: Counter[tuple[int, int]] = Counter()
    uneven: dict[Image, set[tuple[int, int]]] = {}
    paged: list[tuple[Image, str]] = []
    image_before, size_before = None, (0, 0)
    total = len(images.first) * images.table.layout.num_files
    found_in = look_at(DECODED, (path for _, path in images.files()), total=total)
    for (image, path), found in zip(images.files(), found_in, strict=True):
        if isinstance(found, Wrong):
            seen.problems += [Problem(images.where(image), f"{p.where}: {p.found}", p.fix) for p in found.problems[:1]]
            continue
        sizes[found.size] += 1
        if found.brightest is not None:
            seen.brightest.setdefault(image, []).append(found.brightest)
        if found.has_more_pages:
            paged.append((image, path))
        if image != image_before:
            image_before, size_before = image, found.size
        elif found.size != size_before:
            uneven.setdefault(image, {size_before}).add(found.size)
    seen.problems += _check_lights(images.table, uneven)
    if paged:
        told = f"{len(paged)} images have several pages, of which the first is read (first: {Path(paged[0][1])})"
        fix = "write each light to a file of its own, and list them in input_map"
        seen.problems.append(Problem(images.where(paged[0][0]), told, fix, "warning"))
    seen.sizes = {f"{width}x{height}": count for (width, height), count in sizes.most_common()}
    return seen


def _check_lights(table: PairTable, uneven: Mapping[Image, set[tuple[int, int]]]) -> Iterator[Problem]:
    """Images whose lights have several sizes, for each row that names them."""
    for row in table.rows if uneven else ():
        named = {"test image": table.test_image(row)}
        if table.layout.num_golden == 1:
            named["golden"] = table.golden_image(row)
        for what, image in named.items():
            if image in uneven:
                shown = ", ".join(f"{width}x{height}" for width, height in sorted(uneven[image]))
                text = f"lights of the {what} have different sizes: {shown}"
                yield Problem(table.where(row), text, "photograph all lights at one size", "warning")


def glance_at_some(images: Images) -> Seen:
    """Whether some files are whole; and of those with 16 bits, how bright a few are."""
    named = ((images.where(image), Path(path)) for image, path in images.some(LOOKED_AT))
    seen = Seen(images, list(check_whole_files(named)))
    few = images.some(DEEP_IMAGES)
    glances = zip(few, look_at(GLANCE, [path for _, path in few]), strict=True)
    deep = [item for item, found in glances if not isinstance(found, Wrong) and found.has_16_bits]
    for (image, _), found in zip(deep, look_at(DECODED, [path for _, path in deep]), strict=True):
        if not isinstance(found, Wrong) and found.brightest is not None:
            seen.brightest.setdefault(image, []).append(found.brightest)
    return seen
