import multiprocessing
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiducial.data import images
from fiducial.data.images import ImageCache, check_whole, image_facts, nearby, open_image, read_image, read_rgb
from fiducial.errors import DatasetError


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


class TestReadRgb:
    def test_pixels(self, photo):
        path, pixels = photo
        assert np.array_equal(read_rgb(path), pixels)

    def test_sixteen_bits_are_divided_by_256(self, tmp_path):
        Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
        assert np.asarray(read_rgb(tmp_path / "x.png"))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 255)]

    def test_big_endian_sixteen_bits(self, tmp_path):
        Image.frombytes("I;16B", (2, 1), bytes([0x12, 0x34, 0xFF, 0x00])).save(tmp_path / "x.tif")
        assert np.asarray(read_rgb(tmp_path / "x.tif"))[0, :, 0].tolist() == [0x12, 0xFF]

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_pixels_without_a_range_are_refused(self, tmp_path, mode):
        Image.new(mode, (2, 2)).save(tmp_path / "x.tif")
        for look in (read_rgb, check_whole, image_facts):
            with pytest.raises(DatasetError, match=r"x\.tif · pixels of mode"):
                look(tmp_path / "x.tif")

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
    def test_every_mode_becomes_rgb(self, tmp_path, mode):
        Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(tmp_path / "x.png")
        assert read_rgb(tmp_path / "x.png").mode == "RGB"
        assert np.asarray(read_rgb(tmp_path / "x.png")).min() == 255

    def test_alpha_is_dropped_not_blended(self, tmp_path):
        Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "x.png")
        assert read_rgb(tmp_path / "x.png").getpixel((0, 0)) == (10, 20, 30)

    def test_orientation_is_not_applied(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees to view
        Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg", exif=exif)
        assert read_rgb(tmp_path / "x.jpg").size == (30, 20)

    def test_the_native_mode_is_kept_for_masks(self, tmp_path):
        mask = Image.fromarray(np.array([[0, 7], [7, 1]], np.uint8))
        mask.putpalette(list(range(24)))
        mask.save(tmp_path / "x.png")
        assert np.asarray(read_image(tmp_path / "x.png")).tolist() == [[0, 7], [7, 1]]

    def test_no_file_stays_open(self, photo):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            read_rgb(photo[0])


class TestUnreadable:
    def test_missing_names_what_lies_beside(self, photo):
        assert nearby(photo[0].with_suffix(".jpg")) == [photo[0]]
        with pytest.raises(DatasetError, match=r"photo\.JPG · no such file · beside it: photo\.png"):
            read_rgb(photo[0].with_name("photo.JPG"))

    def test_nearby_sees_new_files(self, photo):
        missing = photo[0].with_suffix(".jpg")
        assert nearby(missing) == [photo[0]]
        photo[0].with_suffix(".bmp").touch()
        assert nearby(missing) == [photo[0].with_suffix(".bmp"), photo[0]]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(DatasetError, match="no such file"):
            read_rgb(tmp_path / "no" / "x.jpg")

    @pytest.mark.parametrize(("content", "told"), [(b"", "an empty file"), (b"hello" * 9, "not an image")])
    def test_other_content(self, tmp_path, content, told):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(DatasetError, match=rf"x\.jpg · {told}"):
            read_rgb(tmp_path / "x.jpg")

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
    def test_cut_off(self, photo, suffix):
        path = photo[0].with_suffix(suffix)
        Image.fromarray(photo[1]).save(path)
        path.write_bytes(path.read_bytes()[:-600])
        with pytest.raises(DatasetError, match=rf"photo\{suffix} · (an image that cannot be read|not an image)"):
            read_rgb(path)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif", ".ppm", ".jp2"])
    def test_a_glance_at_the_end(self, photo, suffix):
        path = photo[0].with_suffix(suffix)
        Image.fromarray(photo[1]).save(path)
        whole = path.read_bytes()
        check_whole(path)
        path.write_bytes(whole + b"attached" * 1000)  # as some cameras do
        check_whole(path)
        path.write_bytes(whole[:-600])
        with pytest.raises(DatasetError, match=rf"photo\{suffix} · an image that cannot be read"):
            check_whole(path)
        path.write_bytes(b"")
        with pytest.raises(DatasetError, match="an empty file"):
            check_whole(path)

    def test_too_many_pixels(self, photo, monkeypatch):
        monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30 - 1)
        with pytest.raises(DatasetError, match="more than 1,199 pixels"):
            read_rgb(photo[0])

    def test_survey_images_pass_pillows_guard_and_it_stays_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1200 pixels would warn
        Image.new("1", (40, 30)).save(tmp_path / "x.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_rgb(tmp_path / "x.png")
        assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def _counts(cache, path, queue):
    cache.rgb(path)
    queue.put((cache.hits, cache.misses, len(cache)))


class TestImageCache:
    def test_second_read_is_a_hit_and_read_only(self, photo):
        cache = ImageCache(10**6)
        first, second = cache.rgb(photo[0]), cache.rgb(photo[0])
        assert first is second
        assert np.array_equal(first, photo[1])
        assert (cache.hits, cache.misses, cache.num_bytes) == (1, 1, 3600)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 0

    def test_size_and_interpolation_are_part_of_the_key(self, photo):
        cache = ImageCache(10**6)
        bilinear, nearest = cache.rgb(photo[0], (20, 10)), cache.rgb(photo[0], (20, 10), Image.Resampling.NEAREST)
        assert bilinear.shape == nearest.shape == (20, 10, 3)
        assert not np.array_equal(bilinear, nearest)
        assert np.array_equal(bilinear, Image.fromarray(photo[1]).resize((10, 20), Image.Resampling.BILINEAR))
        assert cache.misses == 2

    def test_least_recently_used_goes_first(self, tmp_path):
        paths = [tmp_path / f"{n}.png" for n in range(3)]
        for path in paths:
            Image.new("RGB", (10, 10)).save(path)
        cache = ImageCache(600)  # two of 300 bytes
        for n in (0, 1, 0, 2, 0, 1):
            cache.rgb(paths[n])
            assert cache.num_bytes <= 600
        assert (cache.hits, cache.misses) == (2, 4)

    def test_an_image_larger_than_the_bound_is_not_kept(self, photo):
        cache = ImageCache(0)
        assert np.array_equal(cache.rgb(photo[0]), cache.rgb(photo[0]))
        assert (cache.misses, cache.num_bytes) == (2, 0)

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_a_worker_starts_empty(self, photo, start):
        cache = ImageCache(10**6)
        cache.rgb(photo[0])
        context = multiprocessing.get_context(start)
        queue = context.Queue()
        worker = context.Process(target=_counts, args=(cache, photo[0], queue))
        worker.start()
        assert queue.get(timeout=60) == (0, 1, 1)
        worker.join()

    def test_pickles_small(self, photo):
        cache = ImageCache(10**6)
        cache.rgb(photo[0])
        assert len(pickle.dumps(cache)) < 200

    def test_negative_bound(self):
        with pytest.raises(ValueError, match="max_bytes"):
            ImageCache(-1)


class TestFormats:
    """What is in the file counts, whatever it is called, and no program is started for it."""

    @pytest.mark.parametrize("read", [read_rgb, check_whole, image_facts])
    def test_postscript_is_not_run(self, tmp_path, monkeypatch, read):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/RUN\n")
        (tmp_path / "bin/gs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        (tmp_path / "x.jpg").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
        )
        with pytest.raises(DatasetError, match=r"x\.jpg · not an image but a PostScript program"):
            read(tmp_path / "x.jpg")
        assert not (tmp_path / "RUN").exists()

    @pytest.mark.parametrize("kind", ["PCX", "TGA", "ICO", "SGI", "XBM"])
    def test_others_that_pillow_knows(self, tmp_path, kind):
        Image.new("1" if kind == "XBM" else "L", (32, 32)).save(tmp_path / "x.png", kind)
        with pytest.raises(DatasetError, match="not an image"):
            check_whole(tmp_path / "x.png")

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"<!DOCTYPE html>404", "a web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
            (bytes(5000), "zeros"),
            (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC photograph"),
        ],
    )
    def test_a_glance_names_what_it_is(self, tmp_path, content, told):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(DatasetError, match=f"not an image but {told}"):
            check_whole(tmp_path / "x.jpg")

    def test_no_file_at_all(self, tmp_path):
        for path, told in {"/dev/zero": "a device", str(tmp_path): "a folder", f"{tmp_path}/a\0b": "NUL"}.items():
            with pytest.raises(DatasetError, match=told):
                read_rgb(path)

    def test_what_is_done_with_a_damaged_image_is_told_of_it(self, tmp_path):
        Image.new("L", (9, 9)).save(tmp_path / "x.png")
        told = pytest.raises(DatasetError, match=r"x\.png · an image that cannot be read")
        with told, open_image(tmp_path / "x.png") as image:
            image.seek(5)


class TestFacts:
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_sixteen_bits_of_grey(self, tmp_path, suffix):
        Image.fromarray(np.array([[0, 4095, 7]], np.uint16)).save(tmp_path / f"x{suffix}")
        facts = image_facts(tmp_path / f"x{suffix}")
        assert (facts.size, facts.brightest) == ((3, 1), 4095)

    def test_sixteen_bits_of_each_colour(self, tmp_path):
        rows = struct.pack(">B6H", 0, 100, 4095, 0, 3, 0, 0)
        chunks = {b"IHDR": struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
        packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items())
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
        assert image_facts(tmp_path / "x.png").brightest == 4095

    def test_eight_bits(self, photo):
        assert image_facts(photo[0]).brightest is None


def test_there_is_one_place_that_opens_images():
    """Pillow would hand some formats to other programs: only what ``FORMATS`` names is opened."""
    root = Path(images.__file__).parents[2]
    packages = [path for name in ("fiducial", "changenet", "mal") for path in (root / name).rglob("*.py")]
    assert [path.name for path in packages if "Image.open(" in path.read_text("utf-8")] == ["images.py"]
