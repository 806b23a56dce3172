"""Which of many files are there, by the listings of their folders."""

import os

import pytest

from fiducial.data import listing
from fiducial.data.listing import not_files


@pytest.fixture
def folder(tmp_path):
    """40 files, and what looks like some."""
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("1.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    return tmp_path


def paths(folder, names):
    return [os.path.join(folder, name) for name in names]


@pytest.mark.parametrize("most", [0, 1, 32])  # names read before each file is asked for instead
def test_what_is_no_file(folder, monkeypatch, most):
    monkeypatch.setattr(listing, "_MORE", most)
    odd = ["folder.png", "gone.png", "none.png", "a\0b.png", "x" * 300, ""]
    asked = paths(folder, [*(f"{number}.png" for number in range(40)), "link.png", *odd])
    assert not_files(asked) == set(paths(folder, odd))


def test_folders_that_are_none(folder):
    asked = [os.path.join(folder, "1.png", f"{number}") for number in range(10)] + [
        f"{folder}/no/{n}" for n in range(10)
    ]
    assert not_files(asked) == set(asked)


def test_a_folder_is_listed_once_and_no_file_asked_for(folder, monkeypatch):
    monkeypatch.setattr(listing, "is_file", lambda path: pytest.fail(str(path)))
    assert not_files(paths(folder, [f"{number}.png" for number in range(40)])) == set()


def test_single_files_are_asked_for(folder, monkeypatch):
    monkeypatch.setattr(os, "scandir", lambda folder: pytest.fail(folder))
    assert not_files(paths(folder, ["1.png", "none.png"])) == set(paths(folder, ["none.png"]))
