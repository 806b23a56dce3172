"""Text that somebody else wrote."""

import pytest

from fiducial.data import text
from fiducial.data.text import read_text
from fiducial.errors import DatasetError


def read(path):
    return read_text(path, kind="a list", fix="save it anew")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\r\nb\n", "a\r\nb\n"),
        ("ü€😀".encode(), "ü€😀"),
        (b"\xef\xbb\xbfa", "a"),  # a byte order mark
    ],
)
def test_as_it_is(tmp_path, content, expected):
    (tmp_path / "x.txt").write_bytes(content)
    assert read(tmp_path / "x.txt") == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "x.txt · cannot be read as a list: an empty file"),
        (b"a\n\nb\xff\n", "x.txt:3 · cannot be read as a list: byte 0xff is not UTF-8 · save it anew"),
        (b"a\nb\0", "x.txt:2 · cannot be read as a list: a NUL character"),
        ("a".encode("utf-16"), "x.txt · cannot be read as a list: it is UTF-16 text · save it anew"),
        (b"\xed\xa0\x80", "x.txt:1 · cannot be read as a list: byte 0xed is not UTF-8"),  # half of a surrogate pair
    ],
)
def test_what_is_none(tmp_path, content, found):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=found):
        read(tmp_path / "x.txt")


def test_what_is_no_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    names = {".": "a folder, not a file", "gone": "no such file", "loop": "a link to itself", "x" * 300: "longer than"}
    for name, found in names.items():
        with pytest.raises(DatasetError, match=found):
            read(tmp_path / name)
    with pytest.raises(DatasetError, match="NUL"):
        read(tmp_path / "a\0b")


def test_what_is_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_BYTES", 10)
    (tmp_path / "x.txt").write_text("12345678901")
    with pytest.raises(DatasetError, match="GiB · split it"):
        read(tmp_path / "x.txt")
