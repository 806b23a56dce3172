"""Pictures kept for several processes and runs: the same ones, never of a file as it was, and never in the way."""

import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fiducial.data import picture_cache as module
from fiducial.data.images import ImageCache, read_rgb
from fiducial.data.picture_cache import PictureCache, picture_cache
from fiducial.errors import DatasetError

MB = 2**20


@pytest.fixture
def folder(tmp_path):
    """Ten pictures."""
    rng = np.random.default_rng(0)
    for number in range(10):
        draw(tmp_path / f"{number}.png", rng)
    return tmp_path


def draw(path, rng, shape=(20, 30, 3)):
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)  # a test cannot set the time of a change of the inode
    yield
    module._given_up.clear()


@pytest.fixture(params=["ram", "disk"])
def cache(request, tmp_path):
    return PictureCache(MB, tmp_path / "cache" / "pictures.bin" if request.param == "disk" else None)


def paths(folder):
    return sorted(folder.glob("*.png"))


class TestPictures:
    def test_are_the_same_with_and_without(self, cache, folder):
        plain, shared = ImageCache(0), ImageCache(0, cache)
        for _ in range(2):
            for path in paths(folder):
                for size in (None, (8, 9), (20, 30)):
                    for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                        assert np.array_equal(shared.rgb(path, size, how), plain.rgb(path, size, how))
        assert (cache.misses, cache.hits) == (50, 70)  # a whole picture is the same for both ways of resizing

    def test_of_two_dimensions(self, cache, folder):
        grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
        for _ in range(2):
            assert np.array_equal(cache.kept(folder / "0.png", "mask", lambda: grey), grey)
        assert cache.hits == 1

    def test_cannot_be_changed(self, cache, folder):
        shared = ImageCache(0, cache)
        for _ in range(2):
            with pytest.raises(ValueError, match="read-only"):
                shared.rgb(folder / "0.png")[0] = 0

    @pytest.mark.parametrize("moved", [True, False])
    def test_a_changed_file_is_read_anew(self, cache, folder, moved):
        path, shared = folder / "0.png", ImageCache(0, cache)
        old = shared.rgb(path)
        kept = old.copy()
        if moved:
            Image.fromarray(kept[::-1].copy()).save(folder / "new.png")
            os.replace(folder / "new.png", path)
        else:
            Image.fromarray(kept[::-1].copy()).save(path)
        for _ in range(2):
            assert np.array_equal(shared.rgb(path), kept[::-1])
        assert np.array_equal(old, kept)  # what somebody still looks at stays

    def test_of_a_file_that_is_changing_nothing_is_kept(self, cache, folder, monkeypatch):
        monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 10**12)
        shared = ImageCache(0, cache)
        shared.rgb(folder / "0.png")
        shared.rgb(folder / "0.png")
        assert (cache.hits, cache.misses) == (0, 2)

    def test_what_is_wrong_with_a_file_is_told_each_time(self, cache, folder):
        (folder / "1.png").write_bytes(b"no picture")
        for path, wrong in ((folder / "1.png", "not an image"), (folder / "none.png", "no such file")):
            for _ in range(2):
                with pytest.raises(DatasetError, match=wrong):
                    ImageCache(0, cache).rgb(path)


class TestBound:
    def test_a_full_one_goes_on_and_says_so_once(self, folder, caplog):
        cache = PictureCache(4000)  # of 1800 bytes each
        shared = ImageCache(0, cache)
        for _ in range(2):
            for path in paths(folder):
                assert np.array_equal(shared.rgb(path), read_rgb(path))
        assert cache.hits == 2
        assert [record.message for record in caplog.records if "is full" in record.message] == [
            "cache: ram is full: other pictures are read each time (0 MB) · a larger cache_mb"
        ]

    def test_what_finds_no_room_is_kept_by_the_process(self, folder):
        shared = ImageCache(10**6, PictureCache(2000))
        for _ in range(3):
            for path in paths(folder):
                shared.rgb(path)
        assert shared.shared.hits == 2
        assert shared.hits >= 2 * 8

    def test_of_many_pictures_all_are_found(self, folder):
        cache, value = PictureCache(MB), np.zeros((2, 2), np.uint8)
        for number in range(800):
            cache.kept(folder / "0.png", str(number), lambda number=number: value + number % 256)
        for number in range(800):
            found = cache.kept(folder / "0.png", str(number), lambda: value)
            assert (found == number % 256).all()
        assert cache.hits == 800

    def test_a_table_without_room_is_full(self, folder):
        cache, value = PictureCache(MB), np.zeros((2, 2), np.uint8)
        for number in range(2000):
            cache.kept(folder / "0.png", str(number), lambda: value)
        assert cache.is_full

    def test_an_old_full_file_is_begun_anew(self, folder, tmp_path, monkeypatch):
        path = tmp_path / "pictures.bin"
        for picture in paths(folder):
            ImageCache(0, PictureCache(4000, path)).rgb(picture)
        assert PictureCache(4000, path).is_full
        monkeypatch.setattr(module, "OLD_S", -1)
        assert not PictureCache(4000, path).is_full

    def test_another_bound_begins_a_file_anew_and_says_so(self, folder, tmp_path, caplog):
        path = tmp_path / "pictures.bin"
        ImageCache(0, PictureCache(MB, path)).rgb(folder / "0.png")
        other = PictureCache(2 * MB, path)
        ImageCache(0, other).rgb(folder / "0.png")
        assert (other.hits, other.misses) == (0, 1)
        assert "begun anew, its pictures are gone: it was of 1 MB, and cache_mb is 2" in caplog.text


def look(cache, names, found):
    shared = ImageCache(0, cache)
    found.put([shared.rgb(name).sum() for name in names] + [cache.hits])


class TestProcesses:
    def share(self, cache, folder, start, hits):
        names = paths(folder)
        context = multiprocessing.get_context(start)
        found = context.Queue()
        child = context.Process(target=look, args=(cache, names, found))
        child.start()
        *sums, there = found.get(timeout=120)
        child.join()
        assert sums == [np.asarray(read_rgb(name)).sum() for name in names]
        assert there == hits

    def test_share_one_memory(self, cache, folder):
        for name in paths(folder)[:5]:
            ImageCache(0, cache).rgb(name)
        self.share(cache, folder, "fork", 5)
        self.share(cache, folder, "fork", 10)
        ImageCache(0, cache).rgb(folder / "9.png")
        assert cache.hits == 1  # which a child has read

    def test_that_are_not_forked_share_it_too(self, folder):
        cache = PictureCache(MB)
        for name in paths(folder)[:5]:
            ImageCache(0, cache).rgb(name)
        self.share(cache, folder, "spawn", 5)

    def test_many_write_at_once(self, cache, folder):
        names = paths(folder)
        context = multiprocessing.get_context("fork")
        found = context.Queue()
        children = [context.Process(target=look, args=(cache, names, found)) for _ in range(4)]
        for child in children:
            child.start()
        want = [np.asarray(read_rgb(name)).sum() for name in names]
        assert all(found.get(timeout=60)[:-1] == want for _ in children)
        for child in children:
            child.join()
        for name in names:
            assert np.array_equal(ImageCache(0, cache).rgb(name), read_rgb(name))
        assert cache.hits == len(names)

    def test_a_copy_is_the_same_memory(self, cache, folder):
        ImageCache(0, cache).rgb(folder / "0.png")
        copied = pickle.loads(pickle.dumps(ImageCache(0, cache)))
        copied.rgb(folder / "0.png")
        assert copied.shared.hits == 1

    def test_all_in_a_process_share_one(self):
        one = picture_cache("ram", 1)
        assert one is picture_cache("ram", 1)
        assert one is not picture_cache("disk", 1)


class TestDisk:
    @pytest.fixture
    def path(self, folder):
        return folder / "cache" / "pictures.bin"

    def test_a_later_run_finds_what_an_earlier_one_read(self, folder, path):
        for picture in paths(folder):
            ImageCache(0, PictureCache(MB, path)).rgb(picture)
        later = PictureCache(MB, path)
        for picture in paths(folder):
            assert np.array_equal(ImageCache(0, later).rgb(picture), read_rgb(picture))
        assert later.hits == 10

    @pytest.mark.parametrize("place", ["pixels", "entry"])
    def test_half_written_pictures_are_read_anew(self, folder, path, place):
        cache = PictureCache(MB, path)
        ImageCache(0, cache).rgb(folder / "0.png")
        data = bytearray(path.read_bytes())
        entry = next(at for at in range(4096, len(data)) if data[at])
        at = cache._first_pixel + 100 if place == "pixels" else entry + 30
        data[at : at + 20] = bytes(20)
        path.write_bytes(data)
        later = PictureCache(MB, path)
        for _ in range(2):
            assert np.array_equal(ImageCache(0, later).rgb(folder / "0.png"), read_rgb(folder / "0.png"))
        assert (later.misses, later.hits) == (1, 1)

    def spoiled(self, path, how):
        path.parent.mkdir()
        if how == "no folder":
            path.parent.rmdir()
            path.parent.write_text("a file")
        elif how == "other file":
            path.write_bytes(b"something else" * 100)
        else:
            PictureCache(MB, path)
            data = bytearray(path.read_bytes())
            if how == "newer":
                data[8] = 99
            path.write_bytes(data[: len(data) // 2] if how == "cut off" else data)

    @pytest.mark.parametrize(
        ("how", "told"),
        [("no folder", "exists"), ("other file", "damaged"), ("newer", "version 99"), ("cut off", "cut off")],
    )
    def test_one_that_cannot_be_used_is_done_without(self, path, how, told, monkeypatch, caplog):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(path.parent))
        self.spoiled(path, how)
        assert picture_cache("disk", 1) is None
        assert picture_cache("disk", 1) is None
        (record,) = [record.message for record in caplog.records]
        assert "not used: pictures are read each time" in record
        assert told in record

    def test_a_full_disk(self, folder, path, monkeypatch, caplog):
        cache = PictureCache(MB, path)

        def full(fd, data, at):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_write", full)
        for picture in paths(folder):
            assert np.array_equal(ImageCache(0, cache).rgb(picture), read_rgb(picture))
        assert len([record for record in caplog.records if "is full" in record.message]) == 1

    def test_what_is_not_there_is_not_looked_for_in_the_mapping(self, folder, path, monkeypatch):
        """In a tmpfs such a look takes a page of it: where there is none left, the process ends with a bus error."""
        cache = PictureCache(MB, path)
        monkeypatch.setattr(cache, "_told", lambda: False)  # the header is there
        cache._map = None
        for picture in paths(folder):
            assert np.array_equal(ImageCache(0, cache).rgb(picture), read_rgb(picture))
        assert cache.misses == 10

    def test_a_run_that_is_killed_leaves_what_it_kept(self, folder, path):
        code = (
            "import os, signal, sys; from pathlib import Path; from fiducial.data import kept;"
            "from fiducial.data.images import ImageCache; from fiducial.data.picture_cache import PictureCache;"
            f"kept.SETTLED_NS = 0; images = ImageCache(0, PictureCache({MB}, Path({str(path)!r})));"
            "[images.rgb(name) for name in sys.argv[1:]]; os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code, *map(str, paths(folder)[:4])], check=False, timeout=60)
        cache = PictureCache(MB, path)
        for picture in paths(folder):
            assert np.array_equal(ImageCache(0, cache).rgb(picture), read_rgb(picture))
        assert cache.hits == 4


@pytest.mark.parametrize(("kind", "mb"), [("off", 100), ("ram", 0)])
def test_off(kind, mb):
    assert picture_cache(kind, mb) is None


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_more_than_there_can_be_is_done_without(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path))
    assert picture_cache(kind, 10**14) is None
    assert "not used: pictures are read each time" in caplog.text
    assert not list(tmp_path.iterdir())
