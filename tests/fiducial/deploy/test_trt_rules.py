"""What is said of an engine before anything is built or loaded."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_task import LINE, Spec

from fiducial.actions.preflight import check_rules
from fiducial.actions.registry import actions_of
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.tensorrt import rules
from fiducial.deploy.tensorrt.engine_card import DETAIL, EngineFacts
from fiducial.deploy.tensorrt.flavour import Flavour
from fiducial.deploy.tensorrt.layers import LayerRules
from fiducial.deploy.tensorrt.rules import check_engine, check_precision
from fiducial.errors import CheckpointError


def section(tensorrt=None, calibration=None, **keys):
    nested = {**(tensorrt or {}), **({"calibration": calibration} if calibration else {})}
    return Spec.model_validate({"gen_trt_engine": {**keys, "tensorrt": nested}}).gen_trt_engine


def found(*args, **keys):
    return [str(problem) for problem in check_engine(section(*args, **keys))]


class TestSection:
    def test_the_defaults_are_fine(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", object())
        assert found() == []
        assert check_rules(LINE, Spec(), actions_of([LINE])["gen_trt_engine"]) == []

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ({"batch_size": 0}, "gen_trt_engine.batch_size · found 0"),
            ({"onnx_file": "m.etlt"}, "NVIDIA's own"),
            ({"trt_engine": "m.onnx"}, "m.onnx ends in none of .engine, .trt, .plan · name it m.engine"),
            ({"trt_engine": "."}, "is a folder"),
            ({"trt_engine": "a\0b.engine"}, "cannot write to"),
            ({"tensorrt": {"min_batch_size": 4, "opt_batch_size": 2, "max_batch_size": 8}}, "opt_batch_size 2"),
            ({"tensorrt": {"flavor": "rtx", "version_compatible": True}}, "no such engines"),
            ({"tensorrt": {"flavor": "rtx", "hardware_compatibility": "ampere_plus"}}, "no such engines"),
            ({"tensorrt": {"compute_capability": ["8.6"]}}, "TensorRT builds for the GPU that it runs on"),
            ({"tensorrt": {"flavor": "RTX", "compute_capability": [7.5]}}, "fp32 on a GPU of compute capability 7.5"),
            ({"tensorrt": {"layers_precision": ["a:b:fp99"]}}, "found 'a:b:fp99'"),
            ({"tensorrt": {"layers_precision": ["fp16"]}}, "found 'fp16'"),
            ({"tensorrt": {"layers_precision": ["a:fp16", "a:fp32"]}}, "'a' twice"),
            ({"tensorrt": {"data_type": "fp16", "layers_precision": ["a:bf16"]}}, "both fp16 and bf16"),
            ({"tensorrt": {"data_type": "int8", "layers_precision": ["a:fp8"]}}, "both int8 and fp8"),
        ],
    )
    def test_wrong(self, keys, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (problem,) = [text for text in found(**keys) if "few hundred" not in text]
        assert said in problem

    def test_what_a_template_leaves_open_is_not_set(self):
        left = section({"data_type": "int8"}, {"cal_image_dir": "???", "cal_cache_file": "???"}, trt_engine="???")
        assert left.trt_engine is None
        assert (left.tensorrt.calibration.cal_image_dir, left.tensorrt.calibration.cal_cache_file) == (None, None)

    def test_a_fixed_batch_needs_no_profile(self):
        assert found({"min_batch_size": 4, "max_batch_size": 2}, batch_size=2) == []


class TestCalibration:
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("empty", "some/below"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("some/a.JPG", "some/below/b.png", "some/c.txt"):
            (tmp_path / name).touch()

    def problems(self, **calibration):
        said = found({"data_type": "int8"}, {"cal_batches": 1, "cal_batch_size": 40, **calibration})
        return [text for text in said if "few hundred" not in text]

    def test_images_are_counted(self):
        (said,) = self.problems(cal_image_dir=["some"])
        assert "2 images for cal_batches 1 x 40" in said

    @pytest.mark.parametrize(("folder", "said"), [("none", "no folder none"), ("empty", "holds no image")])
    def test_folders(self, folder, said):
        (problem,) = self.problems(cal_image_dir=[folder, "some"], cal_batches=1, cal_batch_size=2)
        assert said in problem

    def test_every_folder_is_looked_at(self):
        said = self.problems(cal_image_dir=["none", "empty", "some"], cal_batches=1, cal_batch_size=2)
        assert [text.split(" · ")[1].split(" (")[0] for text in said] == ["no folder none", "empty holds no image"]

    def test_a_folder_is_no_cache(self):
        (problem,) = self.problems(cal_cache_file="some")
        assert problem.endswith("cal_cache_file · some is a folder · name the file: some/cal.bin")

    def test_none_named(self):
        assert self.problems() == []  # those of the training are taken

    def test_few(self):
        (problem,) = check_engine(section({"data_type": "int8"}))
        assert problem.level == "warning"
        assert "1 items" in problem.found


class TestLayers:
    def rules(self, data_type, *items, rest="fp16"):
        return LayerRules.of(SimpleNamespace(data_type=data_type, layers_precision=list(items), rest=rest))

    @pytest.mark.parametrize(
        ("data_type", "items", "rest", "half", "small"),
        [
            ("fp32", (), "fp16", "", ""),
            ("fp16", (), "fp16", "fp16", ""),
            ("int8", (), "fp16", "fp16", "int8"),
            ("int8", (), "fp32", "", "int8"),
            ("fp8", (), "bf16", "bf16", "fp8"),
            ("fp32", ("a:bf16",), "fp16", "bf16", ""),
            ("fp16", ("*:fp32",), "fp16", "", ""),
            ("fp32", ("*:fp32", "a:int8"), "fp32", "", "int8"),
        ],
    )
    def test_the_types_of_an_engine(self, data_type, items, rest, half, small):
        rules = self.rules(data_type, *items, rest=rest)
        assert (rules.half, rules.small) == (half, small)

    def test_of_a_node(self):
        rules = self.rules("int8", "/a/*:fp32", "/a/b:fp16", "/c:d:int8")
        assert [rules.precision(name) for name in ("/a/x", "/a/b", "/c:d", "/e")] == ["fp32", "fp16", "int8", "int8"]
        assert [rules.computes_in(name) for name in ("/a/x", "/a/b", "/e")] == ["fp32", "fp16", "fp16"]

    def test_names_that_nothing_has(self):
        rules = self.rules("fp16", "/head/Gem:fp32", "/head*:fp32", "/z*:fp32")
        problems = [str(problem) for problem in rules.unmatched(["/stem/Conv", "/head/Gemm"])]
        assert len(problems) == 2
        assert "'/head/Gem' · its nodes are such as /head/Gemm" in problems[0]


@pytest.mark.parametrize(
    ("tensorrt", "capability", "lacks"),
    [
        ({"data_type": "fp8"}, (8, 6), "fp8"),
        ({"data_type": "fp8"}, (8, 9), None),
        ({"data_type": "bf16"}, (7, 5), "bf16"),
        ({"data_type": "int8"}, (7, 5), None),
        ({"data_type": "fp32", "flavor": "rtx"}, (7, 5), "fp32"),
        ({"data_type": "int8", "rest": "fp32", "flavor": "rtx"}, (7, 5), "fp32"),
        ({"data_type": "fp32"}, (7, 5), None),
    ],
)
def test_types_that_a_gpu_lacks(tensorrt, capability, lacks):
    problems = list(check_precision(section(tensorrt).tensorrt, [capability]))
    assert [problem.found.split()[0] for problem in problems] == ([lacks] if lacks else [])


FACTS = EngineFacts(
    flavor="tensorrt",
    version="10.16.1.11",
    precision="fp16",
    types={"fp16": 3},
    batches=(1, 2, 4),
    onnx="0" * 64,
    compute_capability=("8.6",),
    gpu="RTX 3060",
    system=platform.system(),
)


class TestCard:
    @pytest.fixture
    def engine(self, tmp_path):
        path = tmp_path / "m.engine"
        path.write_bytes(b"an engine")
        ModelCard(task="line", details={DETAIL: FACTS.plain()}).write_beside(path)
        return path

    def test_there_and_back(self, engine):
        facts, card = EngineFacts.read(engine)
        assert facts == FACTS
        assert card.task == "line"

    def test_none(self, engine):
        sidecar(engine).unlink()
        with pytest.raises(CheckpointError, match="an engine without its card"):
            EngineFacts.read(engine)

    def test_of_another_file(self, engine):
        engine.write_bytes(b"another engine")
        with pytest.raises(CheckpointError, match=r"the card of another m\.engine"):
            EngineFacts.read(engine)

    @pytest.mark.parametrize(
        "change",
        [{"flavor": "other"}, {"batches": [1]}, {"batches": 3}, {"compute_capability": ["new"]}, {"onnx": ...}],
    )
    def test_says_nothing(self, engine, change):
        said = json.loads(sidecar(engine).read_text())
        for key, value in change.items():
            said[DETAIL] |= {key: value} if value is not ... else {}
            if value is ...:
                del said[DETAIL][key]
        sidecar(engine).write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match="says nothing of how an engine was built"):
            EngineFacts.read(engine)

    def test_a_card_that_is_of_no_file_in_particular(self, engine):
        said = json.loads(sidecar(engine).read_text())
        sidecar(engine).write_text(json.dumps({key: value for key, value in said.items() if key != "file"}))
        with pytest.raises(CheckpointError, match="says nothing"):
            EngineFacts.read(engine)

    def check(self, version="10.16.1.11", gpu="RTX 3060", capability=(8, 6), **changes):
        library = Flavour("tensorrt", SimpleNamespace(__version__=version))
        problems = replace(FACTS, **changes).check(library, gpu, capability, "m.engine")
        return [(problem.level, problem.found) for problem in problems]

    @pytest.mark.parametrize(
        ("here", "said"),
        [
            ({}, None),
            ({"version": "10.13.0.1"}, "built by TensorRT 10.16.1.11, and 10.13.0.1 is installed"),
            ({"version": "11.4.0.1"}, "11.4.0.1 is installed"),
            ({"version": "11.4.0.1", "version_compatible": True}, None),
            ({"version": "12.0.0.1", "version_compatible": True}, "12.0.0.1 is installed"),
            ({"version": "10.13.0.1", "version_compatible": True}, "10.13.0.1 is installed"),
            ({"capability": (8, 9)}, "compute capability 8.6 (RTX 3060), and this one, RTX 3060, has 8.9"),
            ({"capability": (8, 9), "hardware_compatibility": "ampere_plus"}, None),
            ({"capability": (7, 5), "hardware_compatibility": "ampere_plus"}, "has 7.5"),
            ({"capability": (8, 9), "hardware_compatibility": "same_compute_capability"}, "has 8.9"),
            ({"capability": (9, 0), "compute_capability": ()}, None),
            ({"system": "Plan 9"}, "built on Plan 9"),
        ],
    )
    def test_what_it_runs_on(self, here, said):
        problems = self.check(**here)
        assert [said in text for _, text in problems] == ([True] if said else [])

    def test_another_model_of_gpu_is_a_warning(self):
        assert [level for level, _ in self.check(gpu="RTX 3070")] == ["warning"]
        assert self.check(gpu="RTX 3070", hardware_compatibility="same_compute_capability") == []


def test_what_builds_must_be_installed(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorrt", object())
    monkeypatch.delitem(sys.modules, "tensorrt_rtx_bindings", raising=False)
    assert not list(rules.check_library("tensorrt"))
    (said,) = map(str, rules.check_library("rtx"))
    assert said.endswith("rtx: tensorrt_rtx_bindings is not installed · pip install 'fiducial[tensorrt-rtx]'")
