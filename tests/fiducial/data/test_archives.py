import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from contextlib import suppress

import pytest

from fiducial.data import archives
from fiducial.data.archives import archive_stem, extract, images_root, safe_relative
from fiducial.errors import SourceError, StorageError

FILES = {"a.jpg": b"first", "inner/b.jpg": b"second" * 1000, "inner/deep/c.jpg": b""}


def entry(name, kind=tarfile.REGTYPE, data=b"", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, io.BytesIO(data)


def make_tar(path, *entries, mode="w"):
    with tarfile.open(path, mode) as tar:
        for info, data in entries:
            tar.addfile(info, data)
    return path


def make_zip(path, files, mode_bits=stat.S_IFREG | 0o644):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as box:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode_bits << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            box.writestr(info, data)
    return path


def make(path, files=FILES):
    if path.suffix == ".zip":
        return make_zip(path, files)
    return make_tar(path, *(entry(n, data=d) for n, d in files.items()), mode="w" if path.suffix == ".tar" else "w:gz")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])
class TestExtract:
    def test_every_file_comes_back(self, tmp_path, name):
        extract(make(tmp_path / name), tmp_path / "out")
        assert contents(tmp_path / "out") == FILES

    def test_it_says_how_far_it_is(self, tmp_path, name, monkeypatch, caplog):
        monkeypatch.setattr("fiducial.progress.LINE_EVERY_S", 0.0)
        caplog.set_level("INFO", "fiducial")
        extract(make(tmp_path / name), tmp_path / "out")
        assert len(caplog.messages) == 2  # files with something in them
        assert all(message.startswith(f"unpacking {name}: 0 MiB, ") for message in caplog.messages)

    def test_a_full_disk(self, tmp_path, name, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(archives, "_write", full)
        with pytest.raises(StorageError, match=r"no space left in .* MiB free\)"):
            extract(make(tmp_path / name), tmp_path / "out")

    @pytest.mark.parametrize(
        "bad", ["/etc/evil", "../evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"]
    )
    def test_names_that_lead_out_are_refused(self, tmp_path, name, bad):
        archive = make(tmp_path / name, {"good.jpg": b"x", bad: b"evil"})
        with pytest.raises(SourceError, match="leads out of the folder"):
            extract(archive, tmp_path / "deep" / "out")
        assert not list(tmp_path.rglob("*evil*"))

    def test_declared_size_over_the_limit(self, tmp_path, name):
        archive = make(tmp_path / name, {"bomb": bytes(1 << 20)})
        with pytest.raises(SourceError, match="unpacks to more than"):
            extract(archive, tmp_path / "out", max_bytes=1 << 19)
        assert not contents(tmp_path / "out")
        extract(archive, tmp_path / "out", max_bytes=1 << 20)

    def test_number_of_entries_over_the_limit(self, tmp_path, name):
        with pytest.raises(SourceError, match="more entries"):
            extract(make(tmp_path / name), tmp_path / "out", max_members=2)

    def test_a_link_that_was_in_the_target_leads_nowhere(self, tmp_path, name):
        (tmp_path / "outside").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "inner").symlink_to(tmp_path / "outside")
        with pytest.raises(SourceError, match="leads out"):
            extract(make(tmp_path / name), tmp_path / "out")
        assert not contents(tmp_path / "outside")

    def test_a_cut_archive_is_damaged(self, tmp_path, name):
        archive = make(tmp_path / name, {"a": os.urandom(4000), "b": os.urandom(4000)})
        for kept in (6000, 4700):  # inside the data of b; inside the header of b (tar)
            (tmp_path / "cut").write_bytes(archive.read_bytes()[:kept])
            with pytest.raises(SourceError, match="damaged archive"):
                extract(tmp_path / "cut", tmp_path / "out")

    def test_no_archive_at_all(self, tmp_path, name):
        for content, told in {b"<html>404</html>" * 100: "a web page", bytes(999): "zeros", b"hello" * 200: ""}.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(SourceError, match=f"damaged archive.*{told}"):
                extract(tmp_path / name, tmp_path / "out")

    def test_finder_litter_is_left_out(self, tmp_path, name):
        extract(
            make(tmp_path / name, {"__MACOSX/._a.jpg": b"", "i/._a.jpg": b"", ".DS_Store": b"", "a.jpg": b"x"}),
            tmp_path / "o",
        )
        assert contents(tmp_path / "o") == {"a.jpg": b"x"}

    def test_a_file_where_a_folder_is_needed(self, tmp_path, name):
        with pytest.raises(SourceError, match="could not be unpacked"):
            extract(make(tmp_path / name, {"a": b"", "a/b": b""}), tmp_path / "out")


class TestTar:
    @pytest.mark.parametrize(
        ("kind", "told"),
        [
            (tarfile.SYMTYPE, "symbolic link"),
            (tarfile.LNKTYPE, "hard link"),
            (tarfile.CHRTYPE, "device"),
            (tarfile.BLKTYPE, "device"),
            (tarfile.FIFOTYPE, "named pipe"),
        ],
    )
    def test_links_and_devices_are_refused(self, tmp_path, kind, told):
        archive = make_tar(tmp_path / "x.tar", entry("a", data=b"1"), entry("odd", kind, link="a"))
        with pytest.raises(SourceError, match=f"'odd' is a {told}"):
            extract(archive, tmp_path / "out")
        assert contents(tmp_path / "out") == {"a": b"1"}

    def test_modes_are_not_carried_over(self, tmp_path):
        info, data = entry("tool", data=b"x")
        info.mode = 0o6777
        extract(make_tar(tmp_path / "x.tar", (info, data)), tmp_path / "out")
        assert not (tmp_path / "out" / "tool").stat().st_mode & 0o6111

    def test_a_flipped_byte_in_gzip(self, tmp_path):
        archive = make_tar(tmp_path / "x.tar", entry("a", data=os.urandom(50_000)))
        packed = bytearray(gzip.compress(archive.read_bytes()))
        packed[20_000] ^= 0xFF
        (tmp_path / "x.tar.gz").write_bytes(packed)
        with pytest.raises(SourceError, match="damaged archive"):
            extract(tmp_path / "x.tar.gz", tmp_path / "out")

    def test_a_missing_end_mark_is_told(self, tmp_path, caplog):
        archive = make_tar(tmp_path / "x.tar", entry("a", data=bytes(512)))
        (tmp_path / "cut.tar").write_bytes(archive.read_bytes()[:1024])
        extract(tmp_path / "cut.tar", tmp_path / "out")
        assert "no end mark" in caplog.text

    def test_a_repeated_file_is_the_last_one(self, tmp_path):
        extract(make_tar(tmp_path / "x.tar", entry("a", data=b"old"), entry("a", data=b"new")), tmp_path / "out")
        assert contents(tmp_path / "out") == {"a": b"new"}

    @pytest.mark.parametrize(
        "headers",
        [
            {"size": "-5"},
            {"size": "-512"},
            {"size": "many"},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "abc"},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1099511627776"},
            {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1099511627776"},
            {"GNU.sparse.size": "9", "GNU.sparse.numblocks": "x"},
            {"mtime": "never"},
            {"path": "\0"},
            {"hdrcharset": "BINARY"},
        ],
    )
    def test_pax_headers_that_make_no_sense(self, tmp_path, headers):
        info, data = entry("a", data=b"x")
        info.pax_headers = headers
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(info, data)
        with suppress(SourceError):  # some of them are ignored
            extract(tmp_path / "x.tar", tmp_path / "out")
        assert sum(map(len, contents(tmp_path / "out").values())) <= 1

    def test_a_sparse_member(self, tmp_path):
        header = bytearray(entry("a", tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"77777777777\0"  # the size that it unpacks to
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "x.tar").write_bytes(header + bytes(1024))
        with pytest.raises(SourceError, match="a sparse member"):
            extract(tmp_path / "x.tar", tmp_path / "out")

    def test_a_name_that_fills_the_memory(self, tmp_path):
        archive = make_tar(tmp_path / "x.tar.gz", entry("@", tarfile.GNUTYPE_LONGNAME, bytes(2 << 20)), mode="w:gz")
        with pytest.raises(SourceError, match="an extended header of 2097152 bytes"):
            extract(archive, tmp_path / "out")

    def test_a_zip_within_is_a_file_like_others(self, tmp_path):
        inner = make_zip(tmp_path / "inner.zip", {"secret": b"x"}).read_bytes()
        archive = make_tar(tmp_path / "x.tar", entry("a", data=b"x"), entry("inner.zip", data=inner))
        extract(archive, tmp_path / "out")
        assert set(contents(tmp_path / "out")) == {"a", "inner.zip"}

    def test_what_stands_behind_the_end_is_not_read_for_ever(self, tmp_path):
        archive = make_tar(tmp_path / "x.tar", entry("a", data=b"x"))
        with archive.open("ab") as file:
            file.truncate(archive.stat().st_size + (65 << 20))
        with pytest.raises(SourceError, match="more than 64 MiB behind its end"):
            extract(archive, tmp_path / "out")


class TestBounds:
    @pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
    def test_many_times_its_size(self, tmp_path, name, monkeypatch):
        monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 20)
        archive = make(tmp_path / name, {f"{i}": bytes(1 << 20) for i in range(4)})
        with pytest.raises(SourceError, match="unpacks to more than 250 times its own size"):
            extract(archive, tmp_path / "out")

    def test_a_zip_is_refused_by_its_directory(self, tmp_path, monkeypatch):
        free = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: free)
        archive = make_zip(tmp_path / "x.zip", {f"{i}": os.urandom(1 << 20) for i in range(4)})
        with pytest.raises(SourceError, match="that are free on the disk"):
            extract(archive, tmp_path / "out")
        assert not contents(tmp_path / "out")
        with pytest.raises(SourceError, match="that are free on the disk"):  # a tar has no directory
            extract(make(tmp_path / "x.tar", {f"{i}": bytes(1 << 20) for i in range(4)}), tmp_path / "out2")

    def test_zip_members_that_share_their_bytes(self, tmp_path):
        raw = bytearray(make_zip(tmp_path / "x.zip", {"a": os.urandom(5000), "b": os.urandom(5000)}).read_bytes())
        second = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1)
        raw[second + 42 : second + 46] = (0).to_bytes(4, "little")  # where the data of b are: those of a
        (tmp_path / "x.zip").write_bytes(raw)
        with pytest.raises(SourceError, match=r"damaged archive .*overlap"):
            extract(tmp_path / "x.zip", tmp_path / "out")
        assert not contents(tmp_path / "out")

    @pytest.mark.parametrize("twins", [("A.png", "a.png"), ("\u00e9.png", "e\u0301.png")])
    def test_names_that_a_disk_cannot_tell_apart(self, tmp_path, monkeypatch, twins):
        archive = make(tmp_path / "x.tar", dict.fromkeys(twins, b"x"))
        extract(archive, tmp_path / "out")  # this one can
        assert sorted(contents(tmp_path / "out")) == sorted(twins)
        (tmp_path / "out" / twins[1]).unlink()
        (tmp_path / "out" / twins[1]).hardlink_to(tmp_path / "out" / twins[0])  # as another disk shows it
        with pytest.raises(SourceError, match="does not tell capitals or accents apart"):
            extract(archive, tmp_path / "out")

    def test_a_name_that_is_too_long(self, tmp_path):
        with pytest.raises(StorageError, match="a name is too long"):
            extract(make(tmp_path / "x.zip", {"a" * 300: b"x"}), tmp_path / "out")


class TestZip:
    @pytest.mark.parametrize(
        ("bits", "told"),
        [(stat.S_IFLNK, "symbolic link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "named pipe")],
    )
    def test_unix_kinds_other_than_files_are_refused(self, tmp_path, bits, told):
        with pytest.raises(SourceError, match=told):
            extract(make_zip(tmp_path / "x.zip", {"odd": b"/etc/passwd"}, bits | 0o777), tmp_path / "out")
        assert not contents(tmp_path / "out")

    def test_encrypted(self, tmp_path):
        raw = bytearray(make_zip(tmp_path / "x.zip", {"a": b"secret"}).read_bytes())
        raw[raw.index(b"PK\x01\x02") + 8] |= 1  # general purpose bit 0 of the central entry
        (tmp_path / "x.zip").write_bytes(raw)
        with pytest.raises(SourceError, match="encrypted"):
            extract(tmp_path / "x.zip", tmp_path / "out")

    def test_more_data_than_declared(self, tmp_path):
        raw = bytearray(make_zip(tmp_path / "x.zip", {"a": bytes(1 << 20)}).read_bytes())
        at = raw.index(b"PK\x01\x02") + 24  # uncompressed size of the central entry
        raw[at : at + 4] = (10).to_bytes(4, "little")
        (tmp_path / "x.zip").write_bytes(raw)
        with pytest.raises(SourceError, match="damaged archive"):
            extract(tmp_path / "x.zip", tmp_path / "out", max_bytes=1000)
        assert sum(map(len, contents(tmp_path / "out").values())) <= 10

    def test_a_wrong_checksum(self, tmp_path):
        raw = bytearray(make_zip(tmp_path / "x.zip", {"a": b"x" * 100}).read_bytes())
        raw[raw.index(b"PK\x01\x02") + 16] ^= 0xFF
        (tmp_path / "x.zip").write_bytes(raw)
        with pytest.raises(SourceError, match="damaged archive"):
            extract(tmp_path / "x.zip", tmp_path / "out")


def test_suffixes():
    assert [archive_stem(n) for n in ("t.tar.gz", "T.TGZ", "a.b.tar", "x.zip", "x.gz", "x.pth")] == [
        *("t", "T", "a.b", "x"), None, None
    ]  # fmt: skip


def test_safe_relative_keeps_ordinary_names():
    assert str(safe_relative("./a b/ü..x/日.jpg")) == "a b/ü..x/日.jpg"
    assert safe_relative("a\0b") is None


class TestImagesRoot:
    ROWS = ("board1/U5_white.jpg", "board2/U7")  # a file, and the beginning of a name

    def images(self, root):
        for name in ("board1/U5_white.jpg", "board2/U7_white.jpg"):
            (root / name).parent.mkdir(parents=True)
            (root / name).touch()

    @pytest.mark.parametrize("inner", [".", "images", "export/2024/images", "a/b/c/d"])
    def test_root_or_inner_folder(self, tmp_path, inner):
        self.images(tmp_path / inner)
        (tmp_path / "other").mkdir()
        assert images_root(tmp_path, self.ROWS) == tmp_path / inner

    def test_the_root_wins_over_inner_folders_and_the_near_over_the_far(self, tmp_path):
        self.images(tmp_path / "z")
        self.images(tmp_path / "a" / "b")
        assert images_root(tmp_path, self.ROWS) == tmp_path / "z"
        self.images(tmp_path)
        assert images_root(tmp_path, self.ROWS) == tmp_path

    def test_one_missing_image_does_not_hide_the_rest(self, tmp_path):
        self.images(tmp_path / "inner")
        assert images_root(tmp_path, ("gone.jpg", *self.ROWS)) == tmp_path / "inner"

    def test_rows_without_a_folder_are_found_by_the_beginning_of_their_file_names(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "U5_white.jpg").touch()
        assert images_root(tmp_path, ["U5", "U7"]) == tmp_path / "in"

    def test_a_root_that_fits_is_not_searched(self, tmp_path, monkeypatch):
        self.images(tmp_path)
        monkeypatch.setattr(archives, "_subfolders", None)  # would fail if called
        assert images_root(tmp_path, self.ROWS) == tmp_path

    def test_nothing_found(self, tmp_path):
        assert images_root(tmp_path, self.ROWS) == tmp_path  # the check of the files names each of them

    def test_images_missing_from_a_folder_that_is_there_come_from_nowhere_else(self, tmp_path, caplog):
        self.images(tmp_path)
        self.images(tmp_path / "old")
        for path in tmp_path.glob("board*/*"):
            path.unlink()
        assert images_root(tmp_path, self.ROWS) == tmp_path
        (tmp_path / "board2").rmdir()
        assert images_root(tmp_path, self.ROWS) == tmp_path
        (tmp_path / "board1").rmdir()
        assert not caplog.text
        assert images_root(tmp_path, self.ROWS) == tmp_path / "old"
        assert f"holds no board1/U5_white.jpg: reading the images below {tmp_path / 'old'}" in caplog.text

    def test_two_inner_folders_are_not_chosen_from(self, tmp_path):
        for name in ("2023", "2024"):
            self.images(tmp_path / name)
        with pytest.raises(SourceError, match=r"both 2023 and 2024 hold .* name the folder"):
            images_root(tmp_path, self.ROWS)
        next(tmp_path.glob("2023/board2/*")).unlink()
        assert images_root(tmp_path, self.ROWS) == tmp_path / "2024"

    def test_absolute_rows_need_no_search(self, tmp_path):
        self.images(tmp_path / "inner")
        assert images_root(tmp_path, ["/data/board1/U5_white.jpg"]) == tmp_path

    @pytest.mark.parametrize("sample", ["a\0b/c", "x" * 300, "x" * 300 + "/y", "../..", "."])
    def test_names_that_cannot_be(self, tmp_path, sample):
        (tmp_path / "inner").mkdir()
        assert images_root(tmp_path, [sample]) in (tmp_path, tmp_path / "inner")
        assert images_root(tmp_path / "no folder", [sample]) == tmp_path / "no folder"
