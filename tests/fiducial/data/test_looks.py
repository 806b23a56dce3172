"""Looks at files: what has not changed is not opened again, and what has always is."""

import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fiducial.data import kept, looks
from fiducial.data.images import ImageFacts, ImageGlance, image_facts
from fiducial.data.looks import CONTENT, DECODED, GLANCE, SIZE, Look, Wrong, look_at


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store, which keeps looks at files that were written a moment ago, too."""
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "SETTLED_NS", -1)
    yield tmp_path / "cache" / kept.NAME
    kept._given_up.clear()


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened, by name."""
    names = []
    for look in (SIZE, GLANCE, DECODED, CONTENT):
        see = look.see
        monkeypatch.setitem(look.__dict__, "see", lambda path, see=see: names.append(path.name) or see(path))
    return names


def draw(path, size=(6, 4), colour="red"):
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    return [draw(tmp_path / f"{number}.png", (6 + number, 4)) for number in range(3)]


def facts(paths):
    return list(look_at(DECODED, paths))


class TestKept:
    def test_nothing_is_opened_twice(self, files, opened):
        first = facts(files)
        assert first == [ImageFacts((6 + number, 4), None, False) for number in range(3)]
        assert sorted(opened) == ["0.png", "1.png", "2.png"]
        assert facts(map(str, files)) == first
        assert len(opened) == 3

    def test_what_was_decoded_need_not_be_glanced_at(self, files, opened):
        facts(files)
        assert list(look_at(GLANCE, files)) == [ImageGlance((6 + number, 4), False) for number in range(3)]
        assert list(look_at(SIZE, files)) == [(6, 4), (7, 4), (8, 4)]
        assert len(opened) == 3

    def test_what_was_glanced_at_is_still_decoded(self, files, opened):
        list(look_at(SIZE, files))
        list(look_at(GLANCE, files))
        facts(files)
        assert len(opened) == 9
        assert facts(files)
        assert len(opened) == 9

    def test_files_that_are_looked_at_together(self, files):
        """What was found of some files holds as long as none of them changes; their order is part of the question."""
        seen = []

        def names(*paths):
            seen.append([path.name for path in paths])
            return " ".join(path.name for path in paths)

        look = Look("names 1", names, str, str)
        pairs = [(files[0], files[1]), (str(files[1]), files[0]), (files[2],)]
        for _ in range(2):
            assert list(look_at(look, pairs)) == ["0.png 1.png", "1.png 0.png", "2.png"]
            assert len(seen) == 3
        draw(files[1], (9, 9))
        assert list(look_at(look, pairs)) == ["0.png 1.png", "1.png 0.png", "2.png"]
        assert len(seen) == 5
        files[0].unlink()
        assert list(look_at(look, pairs[2:])) == ["2.png"]
        assert len(seen) == 5
        for _ in range(2):  # nothing is kept of what is not there
            list(look_at(look, pairs[:1]))
        assert len(seen) == 7

    def test_16_bits(self, tmp_path, opened):
        deep = tmp_path / "deep.png"
        Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(deep)
        for _ in range(2):
            assert facts([deep]) == [image_facts(deep)] == [ImageFacts((4, 4), 4095, False)]
            assert list(look_at(GLANCE, [deep])) == [ImageGlance((4, 4), True)]
        assert opened == ["deep.png"]

    def test_content(self, files, opened):
        first = list(look_at(CONTENT, files))
        assert list(look_at(CONTENT, files)) == first
        assert len(set(first)) == len(opened) == 3

    def test_equal_facts_are_one_object(self, tmp_path):
        paths = [draw(tmp_path / f"{number}.png") for number in range(50)]
        for _ in range(2):
            assert len({id(found) for found in facts(paths)}) == 1

    def test_another_cache_folder_knows_nothing(self, files, opened, tmp_path, monkeypatch):
        facts(files)
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "other"))
        facts(files)
        assert len(opened) == 6

    def test_by_another_path_it_is_another_file(self, files, opened, tmp_path):
        facts(files)
        (tmp_path / "link.png").symlink_to(files[0])
        assert facts([tmp_path / "link.png"]) == facts(files[:1])
        assert opened[3:] == ["link.png"]

    def test_two_processes_at_once(self, files):
        code = (
            "import sys; from fiducial.data import kept; kept.SETTLED_NS = -1;"
            "from fiducial.data.looks import DECODED, look_at; print([f.size for f in look_at(DECODED, sys.argv[1:])])"
        )
        command = [sys.executable, "-c", code, *map(str, files)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate()[0] for process in running] == ["[(6, 4), (7, 4), (8, 4)]\n"] * 2


class TestChanged:
    """A file that changed is looked at, however it changed."""

    @pytest.fixture
    def known(self, tmp_path):
        path = draw(tmp_path / "a.png")
        assert facts([path]) == [ImageFacts((6, 4), None, False)]
        return path

    def test_in_place_with_the_same_size_and_times(self, known):
        """All that ``touch -r`` can bring back: the time of the inode's change stays."""
        before = known.stat()
        data = bytearray(known.read_bytes())
        data[len(data) // 2] ^= 0xFF
        with known.open("r+b") as file:
            file.write(data)
        os.utime(known, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (known.stat().st_size, known.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert isinstance(facts([known])[0], Wrong)

    def test_in_place_with_another_time(self, known):
        data = known.read_bytes()
        os.utime(known, ns=(1, 1))
        facts([known])
        known.write_bytes(data[:-20] + b"x" * 20)
        os.utime(known, ns=(2, 2))
        assert isinstance(next(look_at(GLANCE, [known])), Wrong)

    def test_another_size(self, known):
        draw(known, (9, 9))
        assert facts([known])[0].size == (9, 9)

    def test_deleted(self, known):
        known.unlink()
        (found,) = facts([known])
        assert found.problems[0].found == "no such file"

    def test_replaced_by_a_link(self, known, tmp_path):
        other = draw(tmp_path / "b.png", (5, 5))
        known.unlink()
        known.symlink_to(other)
        assert facts([known])[0].size == (5, 5)

    def test_a_link_that_leads_elsewhere(self, known, tmp_path):
        link = tmp_path / "link.png"
        link.symlink_to(known)
        assert facts([link])[0].size == (6, 4)
        link.unlink()
        link.symlink_to(draw(tmp_path / "b.png", (5, 5)))
        assert facts([link])[0].size == (5, 5)

    def test_replaced_by_a_folder(self, known):
        known.unlink()
        known.mkdir()
        (found,) = facts([known])
        assert found.problems[0].found == "a folder, not a file"

    def test_changed_while_it_was_looked_at(self, known, monkeypatch):
        draw(known, (7, 7))
        see = DECODED.see

        def slow(path):
            found = see(path)
            draw(path, (8, 8))
            return found

        monkeypatch.setitem(DECODED.__dict__, "see", slow)
        facts([known])
        monkeypatch.setitem(DECODED.__dict__, "see", see)
        assert facts([known])[0].size == (8, 8)

    def test_just_written_it_is_not_kept(self, tmp_path, opened, monkeypatch):
        """A second change may fall into the same tick of the clock."""
        monkeypatch.setattr(kept, "SETTLED_NS", 2 * 10**9)
        path = draw(tmp_path / "new.png")
        facts([path])
        facts([path])
        assert opened == ["new.png"] * 2


class TestWrong:
    def test_what_is_wrong_is_looked_at_again(self, tmp_path, opened):
        path = tmp_path / "a.png"
        path.write_bytes(b"no image")
        for _ in range(2):
            assert facts([path])[0].problems[0].where == str(path)
        assert opened == ["a.png"] * 2

    def test_among_others(self, files):
        files[1].write_bytes(b"")
        for _ in range(2):
            assert [isinstance(found, Wrong) for found in facts(files)] == [False, True, False]


class TestStore:
    @pytest.mark.parametrize("text", ["", "{", "7", "[]", "[1]", '["a", 2, 0, null, 0]', "{}", '"abcdef"', "null"])
    def test_records_that_say_nothing(self, files, opened, store, text):
        first = facts(files)
        with sqlite3.connect(store) as connection:
            connection.execute("UPDATE looks SET found = ?", [text])
        assert facts(files) == first
        assert len(opened) == 6

    def test_without_it(self, files, store, caplog):
        store.parent.mkdir()
        store.write_bytes(b"no database" * 1000)
        assert facts(files) == facts(files) == [image_facts(path) for path in files]
        assert len([message for message in caplog.messages if str(store) in message]) == 1

    def test_a_look_that_is_broken_off_is_kept(self, tmp_path, opened):
        paths = [draw(tmp_path / f"{number}.png") for number in range(300)]
        found = look_at(DECODED, paths)
        next(found)
        found.close()
        seen = len(opened)
        assert seen < 300
        facts(paths)
        assert len(opened) == 300

    def test_lots(self, files, opened, monkeypatch):
        monkeypatch.setattr(looks, "_AT_ONCE", 1)
        facts(files)
        facts(files)
        assert len(opened) == 3
