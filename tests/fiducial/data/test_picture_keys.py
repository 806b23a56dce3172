import os

import pytest

from fiducial.data.picture_keys import PictureKeys, content_key


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"12345")
    return paths


class TestKey:
    def test_equal_for_equal_pictures(self, files):
        keys = PictureKeys("resized", 10)
        assert keys.key(files) == PictureKeys("resized", 99).key(files)
        assert len(keys.key(files)) == 16

    def test_differs_with_all_that_decides_a_picture(self, files):
        keys = PictureKeys("resized", 10)
        found = {
            keys.key(files),
            keys.key(files[::-1]),
            keys.key(files[:1]),
            keys.key(files, "mirrored"),
            PictureKeys("cut", 10).key(files),
        }
        assert len(found) == 5

    @pytest.mark.parametrize("change", ["content", "size", "time", "another file"])
    def test_a_changed_file(self, files, change):
        keys, path = PictureKeys("", 10), files[0]
        before, stat = keys.key(files), path.stat()
        if change == "content":  # of the same size, and the time set back
            path.write_bytes(b"54321")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif change == "size":
            path.write_bytes(b"123456")
        elif change == "time":
            os.utime(path, ns=(0, stat.st_mtime_ns + 1))
        else:
            (path.parent / "new").write_bytes(b"54321")
            os.replace(path.parent / "new", path)
        assert keys.key(files) != before

    def test_a_missing_file(self, files):
        files[0].unlink()
        with pytest.raises(FileNotFoundError):
            PictureKeys("", 1).key(files)

    def test_of_contents(self):
        assert content_key(b"ab", b"c") != content_key(b"a", b"bc")
        assert content_key(b"ab") == content_key(memoryview(b"ab"))


class TestKnown:
    def test_told_and_forgotten(self, files):
        keys = PictureKeys("", 10)
        key = keys.key(files)
        assert not keys.is_known(key)
        keys.tell(key)
        assert keys.is_known(key)
        keys.forget()
        assert not keys.is_known(key)

    def test_a_key_in_the_same_place_is_no_lie(self):
        keys = PictureKeys("", 1)
        told = [number.to_bytes(8, "little") + bytes(8) for number in range(1, 1000)]
        for key in told:
            keys.tell(key)
        known = [key for key in told if keys.is_known(key)]
        assert len(known) == 16  # of the one row that there is
        assert not keys.is_known((2000).to_bytes(8, "little") + bytes(8))

    def test_as_many_as_there_will_be_are_all_known(self):
        keys = PictureKeys("", 20_000)
        told = [content_key(number.to_bytes(4, "little")) for number in range(20_000)]
        for key in told:
            keys.tell(key)
            keys.tell(key)
        assert all(keys.is_known(key) for key in told)

    def test_zero_is_a_key_like_others(self):
        assert not PictureKeys("", 1).is_known(bytes(16))

    def test_other_processes_are_told(self, files):
        from torch.multiprocessing import get_context

        keys = PictureKeys("", 10)
        key = keys.key(files)
        context = get_context("fork")
        asked, answers = context.Event(), context.Queue()
        process = context.Process(target=_answer, args=(keys, key, asked, answers))
        process.start()
        keys.tell(key)
        asked.set()
        assert answers.get(timeout=60) is True
        process.join()


def _answer(keys, key, asked, answers):
    asked.wait()
    answers.put(keys.is_known(key))
