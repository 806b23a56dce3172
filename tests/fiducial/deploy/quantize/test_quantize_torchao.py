"""torchao, from a checkpoint to an evaluation, by TAO's keys; and files that are not what they seem."""

import json
import pickle
from pathlib import Path

import pytest
import tiny_runtime
import torch
from tiny_task import LINE, Spec

from fiducial.actions.perform import perform
from fiducial.checkpoints.reading import read, read_raw
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.quantize import torchao
from fiducial.deploy.quantize.artefacts import quantizer_of
from fiducial.deploy.quantize.networks import plan_network
from fiducial.deploy.quantize.patterns import INT8, LayerFormat
from fiducial.errors import CheckpointError, SpecError

FILE = "quantized_model_torchao.pth"
NAMES = [name for name, layer in tiny_runtime.Network().named_modules() if isinstance(layer, torch.nn.Linear)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    perform([LINE], "train", {"results_dir": str(folder), "train": {"num_epochs": 1}})
    return folder


@pytest.fixture(scope="module")
def quantized(trained):
    """The action without any path: the run's own checkpoint."""
    return perform([LINE], "quantize", {"results_dir": str(trained)})


def evaluate(folder, *overrides):
    return perform([LINE], "evaluate", {"results_dir": str(folder)}, overrides)


class TestAction:
    def test_files(self, trained, quantized):
        assert [path.name for path in quantized.files] == [FILE, "report.html"]
        assert quantized.files[0].parent == trained / "quantize"
        assert "torchao" in ModelCard.read(quantized.files[0]).details["quantizer"]
        page = quantized.files[1].read_text("utf-8")
        assert "test_mean" in page
        assert "Milliseconds" in page

    def test_numbers_before_and_after(self, quantized):
        kpis = quantized.kpis
        assert kpis["test_mean"] == pytest.approx(kpis["test_mean_before"], abs=0.05)
        assert 0 < kpis["largest_output_difference"] < 0.05
        assert kpis["milliseconds"] > 0

    def test_status_has_them(self, trained, quantized):
        records = [json.loads(line) for line in (trained / "quantize" / "status.json").read_text().splitlines()]
        assert any(record.get("kpi", {}).get("test_mean_before") for record in records)

    def test_weights_are_small_numbers_and_the_rest_is_not(self, quantized):
        content = read_raw(quantized.files[0])[0]
        small = {name for name, value in content.items() if isinstance(value, dict)}
        assert small == {f"{name}.weight" for name in NAMES}
        assert content["linear.weight"]["qdata"].dtype == torch.int8

    def test_evaluated_like_any_other_and_without_a_path(self, trained, quantized):
        found = evaluate(trained, "evaluate.is_quantized=true")
        assert found.kpis["test_mean"] == pytest.approx(quantized.kpis["test_mean"], rel=1e-6)
        assert found.kpis["test_mean"] != quantized.kpis["test_mean_before"]
        assert json.loads(found.files[0].read_text())["runtime"] == "torch"

    def test_the_flag_must_fit_the_file(self, trained, quantized):
        with pytest.raises(CheckpointError, match=r"evaluate.is_quantized · false, but .* was quantized \(torchao\)"):
            evaluate(trained, f"evaluate.checkpoint={quantized.files[0]}")
        with pytest.raises(CheckpointError, match=r"evaluate.is_quantized · true, but .* is not quantized"):
            evaluate(trained, "evaluate.is_quantized=true", "evaluate.checkpoint=latest")

    def test_no_graph_is_made_of_it(self, trained, quantized):
        changes = [f"export.checkpoint={quantized.files[0]}", "export.is_quantized=true"]
        with pytest.raises(CheckpointError, match="export the checkpoint that it was made from"):
            perform([LINE], "export", {"results_dir": str(trained)}, changes)

    def test_a_gpu_that_is_not_there(self, trained, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(SpecError, match=r"quantize.device · cuda:7, and there are 2 GPUs"):
            perform([LINE], "quantize", {"results_dir": str(trained)}, ["quantize.device=cuda:7"])

    def test_not_twice(self, trained, quantized):
        with pytest.raises(CheckpointError, match="is quantized already"):
            perform([LINE], "quantize", {"results_dir": str(trained)}, [f"quantize.model_path={quantized.files[0]}"])

    def test_nothing_begins_with_a_part_of_its_weights(self, quantized):
        with pytest.raises(CheckpointError, match=r"holds quantized weights \(linear.weight"):
            read(quantized.files[0])

    def test_what_gives_no_numbers_replaces_nothing(self, trained, quantized, tmp_path):
        content = read_raw(next((trained / "train").glob("*_latest.pth")))[0]
        for value in content["state_dict"].values():
            value *= torch.nan if value.is_floating_point() else 1
        torch.save(content, tmp_path / "nan.pth")
        before = {path: path.read_bytes() for path in quantized.files}
        with pytest.raises(CheckpointError, match=f"{FILE} · y: the quantized model gives no numbers"):
            perform([LINE], "quantize", {"results_dir": str(trained)}, [f"quantize.model_path={tmp_path / 'nan.pth'}"])
        assert {path: path.read_bytes() for path in quantized.files} == before
        assert not list((trained / "quantize").glob(".export-*"))

    def test_nothing_to_evaluate_before_quantizing(self, tmp_path):
        with pytest.raises(CheckpointError, match="run the quantize action first"):
            evaluate(tmp_path, "evaluate.is_quantized=true")

    def test_patterns(self, trained, tmp_path, quantized):
        section = {"layers": [{"module_name": "lin*", "weights": {"dtype": "fp8_e4m3fn"}}], "compare": False}
        section |= {"model_path": str(trained / "train"), "results_dir": str(tmp_path)}
        made = perform([LINE], "quantize", {"results_dir": str(trained), "quantize": section})
        content = read_raw(made.files[0])[0]
        assert [name for name, value in content.items() if isinstance(value, dict)] == ["linear.weight"]
        assert content["linear.weight"]["qdata"].dtype == torch.float8_e4m3fn
        assert "test_mean" not in made.kpis
        section["layers"][0]["module_name"] = "Conv2d"
        with pytest.raises(SpecError, match="'Conv2d' matches no layer that can be quantized"):
            perform([LINE], "quantize", {"results_dir": str(trained), "quantize": section})
        section = {**section, "layers": [], "skip_names": ["*"]}
        with pytest.raises(SpecError, match="2 layers could be quantized, and none is"):
            perform([LINE], "quantize", {"results_dir": str(trained), "quantize": section})

    def test_with_compat_tao_no_layer_is_no_layer(self, trained, tmp_path):
        section = {"model_path": str(trained / "train"), "results_dir": str(tmp_path), "compare": False}
        spec = {"results_dir": str(trained), "compat": "tao", "quantize": section}
        made = perform([LINE], "quantize", spec)
        assert not [value for value in read_raw(made.files[0])[0].values() if isinstance(value, dict)]


class TestNetworks:
    def test_convolutions_stay(self, caplog):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        entry = {"module_name": "*", "weights": {"dtype": "int8"}}
        with caplog.at_level("WARNING"):
            plan = plan_network(network, Spec.model_validate({"quantize": {"layers": [entry]}}))
        assert list(plan) == ["2"]
        assert "does not quantize 1 of the layers that quantize.layers names (0)" in caplog.text
        caplog.clear()
        assert list(plan_network(network, Spec())) == ["2"]
        assert not caplog.text  # nobody asked for them


class TestFiles:
    def network(self, tmp_path, plan, *, dynamic=False):
        torch.manual_seed(0)
        network = tiny_runtime.Network().eval()
        plain = tiny_runtime.Network().eval()
        plain.load_state_dict(network.state_dict())
        torchao.quantize(network, plan, dynamic=dynamic, options={})
        torch.save(network.state_dict(), tmp_path / FILE)
        return plain, network

    @pytest.mark.parametrize(("chosen", "dynamic"), [(INT8, False), (INT8, True), (LayerFormat("fp8_e4m3fn"), False)])
    def test_a_file_of_tao_has_no_card(self, tmp_path, chosen, dynamic):
        plain, network = self.network(tmp_path, dict.fromkeys(NAMES, chosen), dynamic=dynamic)
        predictor = open_predictor(tmp_path / FILE, tiny_runtime.Runtime(Spec()))
        x = torch.randn(5, 3)
        wanted = network(x)
        torch.testing.assert_close(predictor.predict({"x": x})["y"], wanted, rtol=0, atol=0)
        assert 0 < (wanted - plain(x)).abs().max() < 0.1

    def test_a_card_of_another_file(self, tmp_path):
        self.network(tmp_path, dict.fromkeys(NAMES, INT8))
        ModelCard(details={"quantizer": "x"}).write_beside(tmp_path / FILE)
        self.network(tmp_path, {"linear": INT8})
        with pytest.raises(CheckpointError, match="the card of another"):
            open_predictor(tmp_path / FILE, tiny_runtime.Runtime(Spec()))
        assert sidecar(tmp_path / FILE).is_file()

    def test_another_network(self, tmp_path):
        torch.save({"other.weight": torch.ones(2), "more": {"weight": torch.ones(2)}}, tmp_path / FILE)
        assert quantizer_of(tmp_path / FILE) == ""

    @pytest.mark.parametrize("change", [{"<class>": "torchao.x.Int4Tensor"}, {"qdata": 3}, {"block_size": None}])
    def test_parts_that_make_no_weight(self, tmp_path, change):
        self.network(tmp_path, {"linear": INT8})
        content = dict(read_raw(tmp_path / FILE)[0])
        with pytest.raises(CheckpointError, match="quantize the model again"):
            torchao.read({**content, "linear.weight": {**content["linear.weight"], **change}}, "x.pth")

    def test_no_code_of_a_file_is_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "ran",))

        path = tmp_path / "torchao.pth"
        torch.save({"x": Evil(), "note": "torchao.quantization"}, path)
        with pytest.raises(CheckpointError, match="would run code"):
            open_predictor(path, tiny_runtime.Runtime(Spec()))
        assert not (tmp_path / "ran").exists()
        path.write_bytes(pickle.dumps(Evil()))
        assert quantizer_of(path) == ""

    def test_options_of_torchao(self):
        with pytest.raises(SpecError, match="torchao refuses them"):
            torchao.quantize(tiny_runtime.Network(), {"linear": INT8}, dynamic=False, options={"speed": 3})
