"""Files made to fill the memory, to run for ever, or to overflow a stack: each is one line, and soon."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from fiducial.checkpoints import budget
from fiducial.checkpoints.reading import read, read_raw
from fiducial.errors import CheckpointError

HEAD, STOP, MARK, MEMO = b"\x80\x04", b".", b"(", b"\x94"
FLOATS, REBUILD = b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
BOMB = "made to fill the memory"


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    """A hundredth of the room, so that the bombs may be small."""
    from fiducial.checkpoints import encryption, formats, zips

    def objects(size):
        return (640 << 10) + 4 * size

    def inflated(size):
        return (160 << 10) + 16 * size

    for module in (budget, formats, zips, encryption):
        for name, limit in (("object_limit", objects), ("inflated_limit", inflated)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, limit)


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(size, stride, offset=0, count=10, key="0", file="zip"):
    """The opcodes of a tensor of floats in storage ``key``."""
    pid = (
        MARK + text("storage") + FLOATS + text(key) + text("cpu") + number(count) + (b"N" if file == "legacy" else b"")
    )
    shape = MARK + b"".join(map(number, size)) + b"t" + MARK + b"".join(map(number, stride)) + b"t"
    return REBUILD + MARK + pid + b"tQ" + number(offset) + shape + b"\x89}tR"


def zipped(path, pickled, storages=(bytes(40),), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/version", "3\n")
        for index, content in enumerate(storages):
            archive.writestr(f"m/data/{index}", content, zipfile.ZIP_STORED)
    return path


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def chain(first, step, count):
    """``first``, then ``count`` times ``step`` around what was memorised last."""
    opcodes = [first, MEMO]
    for index in range(count):
        opcodes += [b"0", step(b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)), MEMO]
    return HEAD + b"".join(opcodes) + STOP


def memorised_bytes(size):
    return b"B" + struct.pack("<I", size) + bytes(size) + MEMO


class TestPickles:
    CYCLES = {
        "a dict in itself": b"}" + MEMO + text("state_dict") + b"h\x00s" + text("w") + tensor((10,), (1,)) + b"s",
        "a list in itself": (
            b"}" + text("x") + b"]" + MEMO + b"h\x00a" + b"s" + text("w") + tensor((10,), (1,)) + b"s"
        ),
        "in turns": (
            b"}"
            + MEMO
            + text("model")
            + b"}"
            + MEMO
            + text("model")
            + b"h\x00s"
            + text("w")
            + tensor((10,), (1,))
            + b"ss"
        ),
        "an object in itself": (
            b"}"
            + text("x")
            + b"cargparse\nNamespace\n)\x81"
            + MEMO
            + b"}"
            + text("me")
            + b"h\x00sb"
            + b"s"
            + text("w")
            + tensor((10,), (1,))
            + b"s"
        ),
    }

    @pytest.mark.parametrize("form", CYCLES)
    def test_cycles_are_cut(self, tmp_path, form):
        checkpoint = read(zipped(tmp_path / "m.pth", HEAD + self.CYCLES[form] + STOP))
        assert list(checkpoint.state_dict) == ["w"]
        pickle.dumps(checkpoint.raw)
        assert len(repr(checkpoint.raw)) < 1000  # a walk over it ends

    BOMBS = {
        "empty dicts": HEAD + b"}" * 40_000 + STOP,
        "marks": HEAD + b"(" * 40_000 + STOP,
        "copies of bytes": HEAD
        + memorised_bytes(100_000)
        + b"0c_codecs\nencode\n"
        + MEMO
        + b"0"
        + b"X"
        + struct.pack("<I", 50_000)
        + b"x" * 50_000
        + text("latin1")
        + b"\x86"
        + MEMO
        + b"0"
        + b"h\x01h\x02R" * 2000
        + STOP,
        "copies of a list": HEAD
        + b"ccollections\ndeque\n"
        + MEMO
        + b"0("
        + b"N" * 1000
        + b"l\x85"
        + MEMO
        + b"0"
        + b"h\x00h\x01R" * 1000
        + STOP,
        "lists that double": chain(b"]", lambda last: b"(" + last * 2 + b"l", 40),
        "dicts that double": chain(b"}", lambda last: b"}" + text("a") + last + b"s" + text("b") + last + b"s", 40),
        "tuples that double": chain(b")", lambda last: last * 2 + b"\x86", 40),
        "deep lists": HEAD + b"]" * 500 + b"a" * 499 + STOP,
        "deep tuples": HEAD + b")" + b"\x85" * 500 + STOP,
        "a deep key": HEAD + b"})" + b"\x85" * 500 + b"Ns" + STOP,
        "a long number": HEAD + b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + STOP,
    }

    @pytest.mark.parametrize("name", BOMBS)
    @pytest.mark.parametrize("form", ["zip", "pickle"])
    def test_bombs(self, tmp_path, name, form):
        path = tmp_path / "m.pth"
        zipped(path, self.BOMBS[name]) if form == "zip" else path.write_bytes(self.BOMBS[name])
        refused(path, BOMB)

    def test_pickles_that_double_within_pickles(self, tmp_path):
        pickled = pickle.dumps(1, 2)
        for _ in range(16):  # each holds the one before once, and opens it four times
            opens = b"h\x00h\x01\x85R0" * 4
            pickled = (
                HEAD
                + b"ctorch.storage\n_load_from_bytes\n"
                + MEMO
                + b"B"
                + struct.pack("<I", len(pickled))
                + pickled
                + MEMO
                + opens
                + b"N."
            )
        (tmp_path / "m.pth").write_bytes(pickled)
        refused(tmp_path / "m.pth", BOMB)

    def test_arrays_over_one_buffer(self, tmp_path):
        call = b"h\x02(h\x00h\x01" + number(25_000) + b"\x85" + text("C") + b"tR"
        pickled = (
            HEAD + memorised_bytes(100_000) + b"cnumpy\ndtype\n(" + text("f4") + b"K\x00K\x01tR" + MEMO
            + b"cnumpy.core.numeric\n_frombuffer\n" + MEMO + call * 60 + STOP
        )  # fmt: skip
        (tmp_path / "m.pth").write_bytes(pickled)
        refused(tmp_path / "m.pth", BOMB)

    @pytest.mark.parametrize(
        "opcodes",
        [
            b"\x96" + struct.pack("<Q", 1 << 40) + b"x",  # a byte array of a terabyte
            b"\x8e" + struct.pack("<Q", 1 << 40) + b"x",
            b"\x8d" + struct.pack("<Q", 1 << 62) + b"x",
            b"\x95" + struct.pack("<Q", 1 << 40) + b"x",
            b"cbuiltins\nbytearray\n" + number(1 << 40) + b"\x85R",
            b"cnumpy\ndtype\n" + text("S2000000000000") + b"\x85R",
            b"r" + struct.pack("<I", 1 << 31),
            b"c" + b"x" * 100_000,
            b"L" + b"9" * 100_000 + b"L\n",
            tensor((10,), (1,)) + b"(" + b"K\x00" * 100 + b"lN" + b"s",  # items for a tensor
        ],
    )
    @pytest.mark.parametrize("form", ["zip", "pickle"])
    def test_what_is_not_there(self, tmp_path, opcodes, form):
        path, pickled = tmp_path / "m.pth", HEAD + opcodes + STOP
        zipped(path, pickled) if form == "zip" else path.write_bytes(pickled)
        refused(path)

    def test_names_cannot_paint_the_terminal(self, tmp_path):
        path = tmp_path / "m.pth"
        path.write_bytes(HEAD + text("os") + text("\x1b[31m" + "sys\ntem" * 1000) + b"\x93)R.")
        refused(path, "would run code")
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 1000


class TestShapes:
    SHAPES = {
        "beyond the storage": ((11,), (1,), 0),
        "beyond it by strides": ((2, 2), (9, 1), 0),
        "beyond it by the offset": ((10,), (1,), 1),
        "a negative offset": ((5,), (1,), -1),
        "a negative stride": ((5,), (-1,), 4),
        "a negative length": ((-5,), (1,), 0),
        "repeated a trillion times": ((1_000_000, 1_000_000), (0, 0), 0),
        "more strides than lengths": ((5,), (1, 1), 0),
        "many dimensions": ((1,) * 100, (1,) * 100, 0),
        "beyond any integer": ((2**62, 2**62, 4), (0, 0, 1), 0),
    }

    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("form", ["zip", "legacy"])
    def test_impossible(self, tmp_path, name, form):
        path, (size, stride, offset) = tmp_path / "m.pth", self.SHAPES[name]
        pickled = HEAD + b"}" + text("w") + tensor(size, stride, offset, file=form) + b"s" + STOP
        if form == "zip":
            zipped(path, pickled)
        else:
            heads = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
            path.write_bytes(heads + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 10) + bytes(40))
        refused(path, "damaged")

    @pytest.mark.parametrize("size", [(10,), (3, 3), (0,), ()])
    def test_possible(self, tmp_path, size):
        pickled = HEAD + b"}" + text("w") + tensor(size, (1, 3)[: len(size)]) + b"s" + STOP
        assert read(zipped(tmp_path / "m.pth", pickled)).state_dict["w"].shape == size

    def test_expanded_tensors_are_kept(self, tmp_path):
        torch.save({"w": torch.arange(3.0).expand(1000, 3)}, tmp_path / "m.pth")
        assert torch.equal(read(tmp_path / "m.pth").state_dict["w"][999], torch.arange(3.0))

    @pytest.mark.parametrize("count", [-1, 1 << 40])
    def test_storages_larger_than_an_old_file(self, tmp_path, count):
        pickled = HEAD + b"}" + text("w") + tensor((10,), (1,), count=count, file="legacy") + b"s" + STOP
        heads = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        (tmp_path / "m.pth").write_bytes(heads + pickled + pickle.dumps(["0"], 2) + bytes(48))
        refused(tmp_path / "m.pth")


class TestContainers:
    @pytest.mark.parametrize("content", [b"N0" * 500_000, b"}" * 500_000, bytes(1_000_000)])
    def test_a_pickle_that_grows(self, tmp_path, content):
        path = zipped(tmp_path / "m.pth", HEAD + content + b"N.", compression=zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10_000
        refused(path, BOMB)

    def test_tensors_that_grow(self, tmp_path):
        path = tmp_path / "m.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/data.pkl", HEAD + b"}" + text("w") + tensor((10,), (1,)) + b"s" + STOP)
            archive.writestr("m/data/0", bytes(4_000_000))
        refused(path, BOMB)

    def test_packed_weights_are_read(self, tmp_path):
        weights = torch.rand(3000)
        torch.save({"w": weights}, tmp_path / "a.pth")
        with zipfile.ZipFile(tmp_path / "a.pth") as given, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
            for name in given.namelist():
                packed.writestr(name, given.read(name))
        assert torch.equal(read(tmp_path / "b.pth").state_dict["w"], weights)

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compressions(self, tmp_path, method):
        refused(zipped(tmp_path / "m.pth", HEAD + b"}.", compression=method), "compressed")

    @pytest.mark.parametrize("size", [0, 1 << 30, 1 << 60])
    def test_a_stated_size_that_is_not_there(self, tmp_path, size):
        path = zipped(tmp_path / "m.pth", HEAD + b"}" + text("w") + tensor((10,), (1,)) + b"s" + STOP)
        content = path.read_bytes()
        place = content.rindex(b"m/data/0") - 22  # in the directory: the packed and the full size
        path.write_bytes(content[: place - 4] + struct.pack("<II", *[min(size, 2**32 - 2)] * 2) + content[place + 4 :])
        refused(path)

    def test_a_pickle_of_a_wrong_checksum(self, tmp_path):
        torch.save({"w": torch.ones(3), "note": "abcdef"}, tmp_path / "m.pth")
        content = (tmp_path / "m.pth").read_bytes()
        (tmp_path / "m.pth").write_bytes(content.replace(b"abcdef", b"abcdeg"))
        refused(tmp_path / "m.pth", "wrong checksum of data.pkl")

    def test_torch_without_checksums(self, tmp_path):
        from torch.serialization import set_crc32_options

        set_crc32_options(False)
        try:
            torch.save({"w": torch.ones(3)}, tmp_path / "m.pth")
        finally:
            set_crc32_options(True)
        assert torch.equal(read(tmp_path / "m.pth").state_dict["w"], torch.ones(3))

    @pytest.mark.parametrize("stated", [1 << 30, 4_000_000])
    def test_an_archive_whose_member_grows(self, tmp_path, stated):
        with gzip.open(tmp_path / "m.tlt", "wb") as file:
            member = tarfile.TarInfo("a/tlt_pytorch_model.pth")
            member.size = stated
            file.write(member.tobuf() + bytes(4_000_000))
        refused(tmp_path / "m.tlt", BOMB)

    def test_an_archive_that_grows_before_its_member(self, tmp_path):
        with tarfile.open(tmp_path / "m.tlt", "w:gz") as archive:
            member = tarfile.TarInfo("other")
            member.size = 4_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        refused(tmp_path / "m.tlt", BOMB)

    def test_headers_of_an_archive_that_grow(self, tmp_path):
        with gzip.open(tmp_path / "m.tlt", "wb") as file:
            header = tarfile.TarInfo("x")
            header.type, header.size = tarfile.XHDTYPE, 1 << 33
            file.write(header.tobuf() + b"9" * 4_000_000)
        refused(tmp_path / "m.tlt")

    @pytest.mark.parametrize("content", [b"plain text", b"", b"\x80\x02}."])
    def test_gzip_around_something_else(self, tmp_path, content):
        (tmp_path / "m.tlt").write_bytes(gzip.compress(content))
        refused(tmp_path / "m.tlt", "without tlt_pytorch_model.pth")


class TestSafetensors:
    HEADERS = {
        "longer than the file": (1 << 26, b"{}"),
        "no JSON": (None, b"{" * 100),
        "deep JSON": (None, b'{"a":' + b"[" * 100_000),
        "an unknown type": (None, b'{"w":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}'),
        "beyond the file": (None, b'{"w":{"dtype":"F32","shape":[100],"data_offsets":[0,400]}}'),
        "another size than the shape": (None, b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}'),
        "a negative shape": (None, b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'),
        "a shape beyond integers": (
            None,
            b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
        ),
        "overlapping": (
            None,
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
        ),
        "backwards": (None, b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
        "not UTF-8": (None, b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    }

    @pytest.mark.parametrize("name", HEADERS)
    def test_headers(self, tmp_path, name):
        length, header = self.HEADERS[name]
        content = struct.pack("<Q", length or len(header)) + header + bytes(8)
        (tmp_path / "m.safetensors").write_bytes(content)
        refused(tmp_path / "m.safetensors")

    def test_shapes_alone(self, tmp_path):
        save_file({"w": torch.ones(2, 3)}, tmp_path / "m.safetensors")
        raw, _ = read_raw(tmp_path / "m.safetensors", device="meta")
        assert raw["w"].is_meta
        assert raw["w"].shape == (2, 3)


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes of Unix")
class TestNoFiles:
    def test_devices(self):
        refused("/dev/zero", "a device or a pipe")

    def test_pipes(self, tmp_path):
        os.mkfifo(tmp_path / "m.pth")
        refused(tmp_path / "m.pth", "a device or a pipe")

    @pytest.mark.parametrize("opcode", [b"\x8e", b"\x96", b"\x8d"])
    def test_holes(self, tmp_path, opcode):
        with (tmp_path / "m.pth").open("wb") as file:
            file.write(HEAD + opcode + struct.pack("<Q", 1 << 40))
            file.truncate((1 << 40) + 100)
        if (tmp_path / "m.pth").stat().st_blocks < 1000:
            refused(tmp_path / "m.pth", BOMB)
