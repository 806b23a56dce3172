"""Files that somebody made to cost memory or time, or that are none: one clear error, soon."""

import gzip
import io
import os
import pickle
import resource
import struct
import tarfile
import zipfile

import pytest
import torch

from fiducial.checkpoints.reading import read, read_raw
from fiducial.errors import CheckpointError

MIB = 1 << 20


def torch_zip(path, tree, *, compression=zipfile.ZIP_STORED, more=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", tree)
        archive.writestr("a/version", "3\n")
        for name, content in more:
            archive.writestr(name, content)
    return path


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_compressed_member_that_grows_too_much(tmp_path, member):
    path = tmp_path / "z.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        with archive.open(f"a/{member}" if member != "data.pkl" else "b/data.pkl", "w") as file:
            for _ in range(200):
                file.write(bytes(MIB))
    before = peak_mib()
    with pytest.raises(CheckpointError, match="would unpack to 209,715,200 bytes"):
        read(path)
    assert peak_mib() - before < 100


def test_weights_that_are_compressed_a_little_are_read(tmp_path):
    saved = tmp_path / "plain.pth"
    torch.save({"w": torch.randn(64, 64)}, saved)
    path = tmp_path / "packed.pth"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), old.read(name), compress_type=kind)
    assert read(path).state_dict["w"].shape == (64, 64)


def eff(path, content, name="tlt_pytorch_model.pth"):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["tlt_pytorch_model.pth", "something_before_it"])
def test_an_archive_that_grows_too_much(tmp_path, name):
    before = peak_mib()
    with pytest.raises(CheckpointError, match="far more than weights do"):
        read(eff(tmp_path / "e.tlt", bytes(200 * MIB), name))
    assert peak_mib() - before < 450  # what this test itself holds included


def test_an_archive_of_weights_is_read(tmp_path):
    inner = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(3)}}, inner)
    assert read(eff(tmp_path / "e.tlt", inner.getvalue())).state_dict["w"].tolist() == [1, 1, 1]


def self_holding(name):
    tree = {"w": torch.ones(2)}
    tree[name] = tree
    return tree


@pytest.mark.parametrize("name", ["state_dict", "model", "teacher", "hyper_parameters", "optimizer_states"])
def test_a_dict_that_holds_itself(tmp_path, name):
    path = tmp_path / "c.pth"
    torch.save(self_holding(name), path)
    assert list(read(path).state_dict) == ["w"]


def test_endless_data_beside_the_weights(tmp_path):
    tree = ["x"] * 10
    for _ in range(40):
        tree = [tree, tree]
    path = tmp_path / "b.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": tree}, path)
    with pytest.raises(CheckpointError, match="without end"):
        read(path)


def test_data_nested_too_deep(tmp_path):
    path = torch_zip(tmp_path / "d.pth", b"\x80\x02" + b"}(U\x01a" * 2000 + b"N" + b"u" * 2000 + b".")
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_a_tensor_that_repeats_a_few_numbers_without_end(tmp_path):
    path = tmp_path / "s.pth"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(CheckpointError, match=r"w \[1048576, 1048576\] is made of 4 bytes"):
        read(path)


def test_a_small_repeated_tensor_is_read(tmp_path):
    path = tmp_path / "s.pth"
    torch.save({"w": torch.zeros(1).expand(8, 8)}, path)
    assert read(path).state_dict["w"].shape == (8, 8)


def test_names_that_are_no_text(tmp_path):
    path = torch_zip(tmp_path / "m.pth", b"\x80\x02}.", more=[("é", b"")])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_a_zip_that_says_its_tensor_is_larger_than_it_is(tmp_path):
    path = tmp_path / "t.pth"
    torch.save({"w": torch.ones(1000)}, path)
    raw = path.read_bytes()
    size = struct.pack("<II", 4000, 4000)
    assert size in raw
    path.write_bytes(raw.replace(size, struct.pack("<II", 1 << 30, 1 << 30)))
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 99_999_999) + b"{",
        struct.pack("<Q", 10) + b'{"a": "b"}',
        struct.pack("<Q", 64) + b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'[:64],
        struct.pack("<Q", 70) + b'{"w":{"dtype":"F32","shape":[-1,4],"data_offsets":[0,4]}}'.ljust(70),
        struct.pack("<Q", 70) + b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}'.ljust(70) + bytes(4),
    ],
)
def test_safetensors_with_a_false_header(tmp_path, header):
    path = tmp_path / "m.safetensors"
    path.write_bytes(header)
    with pytest.raises(CheckpointError):
        read(path)


def test_a_device_and_a_pipe(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        read("/dev/zero")
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="no file"):
        read(pipe)


def test_a_sparse_file_of_zeros(tmp_path):
    path = tmp_path / "zeros.pth"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(CheckpointError):
        read(path)


def test_a_gzip_file_that_is_cut_off(tmp_path):
    path = tmp_path / "e.tlt"
    path.write_bytes(gzip.compress(os.urandom(5000))[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_numbers_of_many_digits(tmp_path):
    path = tmp_path / "n.pth"
    path.write_bytes(pickle.dumps({"w": 10**100_000}))
    with pytest.raises(CheckpointError, match="no tensors"):
        read(path)


class TestWrappers:
    @pytest.mark.parametrize(
        ("written", "ours"),
        [
            ("module.model.fc.weight", "model.fc.weight"),
            ("module.module.fc.weight", "fc.weight"),
            ("_orig_mod.model.fc.weight", "model.fc.weight"),
            ("model._orig_mod.backbone._orig_mod.w", "model.backbone.w"),
            ("module._orig_mod.fc.weight", "fc.weight"),
            ("_orig_mod.module.fc.weight", "fc.weight"),
        ],
    )
    def test_what_torch_puts_into_names_is_taken_out(self, tmp_path, written, ours):
        path = tmp_path / "m.pth"
        torch.save({written: torch.ones(1)}, path)
        assert list(read(path).state_dict) == [ours]

    def test_a_network_with_a_part_named_module_keeps_it(self, tmp_path):
        path = tmp_path / "m.pth"
        torch.save({"module.fc.weight": torch.ones(1), "head.weight": torch.ones(1)}, path)
        assert list(read(path).state_dict) == ["module.fc.weight", "head.weight"]


class TestAveragedWeights:
    tree = {"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}

    def test_they_are_preferred(self, tmp_path):
        torch.save(self.tree, tmp_path / "m.pth")
        assert read(tmp_path / "m.pth").state_dict["w"] == 1

    def test_not_in_a_lightning_checkpoint(self, tmp_path):
        torch.save({**self.tree, "pytorch-lightning_version": "2.5.0"}, tmp_path / "m.ckpt")
        assert read(tmp_path / "m.ckpt").state_dict["w"] == 0


def test_structured_omegaconf_is_read_as_data(tmp_path):
    from dataclasses import dataclass, field

    from omegaconf import OmegaConf

    @dataclass
    class Optim:
        lr: float = 1e-4
        betas: list[float] = field(default_factory=lambda: [0.9, 0.99])

    @dataclass
    class Spec:
        optim: Optim = field(default_factory=Optim)
        name: str = "x"

    Optim.__module__ = Spec.__module__ = "nvidia_tao_pytorch.config"
    tree = {"state_dict": {"w": torch.ones(1)}, "hyper_parameters": OmegaConf.structured(Spec)}
    buffer = io.BytesIO()

    class ByName(pickle._Pickler):  # pickles classes that cannot be imported by their names
        def save_global(self, obj, name=None):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__.split('.')[-1]}\n".encode())
            self.memoize(obj)

        dispatch = {**pickle._Pickler.dispatch, type: save_global}

    ByName(buffer, 2).dump({"hyper_parameters": tree["hyper_parameters"]})
    path = tmp_path / "m.pkl"
    path.write_bytes(buffer.getvalue())
    raw, foreign = read_raw(path)
    assert raw["hyper_parameters"] == {"optim": {"lr": 1e-4, "betas": [0.9, 0.99]}, "name": "x"}
    assert any(name.startswith("omegaconf.") for name in foreign)
