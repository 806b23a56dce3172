"""The parts that every task's look at its dataset is made of."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fiducial.data.checks import (
    Contents,
    Entry,
    Missing,
    check_brightness,
    check_count,
    check_overlap,
    check_repeats,
    check_whole_files,
    how_to_find,
    missing_files,
    problems_at,
    same_contents,
    shortened,
    spread,
)
from fiducial.errors import DatasetError, Problem


def test_needs_no_torch():
    code = "import sys, fiducial.data.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestSpread:
    def test_few_are_all_taken(self):
        assert spread((1, 2, 3), 3) == spread([1, 2, 3], 10) == [1, 2, 3]

    def test_hand_computed(self):
        assert spread(range(10), 4) == [0, 2, 5, 7]

    @pytest.mark.parametrize("num", [11, 19, 20, 999])
    def test_as_many_as_asked_for_and_evenly(self, num):
        chosen = spread(range(num), 10)
        steps = {b - a for a, b in itertools.pairwise(chosen)}
        assert len(chosen) == 10
        assert max(steps) - min(steps) <= 1


def test_problems_at():
    error = DatasetError.of([Problem("a.png", "is bad", "mend it"), Problem("b.png", "is worse", "throw it away")])
    assert [str(problem) for problem in problems_at("list:3", error)] == [
        "list:3 · a.png: is bad · mend it",
        "list:3 · b.png: is worse · throw it away",
    ]


def test_cut_off_images(tmp_path):
    files = [(f"list:{n}", tmp_path / f"{n}.png") for n in range(3)]
    for _, path in files:
        Image.new("RGB", (40, 40), "red").save(path)
    content = files[1][1].read_bytes()
    files[1][1].write_bytes(content[: len(content) // 2])
    (problem,) = check_whole_files(files)
    assert problem.where == "list:1"
    assert str(files[1][1]) in problem.found
    assert problem.level == "error"


class TestHowToFind:
    WORDS = {"renamed": "set ext: {suffix}", "folders": "check the root", "otherwise": "check the list"}

    def test_another_extension(self, tmp_path):
        (tmp_path / "a.JPG").touch()
        assert how_to_find(tmp_path / "a.png", **self.WORDS) == "there is a.JPG: set ext: .JPG"

    def test_no_folder(self, tmp_path):
        found = how_to_find(tmp_path / "x" / "a.png", **self.WORDS)
        assert found == f"the folder {tmp_path / 'x'} does not exist: check the root"

    def test_a_file_where_a_folder_is_meant(self, tmp_path):
        (tmp_path / "x").touch()
        found = how_to_find(tmp_path / "x" / "y" / "a.png", **self.WORDS)
        assert found == f"{tmp_path / 'x'} is a file, not a folder: check the root"

    def test_folders_that_exist_explain_nothing(self, tmp_path):
        folder = tmp_path / " odd\\folder "
        folder.mkdir()
        assert how_to_find(folder / "a.png", **self.WORDS) == "check the list"
        assert "backslashes" in how_to_find(folder / "b\\a.png", **self.WORDS)

    def test_other_capitals_and_other_kinds_of_file(self, tmp_path):
        (tmp_path / "a.txt").touch()
        assert how_to_find(tmp_path / "a.png", **self.WORDS) == "check the list"
        (tmp_path / "A.PNG").touch()
        assert how_to_find(tmp_path / "a.png", **self.WORDS) == "there is A.PNG: capitals count"

    def test_unexplained(self, tmp_path):
        assert how_to_find(tmp_path / "a.png", **self.WORDS) == "check the list"


class TestCount:
    def check(self, num: int, num_devices: int = 1) -> list[Problem]:
        size = {"batch_size": 4, "num_devices": num_devices}
        return list(check_count("list", num, "images", **size, batch_key="the.batch", devices_key="the.devices"))

    def test_enough(self):
        assert self.check(4) == self.check(8, num_devices=2) == []

    def test_less_than_a_batch(self):
        (problem,) = self.check(3)
        assert str(problem) == "list · 3 images are fewer than one batch of 4 · lower the.batch"
        assert problem.level == "error"

    def test_less_than_a_batch_for_every_device(self):
        (problem,) = self.check(7, num_devices=2)
        assert str(problem) == "list · 7 images for 2 devices with batches of 4 · lower the.batch or the.devices"
        assert problem.level == "warning"


def test_repeats():
    assert list(check_repeats("list", ["a", "b"])) == []
    (problem,) = check_repeats("list", ["a", "b", "b", "c", "c"])
    assert problem.found == "2 entries are listed more than once (first: b)"
    assert problem.level == "warning"


class TestOverlap:
    def test_by_key(self):
        train = [Entry("train:1", "a", 1), Entry("train:2", "b", 2)]
        other = [Entry("val:1", "c", 3), Entry("val:2", "d", 2)]
        (problem,) = check_overlap(train, other, "{name} is {where}")
        assert (problem.where, problem.found, problem.level) == ("val:2", "d is train:2", "warning")

    def test_no_key_equals_nothing(self):
        assert list(check_overlap([Entry("train:1", "a", None)], [Entry("val:1", "a", None)], "")) == []


class TestSameContents:
    def side(self, folder, *names):
        """Items of two files each."""
        entry = lambda item, key: Entry("".join(item), "".join(item), key)  # noqa: E731
        return Contents(names, lambda item: [folder / part for part in item], entry)

    def test_copies_are_found(self, tmp_path):
        for name, content in zip("abcdef", ("x", "y", "x", "y", "x", "x"), strict=True):
            (tmp_path / name).write_text(content)
        both = same_contents(self.side(tmp_path, "ab", "ef"), self.side(tmp_path, "dc", "cd"))
        assert [[entry.name for entry in side] for side in both] == [["ab"], ["cd"]]
        assert both[0][0].key == both[1][0].key

    def test_what_is_no_file_is_not_read_and_equals_nothing(self, tmp_path):
        (tmp_path / "a").symlink_to("/dev/zero")
        odd = self.side(tmp_path, "aa", "b\0", "cc")
        assert odd.keys() == [None, None, None]
        assert same_contents(odd, odd) == ([], [])


@pytest.mark.parametrize("word", ["CSV", "pair", "golden", "light", "dataset.", "train."])
def test_says_nothing_of_a_network(word):
    assert word not in Path(sys.modules["fiducial.data.checks"].__file__).read_text(encoding="utf-8")


class TestMissingFiles:
    def test_one_problem_for_a_missing_folder(self, tmp_path):
        (tmp_path / "here").mkdir()
        names = ["gone/a/1", "gone/b/2", "here/3", "gone/4", "here/5"]
        found = missing_files(
            [Missing(f"list:{n}", tmp_path / name, "look") for n, name in enumerate(names)], "no {path}"
        )
        assert [(problem.where, problem.found) for problem in found] == [
            ("list:0", f"no {tmp_path}/gone/a/1, and 2 more below the same folder"),
            ("list:2", f"no {tmp_path}/here/3"),
            ("list:4", f"no {tmp_path}/here/5"),
        ]


class TestShortened:
    def test_many_with_one_fix_are_counted(self):
        many = [Problem(f"list:{n}", "bad", "mend it") for n in range(601)]
        other = [Problem("list:9", "worse", "throw it away"), Problem("list:9", "odd", "mend it", "warning")]
        kept = shortened([*many, *other])
        assert [problem.where for problem in kept] == [f"list:{n}" for n in (*range(10), 9, 9)]
        assert kept[9].found == "bad (and 591 more like these)"

    @pytest.mark.parametrize("num", [1, 10, 11])
    def test_few_are_all_told(self, num):
        problems = [Problem(f"list:{n}", "bad", "mend it") for n in range(num)]
        assert shortened(problems) == problems


class TestBrightness:
    def check(self, *values):
        return list(check_brightness("list", values, "images"))

    @pytest.mark.parametrize(
        ("highest", "bits", "factor"), [(900, 10, 64), (4095, 12, 16), (9000, 14, 4), (200, 8, 256)]
    )
    def test_bits_of_a_camera(self, highest, bits, factor):
        (problem,) = self.check(None, 5, highest, 7)
        assert f"3 images of 16 bits whose values reach {highest} of 65535: a camera's {bits} bits" in problem.found
        assert problem.fix.startswith(f"multiply them by {factor} ")

    @pytest.mark.parametrize("values", [(), (None,), (1 << 14, 3), (65535,), (0, 0)])
    def test_nothing_to_say(self, values):
        assert self.check(*values) == []
