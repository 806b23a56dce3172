"""Names that cannot be, files that are something else."""

import os

import pytest

from fiducial.data.files import is_file, is_folder, nearby, odd_name, same_name, what_bytes_are, why_unreadable

IMPOSSIBLE = ("a\0b", "x" * 300, "x" * 5000, "a/" * 3000)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_no_name_raises(tmp_path, name):
    path = tmp_path / name
    assert not is_file(path)
    assert not is_folder(path)
    assert nearby(path) == []
    assert why_unreadable(path) is not None


class TestWhyUnreadable:
    def test_a_file(self, tmp_path):
        (tmp_path / "a").write_text("x")
        assert why_unreadable(tmp_path / "a") is None

    def test_what_is_wrong(self, tmp_path):
        (tmp_path / "empty").touch()
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "circle").symlink_to("circle")
        os.mkfifo(tmp_path / "pipe")
        found = {
            "empty": "an empty file",
            "dangling": "a link to nowhere, which is not there",
            "circle": "a link to itself",
            "pipe": "a device or a pipe, not a file",
            ".": "a folder, not a file",
            "absent": "no such file",
            "empty/x": "no such file",
            "a\0b": "a name with a NUL character",
            "x" * 300: "a name longer than the disk takes",
        }
        assert {name: why_unreadable(tmp_path / name)[0] for name in found} == found

    def test_rights(self, tmp_path, monkeypatch):
        (tmp_path / "a").write_text("x")
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert why_unreadable(tmp_path / "a")[0] == "may not be read"


class TestOddName:
    @pytest.mark.parametrize("name", ["a/b.png", "a b/c.png", "./a", "ü", "a\u2028b", "", "/"])
    def test_ordinary(self, name):
        assert odd_name(name) is None

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("a\\b", "backslashes"),
            (" a", "blank"),
            ("a/ b", "blank"),
            ("a ", "blank"),
            ("a\0", "NUL"),
            ("ü" * 128, "longer"),
        ],
    )
    def test_told(self, name, found):
        assert found in odd_name(name)


def test_same_name():
    assert same_name("\u00fc.png", "u\u0308.png")
    assert not same_name("u.png", "\u00fc.png")
    assert not same_name("u.png", "u.png")


def test_nearby_finds_other_accents(tmp_path):
    (tmp_path / "u\u0308.png").touch()
    assert nearby(tmp_path / "\u00fc.png") == [tmp_path / "u\u0308.png"]


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"../.git/annex/objects/x", "git-annex pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\xc5\xd0\xd3\xc6\x20\x00", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "zip archive"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"\n <!DOCTYPE HTML><title>404", "web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "web page"),
        (bytes(512), "zeros"),
        (b"II*\0\x08", "TIFF of a kind that is not read here"),
    ],
)
def test_what_bytes_are(head, found):
    told, fix = what_bytes_are(head)
    assert found in told
    assert fix


@pytest.mark.parametrize("head", [b"", b"hello", b"\0\0x"])
def test_unknown_bytes(head):
    assert what_bytes_are(head) is None
