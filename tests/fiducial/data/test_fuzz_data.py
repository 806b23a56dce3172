"""Whatever the bytes of a data set are: it is read, or one line says what is wrong with it."""

import io
import tarfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fiducial.data.archives import extract, images_root
from fiducial.data.images import FORMATS, check_whole, has_16_bits, image_facts, read_rgb
from fiducial.errors import UserError

FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def only_user_errors(action, *arguments, **options):
    with warnings.catch_warnings(), suppress(UserError):
        warnings.simplefilter("ignore")  # Pillow's, of what it makes of damaged tags
        action(*arguments, **options)


@st.composite
def mutations(draw, originals: list[bytes]):
    """One of the files with some bytes changed, cut out, doubled, or appended."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)) | st.integers(0, min(64, max(0, len(data) - 1))))
        change, few = (
            draw(st.sampled_from(["set", "cut", "end", "add", "double"])),
            draw(st.binary(min_size=1, max_size=8)),
        )
        if change == "set":
            data[place : place + len(few)] = few
        elif change == "cut":
            del data[place : place + len(few)]
        elif change == "end":
            del data[place:]
        elif change == "add":
            data[place:place] = few
        else:
            data[place:place] = data[place : place + 64]
    return bytes(data)


def image_bytes():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 12), dtype=np.uint8)
    pictures = {"RGB": Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)), "L": Image.fromarray(grey)}
    pictures |= {"P": pictures["RGB"].convert("P"), "I;16": Image.fromarray(grey.astype(np.uint16) * 257)}
    for kind in FORMATS:
        for picture in pictures.values():
            raw = io.BytesIO()
            try:
                picture.save(raw, kind)
            except (OSError, ValueError):  # not every format has every mode
                continue
            yield raw.getvalue()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        raw = io.BytesIO()
        pictures["RGB"].save(raw, "TIFF", compression=compression)
        yield raw.getvalue()


@FUZZ
@given(data=mutations(list(image_bytes())) | st.binary(max_size=300))
def test_images(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    for look in (read_rgb, check_whole, image_facts, has_16_bits):
        only_user_errors(look, tmp_path / "x.png")


def archives_of(names):
    tar, box = io.BytesIO(), io.BytesIO()
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(fileobj=tar, mode="w", format=form) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = 3, {"comment": "x"}
                archive.addfile(info, io.BytesIO(b"abc"))
        yield tar.getvalue()
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    yield packed.getvalue()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"abc")
    yield box.getvalue()


@FUZZ
@given(data=mutations(list(archives_of(["a.png", "in/b.png", "\u00fc" * 60 + "/c"]))) | st.binary(max_size=100))
def test_archives(tmp_path, tmp_path_factory, data):
    (tmp_path / "x.tar").write_bytes(data)
    target = tmp_path_factory.mktemp("out")
    only_user_errors(extract, tmp_path / "x.tar", target, max_bytes=1 << 20, max_members=1000)
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) <= 1 << 20


@FUZZ
@given(samples=st.lists(st.text(alphabet="a/.\0\\ ~" + "\u00fc", max_size=12), min_size=1, max_size=3))
def test_rows_of_any_name(tmp_path, samples):
    (tmp_path / "a" / "a").mkdir(parents=True, exist_ok=True)
    assert isinstance(images_root(tmp_path, samples), Path)
