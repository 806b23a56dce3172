"""JPEG files by the faster decoder: Pillow's pixels, Pillow's errors."""

import io
import threading

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, features

from fiducial.data import images, jpeg
from fiducial.data.images import image_facts, read_pixels, read_rgb
from fiducial.errors import DatasetError

SIZES = [(1, 1), (1, 2), (2, 1), (7, 9), (16, 16), (17, 33), (100, 131)]
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@pytest.fixture(autouse=True)
def _room_for_small_progressive_files(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ENCODERS = {
    **{
        f"{sampling}{' progressive' if progressive else ''}": (
            lambda image, sampling=sampling, progressive=progressive: saved(
                image, quality=82, subsampling=sampling, progressive=progressive
            )
        )
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive in (False, True)
    },
    **{
        sampling: (
            lambda image, sampling=sampling: simplejpeg.encode_jpeg(
                np.array(image), quality=82, colorsubsampling=sampling
            )
        )
        for sampling in ("440", "411")
    },
    "grey": lambda image: saved(image.convert("L")),
    "grey progressive": lambda image: saved(image.convert("L"), progressive=True),
    "low quality": lambda image: saved(image, quality=3),
    "high quality": lambda image: saved(image, quality=100, subsampling=2),
    "restart markers": lambda image: saved(image, restart_marker_rows=1),
    "own Huffman tables": lambda image: saved(image, optimize=True),
    "turned by EXIF": lambda image: saved(image, exif=turned()),
    "colour profile": lambda image: saved(image, icc_profile=bytes(range(256)) * 300),
    "comment": lambda image: saved(image, comment=b"\xff\xd8 no picture \xff\xd9"),
}
ODD = {
    "CMYK": lambda image: saved(image.convert("CMYK")),
    "RGB": lambda image: saved(image, keep_rgb=True),
    "several pictures": lambda image: several(image),
}


def several(image):
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image.rotate(180)])
    return file.getvalue()


def as_pillow(monkeypatch, do):
    """What comes without the faster decoder: a result, or an error's text."""
    with monkeypatch.context() as patch:
        patch.setattr(images, "decoded", lambda *_: None)
        return outcome(do)


def outcome(do):
    try:
        return do()
    except DatasetError as error:
        return str(error)


@pytest.fixture
def used(monkeypatch):
    """How often the faster decoder gave pixels."""
    count = []

    def counting(image, pixels):
        found = jpeg.decoded(image, pixels)
        count.extend([1] * (found is not None))
        return found

    monkeypatch.setattr(images, "decoded", counting)
    return count


class TestSamePixels:
    @pytest.mark.parametrize("kind", ENCODERS)
    def test_as_pillow(self, tmp_path, used, kind):
        path = tmp_path / "x.jpg"
        for seed, size in enumerate(SIZES):
            path.write_bytes(ENCODERS[kind](picture(*size, seed)))
            assert np.array_equal(read_pixels(path), np.asarray(read_rgb(path)))
            for wanted, interpolation in (((20, 30), BILINEAR), ((64, 64), BICUBIC), (size, BILINEAR)):
                resized = read_rgb(path).resize(wanted[::-1], interpolation) if wanted != size else read_rgb(path)
                assert np.array_equal(read_pixels(path, wanted, interpolation), np.asarray(resized))
        assert len(used) == 4 * len(SIZES)

    @pytest.mark.parametrize("kind", ODD)
    def test_odd_ones_are_left_to_pillow(self, tmp_path, used, kind):
        path = tmp_path / "x.jpg"
        path.write_bytes(ODD[kind](picture(17, 33)))
        assert np.array_equal(read_pixels(path), np.asarray(read_rgb(path)))
        assert np.array_equal(read_pixels(path, (8, 8)), np.asarray(read_rgb(path).resize((8, 8), BILINEAR)))
        assert not used

    def test_other_formats(self, tmp_path, used):
        picture(17, 33).save(tmp_path / "x.png")
        assert np.array_equal(read_pixels(tmp_path / "x.png", (8, 8)), read_rgb(tmp_path / "x.png").resize((8, 8), 2))
        assert not used

    def test_in_threads(self, tmp_path):
        path, found = tmp_path / "x.jpg", []
        path.write_bytes(saved(picture(100, 131)))
        threads = [threading.Thread(target=lambda: found.append(read_pixels(path))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(np.array_equal(pixels, read_rgb(path)) for pixels in found)


class TestDamage:
    """Whatever is wrong with a file, the pixels or the error are those of Pillow alone."""

    @pytest.mark.parametrize("kind", ["4:2:0", "4:4:4 progressive", "grey", "restart markers", "turned by EXIF"])
    def test_same_outcome(self, tmp_path, monkeypatch, kind):
        rng = np.random.default_rng(len(kind))
        whole = ENCODERS[kind](picture(64, 80))
        path, errors, pixels = tmp_path / "x.jpg", 0, 0
        for number in range(150):
            data = bytearray(whole)
            if number % 3 == 0:
                del data[int(rng.integers(2, len(data))) :]
            else:
                for place in rng.integers(2, len(data), int(rng.integers(1, 4))):
                    data[place] = rng.integers(256)
            path.write_bytes(data)
            for do in (lambda: read_pixels(path), lambda: read_pixels(path, (20, 20)), lambda: image_facts(path)):
                ours, wanted = outcome(do), as_pillow(monkeypatch, do)
                assert type(ours) is type(wanted)
                assert np.array_equal(ours, wanted) if isinstance(ours, np.ndarray) else ours == wanted
            errors, pixels = errors + isinstance(ours, str), pixels + (not isinstance(ours, str))
        assert errors > 20
        assert pixels > 20

    def test_too_many_pixels(self, tmp_path, monkeypatch, used):
        path = tmp_path / "x.jpg"
        path.write_bytes(saved(picture(40, 30)))
        monkeypatch.setattr(images, "MAX_PIXELS", 1199)
        with pytest.raises(DatasetError, match="more than 1,199 pixels"):
            read_pixels(path)
        assert not used


class TestDecoder:
    @pytest.fixture(autouse=True)
    def _asked_anew(self):
        jpeg._decoder.cache_clear()
        yield
        jpeg._decoder.cache_clear()

    @pytest.mark.parametrize("version", [None, "2.1.5", "4.1.1"])
    def test_pillow_with_another_library(self, tmp_path, monkeypatch, used, version):
        path = tmp_path / "x.jpg"
        path.write_bytes(saved(picture(40, 30)))
        monkeypatch.setattr(features, "version", lambda name: version)
        assert np.array_equal(read_pixels(path), np.asarray(read_rgb(path)))
        assert not used

    def test_without_it(self, tmp_path, monkeypatch, used):
        path = tmp_path / "x.jpg"
        path.write_bytes(saved(picture(40, 30)))
        monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
        assert np.array_equal(read_pixels(path, (8, 8)), np.asarray(read_rgb(path).resize((8, 8), BILINEAR)))
        assert not used
