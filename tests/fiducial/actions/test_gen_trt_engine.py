"""``gen_trt_engine``, and what runs its engines: with TensorRT for RTX, and over the fake of TensorRT's bindings."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import fake_trt
import onnx_models
import pytest
import tiny_runtime
import torch
from onnx import helper
from tiny_task import LINE, Spec

from fiducial import cli
from fiducial.deploy.card import sidecar
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.tensorrt import gpu
from fiducial.errors import CheckpointError

RTX = ("gen_trt_engine.tensorrt.flavor=rtx", "gen_trt_engine.tensorrt.compute_capability=[8.6]")
CARD = {"network": "tiny", "task": "line", "shift": 0.5}


@pytest.fixture
def act(tmp_path, monkeypatch, capfd):
    """``act(action, *overrides)``: exit code, and what it said."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")

    def run(action, *overrides):
        code = cli.main([LINE], [action, "-e", "spec.yaml", *overrides], prog="tiny")
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def exported():
    """``exported(**more)``: where an exported model of the run is; a weighted sum of each row."""

    def write(**more):
        Path("r/train").mkdir(parents=True, exist_ok=True)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], name="/out/MatMul")]
        nodes += [helper.make_node("ReduceSum", ["p", "axis"], ["y"], name="/out/ReduceSum", keepdims=0)]
        constants = (*onnx_models.AXIS, onnx_models.constant("w", [[1.0, 0, 0.5], [0, 2, 0], [0, 0, 3]]))
        return onnx_models.write(
            Path("r/train/m.onnx"), **{"nodes": nodes, "constants": constants, "card": CARD, **more}
        )

    return write


@pytest.fixture
def tensorrt(monkeypatch):
    """``tensorrt(version)``: the fake of that version, and a GPU that is the CPU."""

    def install(version="11.4.0.106", name="GPU", capability=(8, 6)):
        module = fake_trt.bindings(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(gpu, "count", lambda: 1)
        monkeypatch.setattr(gpu, "find", lambda index=None: gpu.Gpu(torch.device("cpu"), name, capability))
        return module

    return install


def engine_said(path="r/gen_trt_engine/model.engine"):
    return json.loads(sidecar(Path(path)).read_text())["engine"]


class TestRtx:
    def test_without_a_gpu(self, act, exported):
        exported()
        code, said = act("gen_trt_engine", *RTX)
        assert code == 0, said
        assert "(gen_trt_engine.onnx_file is not set: newest .onnx file in" in said
        card = json.loads(sidecar(Path("r/gen_trt_engine/model.engine")).read_text())
        assert (card["task"], card["shift"], card["engine"]["flavor"]) == ("line", 0.5, "rtx")
        assert card["engine"]["compute_capability"] == ["8.6"]
        assert card["engine"]["types"] == {"fp32": 1}
        assert sorted(path.name for path in Path("r/gen_trt_engine").iterdir()) == [
            *(".lock", "experiment.yaml", "model.engine", "model.engine.card.json", "status.json")
        ]
        code, said = act("evaluate", "evaluate.trt_engine=latest")  # no path
        assert code == 1
        assert "model.engine · an engine runs on an NVIDIA GPU, and this machine has none" in said

    def test_int8_from_the_task_s_own_data(self, act, exported):
        exported()
        cache = "gen_trt_engine.tensorrt.calibration.cal_cache_file=cal.json"
        keys = ("gen_trt_engine.tensorrt.data_type=int8", "gen_trt_engine.tensorrt.rest=fp32", cache, *RTX)
        few = act("gen_trt_engine", *keys, "gen_trt_engine.tensorrt.calibration.cal_batches=99")[1]
        assert "12 items in the spec's dataset; cal_batches x cal_batch_size asks for 99" in few
        code, said = act("gen_trt_engine", *keys, "gen_trt_engine.tensorrt.calibration.cal_batches=12")
        assert code == 0, said
        assert engine_said()["types"] == {"fp32": 1, "quantized to int8": 1}
        ranges = json.loads(Path("cal.json").read_text())["ranges"]
        seen = torch.stack([tiny_runtime.Rows(12, 0.5)[i]["x"] for i in range(12)])  # shifted, as the card says
        assert max(map(abs, ranges["x"])) == pytest.approx(seen.abs().max().item())
        code, said = act("gen_trt_engine", *keys, "gen_trt_engine.tensorrt.calibration.cal_batches=99")
        assert code == 0  # the ranges are known
        assert "without images" in said
        Path("cal.json").write_text("TRT-8601-EntropyCalibration2\nx: 3c010a14\n")
        code, said = act("gen_trt_engine", *keys, "gen_trt_engine.tensorrt.calibration.cal_batches=12")
        assert (code, "a TensorRT cache has no scales" in said, "left as it is" in said) == (0, True, True)
        assert Path("cal.json").read_text().startswith("TRT-")

    def test_nothing_to_quantize(self, act, exported):
        exported(nodes=onnx_models.SUM, constants=onnx_models.AXIS)
        code, said = act("gen_trt_engine", "gen_trt_engine.tensorrt.data_type=int8", *RTX)
        assert code == 1
        assert "no layer in it can be int8" in said

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"card": {"task": "seek"}}, "a model of task seek"),
            ({"inputs": [onnx_models.value("x", ("batch", 4))]}, "input x is [4], the spec composes [3]"),
            ({"outputs": [onnx_models.value("z", ("batch",))]}, "no output 'y' (it has z)"),
        ],
    )
    def test_another_model(self, act, exported, more, said):
        exported(**more)
        code, told = act("gen_trt_engine", *RTX)
        assert code == 1
        assert said in told
        assert not list(Path("r/gen_trt_engine").glob("*.engine"))

    def test_no_model(self, act):
        Path("r").mkdir()
        assert "r holds no .onnx file" in act("gen_trt_engine", *RTX)[1]
        Path("m.pth").touch()
        assert (
            "an engine is built from an .onnx file" in act("gen_trt_engine", "gen_trt_engine.onnx_file=m.pth", *RTX)[1]
        )

    def test_a_fixed_batch(self, act, exported):
        exported(inputs=[onnx_models.value("x", (2, 3))], outputs=[onnx_models.value("y", (2,))], card=None)
        assert "and the ONNX file is fixed to 2" in act("gen_trt_engine", "gen_trt_engine.batch_size=3", *RTX)[1]
        code, said = act("gen_trt_engine", *RTX)
        assert code == 0, said
        assert "m.onnx has no model card: its inputs are prepared as the spec says" in said
        assert engine_said()["batches"] == [2, 2, 2]


PROFILE = (
    *("gen_trt_engine.tensorrt.min_batch_size=2", "gen_trt_engine.tensorrt.opt_batch_size=2"),
    "gen_trt_engine.tensorrt.max_batch_size=3",
)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_tensorrt_from_the_graph_to_the_numbers(version, act, exported, tensorrt):
    module, model = tensorrt(version), exported()
    Path("times").write_bytes(b"of another GPU")
    keys = ("gen_trt_engine.timing_cache=times", "gen_trt_engine.tensorrt.tf32=false")
    code, said = act("gen_trt_engine", *PROFILE, *keys)
    assert code == 0, said
    assert "the engine is at most 0 from the graph" in said
    assert "times: no timings of this version and GPU" in said
    assert module.built["flags"] == []
    assert module.built["WORKSPACE"] == 1024 * 2**20  # the key counts in MB
    assert module.built["profile"] == {"x": [[2, 3], [2, 3], [3, 3]]}
    assert Path("times").read_bytes() == b"timings"
    facts = engine_said()
    assert (facts["version"], facts["gpu"], facts["compute_capability"]) == (version, "GPU", ["8.6"])
    code, said = act("evaluate", "evaluate.trt_engine=latest")  # 10 rows, in batches of at least 2 and at most 3
    assert code == 0, said
    assert "evaluate.trt_engine: " in said
    by_engine = json.loads(Path("r/trt_evaluate/evaluate.json").read_text())
    assert by_engine["runtime"] == "tensorrt"
    assert act("evaluate", f"evaluate.checkpoint={model}")[0] == 0
    by_onnx = json.loads(Path("r/evaluate/evaluate.json").read_text())
    assert [row for row, _ in by_engine["rows"]] == list(range(10))
    values = [[value for _, value in said["rows"]] for said in (by_engine, by_onnx)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


class TestTensorrt:
    @pytest.fixture
    def built(self, act, exported, tensorrt):
        exported()
        module = tensorrt()
        assert act("gen_trt_engine")[0] == 0
        return module

    def test_a_wrong_result(self, act, exported, tensorrt, monkeypatch):
        exported()
        tensorrt()
        monkeypatch.setattr(fake_trt.ICudaEngine, "fault", 100.0)
        code, said = act("gen_trt_engine")
        assert code == 1
        assert "the engine: y is off by" in said
        assert not Path("r/gen_trt_engine/model.engine").exists()

    def test_the_builder_s_own_words(self, act, exported, tensorrt):
        exported()
        tensorrt().refuses = True
        assert "TensorRT cannot build it: no tactic" in act("gen_trt_engine")[1]

    def test_no_gpu(self, act, exported, monkeypatch):
        exported()
        monkeypatch.setitem(sys.modules, "tensorrt", fake_trt.bindings("11.4.0.106"))
        code, said = act("gen_trt_engine")
        assert code == 1
        assert "gen_trt_engine.gpu_id · 0, and there are 0 GPUs" in said
        assert "set flavor: rtx" in said

    def test_a_type_that_the_gpu_lacks(self, act, exported, tensorrt):
        exported()
        tensorrt(capability=(7, 5))
        assert (
            "bf16 on a GPU of compute capability 7.5"
            in act("gen_trt_engine", "gen_trt_engine.tensorrt.data_type=bf16")[1]
        )

    @pytest.mark.parametrize(
        ("here", "said"),
        [
            ({"version": "11.5.0.1"}, "built by TensorRT 11.4.0.106, and 11.5.0.1 is installed"),
            ({"capability": (9, 0)}, "built for a GPU of compute capability 8.6 (GPU), and this one, GPU, has 9.0"),
        ],
    )
    def test_an_engine_of_elsewhere(self, act, built, tensorrt, here, said):
        tensorrt(**here)
        code, told = act("evaluate", "evaluate.checkpoint=r/gen_trt_engine/model.engine")
        assert code == 1
        assert said in told

    def test_an_engine_without_its_card(self, act, built):
        sidecar(Path("r/gen_trt_engine/model.engine")).unlink()
        assert "an engine without its card" in act("evaluate", "evaluate.trt_engine=latest")[1]

    def test_code_in_an_engine_runs_only_when_it_may(self, act, exported, tensorrt):
        exported()
        tensorrt()
        assert act("gen_trt_engine", "gen_trt_engine.tensorrt.version_compatible=true")[0] == 0
        code, said = act("evaluate", "evaluate.trt_engine=latest")
        assert (code, "it brings code of its own" in said) == (1, True)
        assert act("evaluate", "evaluate.trt_engine=latest", "evaluate.allow_engine_code=true")[0] == 0

    def test_more_keys(self, act, exported, tensorrt):
        exported()
        module = tensorrt()
        keys = ("hardware_compatibility=ampere_plus", "workspace_size=0", "optimization_level=1")
        assert act("gen_trt_engine", *(f"gen_trt_engine.tensorrt.{key}" for key in keys))[0] == 0
        assert module.built["hardware"] == "AMPERE_PLUS"
        assert "WORKSPACE" not in module.built  # all that the GPU has
        assert engine_said()["hardware_compatibility"] == "ampere_plus"

    def test_pickled(self, built):
        engine = Path("r/gen_trt_engine/model.engine")
        predictor = open_predictor(engine, tiny_runtime.Runtime(Spec()))
        batch = {"x": torch.ones(2, 3)}
        expected = predictor.predict(batch)["y"]
        assert expected.tolist() == [6.5, 6.5]
        assert pickle.loads(pickle.dumps(predictor)).predict(batch)["y"].equal(expected)
        content = pickle.dumps(predictor)
        shutil.copy(engine, "kept.engine")
        engine.write_bytes(engine.read_bytes() + b" ")
        with pytest.raises(CheckpointError, match="the card of another"):
            pickle.loads(content)

    def test_a_batch_that_the_engine_does_not_take(self, built):
        predictor = open_predictor(Path("r/gen_trt_engine/model.engine"), tiny_runtime.Runtime(Spec()))
        with pytest.raises(CheckpointError, match=r"does not take x of \[5, 3\]: x: \[5, 3\] is not in the profile"):
            predictor.run({"x": torch.ones(5, 3)})
