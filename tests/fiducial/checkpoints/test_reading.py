"""Formats, nesting, and files that would run code: none of it runs."""

import argparse
import collections
import contextlib
import copyreg
import dataclasses
import functools
import io
import operator
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import omegaconf
import pytest
import torch
from safetensors.torch import save_file

from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.ones(3, dtype=torch.bfloat16),
    "strided": torch.arange(6)[::2],
    "empty": torch.zeros(0),
    "scalar": torch.tensor(7),
}
SAVES = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


def assert_tensors(state_dict):
    assert state_dict.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert state_dict[name].dtype == tensor.dtype
        assert torch.equal(state_dict[name], tensor)


HARMLESS = ("codec", "path.touch", "defaultdict factory")  # some ways to save them leave plain data: a string, a name


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "it_ran"


def attacks(marker):
    touch = f"touch {marker}"
    system = Calls(os.system, touch)
    path = pathlib.Path
    return {
        "os.system": system,
        "eval": Calls(eval, f"__import__('os').system({touch!r})"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "path.touch": Calls(path.touch, path(marker)),
        "inside an OrderedDict": collections.OrderedDict(a=system),
        "OrderedDict of a call": Calls(collections.OrderedDict, [("a", system)]),
        "partial": Calls(functools.partial, os.system, touch),
        "attrgetter": Calls(operator.attrgetter, "system"),
        "methodcaller": Calls(operator.methodcaller, "system", touch),
        "defaultdict factory": Calls(collections.defaultdict, os.system),
        "state of a class": Calls(argparse.Namespace, state={"x": system}),
        "numpy subtype": Calls(np.empty(0).__reduce__()[0], Calls(type, "T", (), {}), (0,), b"b"),
        "numpy loader": Calls(np.load, str(marker)),
        "torch.load": Calls(torch.load, str(marker)),
        "bytes inside": Calls(torch.storage._load_from_bytes, pickle.dumps(system)),
        "reconstructor": Calls(copyreg._reconstructor, types.SimpleNamespace, object, None),
        "codec": Calls(sys.modules["_codecs"].encode, "x", "rot13"),
        "tensor of type": Calls(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (touch,), {}),
        "import": Calls(__import__, "antigravity"),
    }


def raw_attacks(marker):
    """Pickles that the pickler does not write: dotted names, state for classes and functions, INST, OBJ, EXT."""

    def text(value):
        data = str(value).encode()
        return b"X" + struct.pack("<I", len(data)) + data

    argument = text(f"touch {marker}") + b"\x85R."
    head = b"\x80\x04"
    stub = b"comegaconf.dictconfig\nDictConfig\n"
    return {
        "dotted name": head + text("torch._utils") + text("os.system") + b"\x93" + argument,
        "dotted module": head + text("torch") + text("serialization.os.system") + b"\x93" + argument,
        "dotted name below a stub": head + text("omegaconf") + text("os.system") + b"\x93" + argument,
        "posix": head + text("posix") + text("system") + b"\x93" + argument,
        "python 2": b"\x80\x02c__builtin__\neval\n" + text(f"open({str(marker)!r}, 'w')") + b"\x85R.",
        "INST": b"\x80\x02(" + text(f"touch {marker}") + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\n" + text(f"touch {marker}") + b"o.",
        "extension": head + b"\x82\x01.",
        "state of a class": head + b"ctorch\nTensor\nN}" + text("cuda") + stub + b"s\x86b.",
        "state of a function": head + b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("x") + text("y") + b"sb.",
        "call of an instance": head + stub + b")R)R.",
        "getattr of a stub": head + b"cbuiltins\ngetattr\n" + stub + text("__class__") + b"\x86R.",
        "persistent id": head + b"Pos.system\n.",
        "keywords": head + b"ccollections\nOrderedDict\n)}" + text("x") + text("y") + b"s\x92.",
    }


def write_zip(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")


def test_a_member_of_an_enumeration_is_its_name(tmp_path):
    """As some versions of Python 3.11 write them: by getattr of a class, whose code is not there."""
    member = Calls(getattr, argparse.Namespace, "AUTO")
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": {"kind": member}}, tmp_path / "model.pth")
    assert read(tmp_path / "model.pth").meta["hyper_parameters"] == {"kind": "AUTO"}


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "protocol 4"])
def test_nothing_of_a_file_runs(tmp_path, marker, name, form):
    path, payload = tmp_path / "model.pth", {"state_dict": {"w": torch.ones(1)}, "x": attacks(marker)[name]}
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, **SAVES[{"protocol 4": "zip, protocol 4"}.get(form, form)])
    if name in HARMLESS:
        with contextlib.suppress(CheckpointError):
            read(path)
    else:
        with pytest.raises(CheckpointError, match=r"would run code|damaged"):
            read(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", raw_attacks("x"))
@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_nothing_of_a_handmade_pickle_runs(tmp_path, marker, name, form):
    path = tmp_path / "model.pth"
    pickled = raw_attacks(marker)[name]
    write_zip(path, pickled) if form == "zip" else path.write_bytes(pickled)
    cuda = torch.Tensor.cuda
    with pytest.raises(CheckpointError):
        read(path)
    assert not marker.exists()
    assert torch.Tensor.cuda is cuda


def test_the_refused_name_is_said(tmp_path, marker):
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Calls(os.system, f"touch {marker}")}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read(tmp_path / "m.pth")


def test_stubs_take_calls_state_and_items_without_acting(tmp_path):
    module = types.ModuleType("nvidia_tao_core.config")
    module.Thing = type("Thing", (dict,), {"__module__": module.__name__, "__setstate__": lambda self, state: None})
    module.build = types.FunctionType(Calls.__reduce__.__code__, {}, "build")
    module.build.__module__ = module.__name__
    sys.modules |= {"nvidia_tao_core": types.ModuleType("nvidia_tao_core"), module.__name__: module}
    try:
        thing = module.Thing(a=1)
        thing.b = 2
        module.Thing.__qualname__, module.build.__qualname__ = "Thing", "build"
        torch.save({"state_dict": TENSORS, "thing": thing, "built": Calls(module.build, 5)}, tmp_path / "m.pth")
    finally:
        del sys.modules["nvidia_tao_core"], sys.modules[module.__name__]
    checkpoint = read(tmp_path / "m.pth")
    assert checkpoint.raw["thing"] == {"a": 1}
    assert checkpoint.raw["built"] == 5
    assert checkpoint.foreign == ("nvidia_tao_core.config.Thing", "nvidia_tao_core.config.build")
    assert "nvidia_tao_core" not in sys.modules


class TestFormats:
    @pytest.mark.parametrize("save", SAVES)
    @pytest.mark.parametrize("foreign", [False, True])
    def test_torch_files(self, tmp_path, save, foreign):
        extra = {"hyper_parameters": omegaconf.OmegaConf.create({"x": 1, "y": [1, {"z": 2}]})} if foreign else {}
        raw = {
            "state_dict": TENSORS,
            "pytorch-lightning_version": "2.5.0.post0",
            "epoch": 3,
            "tao_model": "mal",
            **extra,
        }
        torch.save(raw, tmp_path / "m.tlt", **SAVES[save])
        checkpoint = read(tmp_path / "m.tlt")
        assert_tensors(checkpoint.state_dict)
        assert checkpoint.kind == "lightning"
        assert checkpoint.meta["epoch"] == 3
        assert checkpoint.meta["tao_model"] == "mal"
        assert checkpoint.meta.get("hyper_parameters") == ({"x": 1, "y": [1, {"z": 2}]} if foreign else None)
        assert bool(checkpoint.foreign) == foreign

    def test_plain_pickle_with_arrays(self, tmp_path):
        arrays = {"w": np.arange(6, dtype=">f4").reshape(2, 3), "f": np.asfortranarray(np.arange(4.0).reshape(2, 2))}
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": arrays, "n": np.float64(2.5)}))
        checkpoint = read(tmp_path / "m.pkl")
        assert checkpoint.kind == "nested"
        assert torch.equal(checkpoint.state_dict["w"], torch.arange(6.0).view(2, 3))
        assert torch.equal(checkpoint.state_dict["f"], torch.arange(4.0, dtype=torch.float64).view(2, 2))
        assert checkpoint.meta == {"n": 2.5}

    def test_what_real_files_hold_becomes_plain(self, tmp_path):
        raw = {
            "state_dict": collections.OrderedDict(TENSORS),
            "path": pathlib.PurePosixPath("/a/b"),
            "args": argparse.Namespace(lr=0.1),
            "counter": collections.Counter({5: 1}),
            "milestones": omegaconf.OmegaConf.create([1, 2]),
            "factory": collections.defaultdict(list, {1: [2]}),
        }
        torch.save(raw, tmp_path / "m.pth")
        read_back = read(tmp_path / "m.pth").raw
        assert {name: read_back[name] for name in raw if name != "state_dict"} == {
            "path": "/a/b",
            "args": {"lr": 0.1},
            "counter": collections.Counter({5: 1}),
            "milestones": [1, 2],
            "factory": {1: [2]},
        }

    def test_safetensors(self, tmp_path):
        save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "m.bin")
        checkpoint = read(tmp_path / "m.bin")
        assert checkpoint.kind == "safetensors"
        assert_tensors(checkpoint.state_dict)

    @pytest.mark.parametrize("nesting", [(), ("model",), ("state_dict", "model"), ("teacher",), ("state_dict_ema",)])
    def test_nesting(self, tmp_path, nesting):
        raw = TENSORS
        for name in reversed(nesting):
            raw = {name: raw, "note": "x"}
        torch.save(raw, tmp_path / "m.pth")
        checkpoint = read(tmp_path / "m.pth")
        assert_tensors(checkpoint.state_dict)
        assert checkpoint.nesting == nesting

    def test_entries_without_tensors_are_named(self, tmp_path):
        torch.save({"w": torch.ones(1), "_extra_state": None}, tmp_path / "m.pth")
        assert read(tmp_path / "m.pth").skipped == ("_extra_state",)

    def test_open_eff_archive(self, tmp_path):
        torch.save({"state_dict": TENSORS}, tmp_path / "tlt_pytorch_model.pth")
        with tarfile.open(tmp_path / "m.tlt", "w:gz") as archive:
            archive.add(tmp_path / "tlt_pytorch_model.pth", "tlt_pytorch_model.pth")
        assert_tensors(read(tmp_path / "m.tlt").state_dict)

    def test_encrypted_with_eff_installed(self, tmp_path, monkeypatch):
        codec = types.ModuleType("eff.codec")
        codec.decrypt_stream = lambda *, input_stream, output_stream, passphrase, encryption: output_stream.write(
            input_stream.read().removeprefix(f"{passphrase}{encryption}".encode())
        )
        monkeypatch.setitem(sys.modules, "eff", types.ModuleType("eff"))
        monkeypatch.setitem(sys.modules, "eff.codec", codec)
        torch.save({"state_dict": b"key2" + pickle.dumps(TENSORS), "state_dict_encrypted": 2}, tmp_path / "m.pth")
        assert_tensors(read(tmp_path / "m.pth", key="key").state_dict)
        with pytest.raises(CheckpointError, match="no key given"):
            read(tmp_path / "m.pth")
        with pytest.raises(CheckpointError):
            read(tmp_path / "m.pth", key="other")


class TestNotAModelFile:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html></html>", "web page"),
            (b"ftrt\0\0\0\0" + bytes(50), "TensorRT engine"),
            (b"\x08\x08\x12\x07pytorch", "ONNX model"),
            (bytes(4) + b"\x93\x12" * 9, "etlt"),
            (b"GIF89a-something", "not a model file"),
            (bytes(257) + b"ustar" + bytes(300), None),
            (b"\x80\x02garbage", "damaged"),
            (b"\x80", "damaged"),
        ],
    )
    def test_said_by_name(self, tmp_path, content, message):
        (tmp_path / "m.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path / "m.pth")
        assert caught.value.problems[0].where.endswith("m.pth")

    def test_tar(self, tmp_path):
        with tarfile.open(tmp_path / "m.pth", "w") as archive:
            info = tarfile.TarInfo("storages")
            info.size = 10
            archive.addfile(info, io.BytesIO(b"cos\nsystem"))
        with pytest.raises(CheckpointError, match="tar file"):
            read(tmp_path / "m.pth")

    @pytest.mark.parametrize("save", ["zip", "legacy"])
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
    def test_cut_off(self, tmp_path, save, share):
        path = tmp_path / "m.pth"
        torch.save({"w": torch.rand(2000)}, path, **SAVES[save])
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read(path)

    def test_cut_off_safetensors(self, tmp_path):
        path = tmp_path / "m.safetensors"
        save_file({"w": torch.rand(100)}, path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read(path)

    def test_torchscript(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
            archive.writestr("m/data.pkl", b"")
            archive.writestr("m/constants.pkl", b"")
        with pytest.raises(CheckpointError, match="TorchScript"):
            read(tmp_path / "m.pth")

    def test_no_tensors(self, tmp_path):
        torch.save({"epoch": 1}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=r"holds no tensors.*epoch"):
            read(tmp_path / "m.pth")

    def test_nothing_begins_with_what_modelopt_quantized(self, tmp_path):
        torch.save({"modelopt_state": {}, "model_state_dict": {"a": torch.ones(1)}}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=r"holds quantized weights \(modelopt_state\) · give the checkpoint"):
            read(tmp_path / "m.pth")

    def test_encrypted_without_eff(self, tmp_path):
        torch.save({"state_dict": b"xyz", "state_dict_encrypted": 2}, tmp_path / "m.pth")
        with pytest.raises(
            CheckpointError, match=r"NVIDIA EFF · decrypt once inside a TAO container, or install nvidia-eff"
        ):
            read(tmp_path / "m.pth", key="tlt_encode")

    def test_missing_lists_what_is_there(self, tmp_path):
        for name in ("model_epoch_004_step_00010.pth", "other.pth"):
            (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match=r"no file .*holds model_epoch_004_step_00010\.pth"):
            read(tmp_path / "model_epoch_005_step_00012.pth")
        with pytest.raises(CheckpointError, match="is a folder"):
            read(tmp_path)


@dataclasses.dataclass
class Optim:
    lr: float = 0.1
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.99])


@dataclasses.dataclass
class Training:
    """A configuration with every kind of type hint that OmegaConf's own metadata keep."""

    optim: Optim = dataclasses.field(default_factory=Optim)
    other: Optim | None = None
    epochs: int | None = 3
    precision: int | str = "bf16"
    size: tuple[int, int] = (2, 3)
    stages: list[Optim] = dataclasses.field(default_factory=lambda: [Optim(), Optim(lr=0.2)])
    named: dict[str, Optim | None] = dataclasses.field(default_factory=lambda: {"a": Optim(), "b": None})
    missing: str = omegaconf.MISSING
    same: str = "${epochs}"
    folder: pathlib.Path = pathlib.Path("/data")
    raw: bytes = b"x"


class TestStructuredConfigurations:
    EXPECTED = {
        "optim": {"lr": 0.1, "betas": [0.9, 0.99]},
        "other": None,
        "epochs": 3,
        "precision": "bf16",
        "size": [2, 3],
        "stages": [{"lr": 0.1, "betas": [0.9, 0.99]}, {"lr": 0.2, "betas": [0.9, 0.99]}],
        "named": {"a": {"lr": 0.1, "betas": [0.9, 0.99]}, "b": None},
        "missing": "???",
        "same": "${epochs}",
        "folder": "/data",
        "raw": b"x",
    }

    @pytest.mark.parametrize("save", SAVES)
    def test_read_as_plain_data(self, tmp_path, save):
        given = omegaconf.OmegaConf.structured(Training)
        torch.save({"state_dict": TENSORS, "hyper_parameters": given}, tmp_path / "m.pth", **SAVES[save])
        checkpoint = read(tmp_path / "m.pth")
        assert checkpoint.meta["hyper_parameters"] == self.EXPECTED
        assert f"{__name__}.Training" in checkpoint.foreign

    def test_inside_a_plain_tree(self, tmp_path):
        raw = {"spec": [omegaconf.OmegaConf.structured(Optim(lr=0.3))], "kind": Training}
        torch.save({"state_dict": TENSORS, "hyper_parameters": raw}, tmp_path / "m.pth")
        read_back = read(tmp_path / "m.pth").meta["hyper_parameters"]
        assert read_back == {"spec": [{"lr": 0.3, "betas": [0.9, 0.99]}], "kind": f"{__name__}.Training"}

    def test_an_object_of_the_class_itself_is_code(self, tmp_path):
        torch.save({"state_dict": TENSORS, "hyper_parameters": Training()}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=rf"would run code to be opened: {__name__}\.Training"):
            read(tmp_path / "m.pth")


class TestAverages:
    RAW, AVERAGE = {"base_model.blocks.0.w": torch.zeros(2)}, {"base_model.blocks.0.w": torch.ones(2)}

    @pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "ema"])
    @pytest.mark.parametrize("prefix", ["base_model.", "module.base_model.", "radio_model.model.patch_generator."])
    def test_of_radio_are_taken(self, tmp_path, caplog, name, prefix):
        raw, average = ({prefix + "w": torch.full((2,), value)} for value in (0.0, 1.0))
        torch.save({"state_dict": raw, name: average, "args": argparse.Namespace(a=1)}, tmp_path / "m.pth.tar")
        with caplog.at_level("INFO", logger="fiducial"):
            checkpoint = read(tmp_path / "m.pth.tar")
        assert checkpoint.nesting == (name,)
        assert next(iter(checkpoint.state_dict.values())).tolist() == [1, 1]
        assert f"the weights are those of {name}" in caplog.text

    @pytest.mark.parametrize("average", [{}, None, {"decay": 0.9}])
    def test_without_tensors_are_none(self, tmp_path, average):
        torch.save({"state_dict": self.RAW, "state_dict_ema": average}, tmp_path / "m.pth")
        assert read(tmp_path / "m.pth").nesting == ("state_dict",)

    def test_of_other_publishers_are_not(self, tmp_path):
        torch.save({"model": {"w": torch.zeros(2)}, "model_ema": {"w": torch.ones(2)}}, tmp_path / "m.pth")
        assert read(tmp_path / "m.pth").nesting == ("model",)

    @pytest.mark.parametrize("name", ["model_ema", "ema", "state_dict_ema"])
    def test_alone_are_taken(self, tmp_path, name):
        torch.save({name: {"w": torch.ones(2)}}, tmp_path / "m.pth")
        assert read(tmp_path / "m.pth").nesting == (name,)


def test_names_of_wrappers_are_cut(tmp_path):
    torch.save({"state_dict": {"module.model._orig_mod.w": torch.ones(2)}}, tmp_path / "m.pth")
    assert list(read(tmp_path / "m.pth").state_dict) == ["model.w"]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("mmap", [True, False])
def test_shared_storages_stay_shared(tmp_path, save, mmap):
    table = torch.arange(6.0)
    torch.save({"a": table, "b": table[2:4], "c": table.view(2, 3).T}, tmp_path / "m.pth", **SAVES[save])
    weights = read(tmp_path / "m.pth", mmap=mmap).state_dict
    weights["a"][2] = 9
    assert weights["b"].tolist() == [9, 3]
    assert weights["c"].tolist() == [[0, 3], [1, 4], [9, 5]]
    assert read(tmp_path / "m.pth").state_dict["a"].tolist() == [0, 1, 2, 3, 4, 5]  # the file is as it was


def test_shapes_alone(tmp_path):
    torch.save({"state_dict": TENSORS, "n": [TENSORS["scalar"]]}, tmp_path / "m.pth")
    checkpoint = read(tmp_path / "m.pth", device="meta")
    assert all(tensor.is_meta for tensor in checkpoint.state_dict.values())
    assert {name: t.shape for name, t in checkpoint.state_dict.items()} == {n: t.shape for n, t in TENSORS.items()}
    assert checkpoint.raw["n"][0] is checkpoint.state_dict["scalar"]


@pytest.fixture
def codec(monkeypatch):
    """A stand-in for NVIDIA's: ``key`` before the content; with another key it gives what it gives."""
    module = types.ModuleType("eff.codec")

    def decrypt(*, input_stream, output_stream, passphrase, encryption):
        content = input_stream.read()
        if passphrase == "raises":
            raise RuntimeError(f"no luck\nwith {passphrase}")
        output_stream.write(content[len(passphrase) :])

    module.decrypt_stream = decrypt
    monkeypatch.setitem(sys.modules, "eff", types.ModuleType("eff"))
    monkeypatch.setitem(sys.modules, "eff.codec", module)


@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("form", ["state dict", "archive"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("right", None),
        (None, "no key given · set encryption_key"),
        ("", "no key given · set encryption_key"),
        ("wrong!", "cannot be decrypted with the given key (what comes out is no pickle) · check encryption_key"),
        ("raises", "cannot be decrypted with the given key (no luck with …) · check encryption_key"),
    ],
)
def test_keys_of_encrypted_files(tmp_path, form, key, message):
    path = tmp_path / "m.tlt"
    if form == "archive":
        content = b"right" + pickle.dumps({"state_dict": {"w": np.ones(2)}})
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("tlt_pytorch_model.pth")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    else:
        torch.save({"state_dict": b"right" + pickle.dumps({"w": np.ones(2)}), "state_dict_encrypted": 1}, path)
    if message is None:
        assert read(path, key=key).state_dict["w"].tolist() == [1, 1]
    else:
        with pytest.raises(CheckpointError) as caught:
            read(path, key=key)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not key or key not in str(caught.value)
