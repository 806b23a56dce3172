"""ModelOpt on networks and on graphs of two inputs that share their weights, as siamese networks do."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_runtime
import torch
from tiny_task import LINE, Spec
from torch import nn

from fiducial.actions.perform import perform
from fiducial.checkpoints.reading import read_raw
from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.quantize import modelopt_onnx, modelopt_torch
from fiducial.deploy.quantize.artefacts import quantizer_of
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.quantize.patterns import INT8, LayerFormat
from fiducial.errors import CheckpointError, SpecError
from fiducial.ops.linear import Linear
from fiducial.prediction import Graph, GraphInput
from fiducial.spec.common import QuantizeSection
from fiducial.task import CalibrationData

GRAPH = Graph({"a": GraphInput("a", (3, 32, 32)), "b": GraphInput("b", (3, 32, 32))}, ("y",), "batch")


class Twins(nn.Module):
    """Two images through the same layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid, self.fc = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 32, 3, stride=2), Linear(32, 64)
        self.out = Linear(64, 2)

    def one(self, x):
        tokens = torch.relu(self.mid(torch.relu(self.conv(x)))).flatten(2).transpose(1, 2)
        return self.fc(tokens).mean(1)

    def forward(self, a, b):
        return self.out(torch.relu(self.one(a) - self.one(b)))


def twins():
    torch.manual_seed(0)
    return Twins().eval()


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(2, 3, 32, 32, generator=generator) for _ in range(2)) for _ in range(4)]


def quantized(plan, pairs, *, entropy=False):
    network = twins()
    modelopt_torch.quantize(network, plan, lambda: iter(pairs), entropy=entropy)
    return network


class TestNetworks:
    @pytest.mark.parametrize("chosen", [INT8, LayerFormat("int8"), LayerFormat("fp8_e4m3fn", "fp8_e5m2")])
    @pytest.mark.parametrize("entropy", [False, True])
    def test_saved_and_opened_it_gives_the_same(self, pairs, tmp_path, chosen, entropy):
        network = quantized(dict.fromkeys(("conv", "fc"), chosen), pairs, entropy=entropy)
        torch.save(modelopt_torch.state(network), tmp_path / "m.pth")
        assert quantizer_of(tmp_path / "m.pth") == "modelopt"
        stored = modelopt_torch.read(read_raw(tmp_path / "m.pth")[0], "m.pth")
        again = twins()
        again.load_state_dict(stored.weights)
        stored.put(again)
        with torch.no_grad():
            wanted, plain = network(*pairs[0]), twins()(*pairs[0])
            torch.testing.assert_close(again(*pairs[0]), wanted, rtol=0, atol=0)
        assert 0 < (wanted - plain).abs().max() < 0.1 * plain.abs().max()

    def test_only_what_was_planned(self, pairs):
        network = quantized({"fc": INT8}, pairs)
        on = [name for name, one in modelopt_torch._quantizers(network) if one.is_enabled]
        assert on == ["fc.input_quantizer", "fc.weight_quantizer"]

    @pytest.mark.parametrize("entropy", [False, True])
    def test_layers_that_are_never_called_are_left_out(self, pairs, tmp_path, caplog, entropy):
        network = twins()
        network.forward = lambda a, b: network.one(a - b) @ network.out.weight.T
        with caplog.at_level("WARNING"):
            modelopt_torch.quantize(network, {"fc": INT8, "out": INT8}, lambda: iter(pairs), entropy=entropy)
        assert "does not reach 1 layers" in caplog.text
        del network.forward
        torch.save(modelopt_torch.state(network), tmp_path / "m.pth")
        modelopt_torch.read(read_raw(tmp_path / "m.pth")[0], "m.pth").put(again := twins())
        assert [name for name, one in modelopt_torch._quantizers(again) if one.is_enabled] == [
            *("fc.input_quantizer", "fc.weight_quantizer"),
        ]

    def test_entropy_is_another_scale_than_the_largest_value(self, pairs):
        odd = [(a.clone(), b) for a, b in pairs]
        odd[0][0][0, 0, 0, 0] = 40  # one number far beyond all others
        networks = [quantized({"conv": INT8}, odd, entropy=entropy) for entropy in (False, True)]
        scales = [network.conv.input_quantizer.amax for network in networks]
        assert scales[0] == 40
        assert 3 < scales[1] < 20

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda states, steps: steps.append(("sparsity", {})), "ModelOpt did sparsity to it"),
            (lambda states, steps: states["fc.weight_quantizer"].update(_num_bits=4), "rounds in a way"),
            (lambda states, steps: states["fc.weight_quantizer"].update(_rotate=True), "_rotate"),
            (
                lambda states, steps: states.update({"conv.weight_quantizer": states["fc.weight_quantizer"]}),
                "no scale of",
            ),
            (lambda states, steps: steps.append(3), "cannot be read"),
        ],
    )
    def test_states_that_are_not_taken_over(self, pairs, tmp_path, change, said):
        torch.save(modelopt_torch.state(quantized({"fc": INT8}, pairs)), tmp_path / "m.pth")
        content = read_raw(tmp_path / "m.pth")[0]
        steps = content["modelopt_state"]["modelopt_state_dict"]
        change(steps[-1][1]["metadata"]["quantizer_state"], steps)
        with pytest.raises(CheckpointError, match=said):
            modelopt_torch.read(content, "m.pth")

    def test_the_action(self, tmp_path, capsys):
        spec = {"results_dir": str(tmp_path), "train": {"num_epochs": 1}}
        perform([LINE], "train", spec)
        changes = ["quantize.backend=modelopt", "quantize.mode=static_ptq", "quantize.calibration_items=4"]
        made = perform([LINE], "quantize", spec, changes)
        assert capsys.readouterr().out == ""
        assert made.files[0].name == "quantized_model_modelopt.pytorch.pth"
        assert {"modelopt_state", "model_state_dict"} == set(read_raw(made.files[0])[0])
        found = perform([LINE], "evaluate", spec, ["evaluate.is_quantized=true"])
        assert found.kpis["test_mean"] == pytest.approx(made.kpis["test_mean"], rel=1e-6)
        old = made.files[0].rename(tmp_path / "quantized_model_modelopt.pth")  # TAO's older name, and no card
        predictor = open_predictor(old, tiny_runtime.Runtime(Spec()))
        assert predictor.predict({"x": torch.ones(1, 3)})["y"].isfinite().all()

    def test_the_export_of_what_the_action_wrote(self, tmp_path):
        spec = {"results_dir": str(tmp_path), "train": {"num_epochs": 1}}
        perform([LINE], "train", spec)
        changes = ["quantize.backend=modelopt", "quantize.mode=static_ptq", "quantize.calibration_items=4"]
        made = perform([LINE], "quantize", spec, changes)
        exported = perform([LINE], "export", spec, ["export.is_quantized=true"]).files[0]
        kinds = [node.op_type for node in onnx.load(exported).graph.node]
        assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
        assert quantizer_of(exported).startswith("modelopt")
        assert ModelCard.read(exported).weights == ModelCard.beside(made.files[0]).weights  # one model to a gallery
        found = perform([LINE], "evaluate", spec, [f"evaluate.checkpoint={exported}"])
        assert found.kpis["test_mean"] == pytest.approx(made.kpis["test_mean"], rel=1e-2)
        with pytest.raises(CheckpointError, match=r"export\.is_quantized.*was quantized"):
            perform([LINE], "export", spec, [f"export.checkpoint={made.files[0]}"])
        newest = [f"export.checkpoint={made.files[0]}", "export.is_quantized=true", "export.opset_version=21"]
        with pytest.raises(SpecError, match="a quantized network is written in ONNX operator set 13 to 20"):
            perform([LINE], "export", spec, newest)

    def test_fp8_is_not_exported(self, pairs):
        with pytest.raises(CheckpointError, match=r"fc\.weight_quantizer rounds to fp8"):
            modelopt_torch.check_exportable(quantized({"fc": LayerFormat("fp8_e4m3fn")}, pairs))
        modelopt_torch.check_exportable(quantized({"fc": INT8}, pairs))


@pytest.fixture(scope="module")
def source(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("graph") / "twins.onnx"
    axes = {name: {0: "batch"} for name in ("a", "b", "y")}
    arguments = {"input_names": ["a", "b"], "output_names": ["y"], "dynamic_axes": axes}
    torch.onnx.export(twins(), pairs[0], str(path), opset_version=17, dynamo=False, **arguments)
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = ENTRY, json.dumps(ModelCard(network="n", task="t").plain())
    onnx.save(model, path)
    return path


def make(source, target, pairs, *, all_kinds=False, **section):
    items = [{"a": a[i], "b": b[i]} for a, b in pairs for i in range(2)]
    batches = CalibrationBatches(CalibrationData(items, "pairs"), GRAPH, items=8)
    section = QuantizeSection.model_validate({"backend": "modelopt.onnx", "mode": "static_ptq", **section})
    modelopt_onnx.quantize(source, target, section, batches, all_kinds=all_kinds)
    return onnx.load(target)


def run(path, pair, **entries):
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    if not entries:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"a": pair[0].numpy(), "b": pair[1].numpy()})[0]


class TestGraphs:
    @pytest.mark.parametrize("algorithm", ["max", "entropy"])
    def test_int8(self, source, pairs, tmp_path, algorithm):
        target = tmp_path / "quantized_model.onnx"
        model = make(source, target, pairs, algorithm=algorithm)
        assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
        card = ModelCard.read(target)
        assert (card.network, card.details["quantizer"].split()[0]) == ("n", "modelopt")
        assert quantizer_of(target).startswith("modelopt")
        assert [path.name for path in tmp_path.iterdir()] == ["quantized_model.onnx"]
        wanted, exact = run(source, pairs[0]), run(target, pairs[0])
        assert 0 < np.abs(exact - wanted).max() < 0.1 * np.ptp(wanted)
        # onnxruntime's own fused kernels overflow on CPUs without VNNI, unless they are told not to
        fused = run(target, pairs[0], session__x64quantprecision="1")
        assert np.abs(fused - exact).max() < 0.02 * np.ptp(wanted)

    def test_fp8(self, source, pairs, tmp_path):
        entry = {"module_name": "*", "weights": {"dtype": "float8_e4m3fn"}}
        model = make(source, tmp_path / "q.onnx", pairs, layers=[entry])
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        kinds |= {attribute.t.data_type for node in model.graph.node for attribute in node.attribute}
        assert onnx.TensorProto.FLOAT8E4M3FN in kinds

    def test_types_names_and_what_is_left_out(self, source, pairs, tmp_path, caplog):
        def kinds_of(model):
            made = {name: node for node in model.graph.node for name in node.output}
            return {
                node.op_type
                for node in model.graph.node
                if node.op_type in ("Conv", "Gemm", "MatMul")
                and any(made[name].op_type == "DequantizeLinear" for name in node.input if name in made)
            }

        conv = {"module_name": "Conv2d", "weights": {"dtype": "int8"}}
        assert kinds_of(make(source, tmp_path / "q.onnx", pairs, layers=[conv])) == {"Conv"}
        names = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]
        skipped = make(source, tmp_path / "q.onnx", pairs, skip_names=["/conv/*", "/mid/*", "*Conv*"])
        assert names
        assert "Conv" not in kinds_of(skipped)
        make(source, tmp_path / "q.onnx", pairs, skip_names=["*Conv*", "decoder"])
        assert "quantize.skip_names: no layer that could be quantized is named decoder" in caplog.text

    def test_without_layers_it_is_what_multiplies(self, source, monkeypatch, tmp_path, pairs):
        asked = []
        monkeypatch.setattr(modelopt_onnx, "_run", lambda *arguments: asked.append(arguments[-1]))
        for all_kinds in (False, True):
            with pytest.raises(FileNotFoundError):  # nothing was written
                make(source, tmp_path / "q.onnx", pairs, all_kinds=all_kinds)
        assert [options["op_types_to_quantize"] for options in asked] == [["Conv", "Gemm", "MatMul"], None]

    def test_a_pattern_of_nothing_and_options_that_are_none(self, source, pairs, tmp_path):
        with pytest.raises(SpecError, match="'decoder' matches no node"):
            make(source, tmp_path / "q.onnx", pairs, layers=[{"module_name": "decoder", "weights": {"dtype": "int8"}}])
        with pytest.raises(SpecError, match="backend_kwargs"):
            make(source, tmp_path / "q.onnx", pairs, backend_kwargs={"speed_of_light": 1})
        with pytest.raises(CheckpointError, match="ModelOpt cannot quantize it") as raised:
            make(source, tmp_path / "q.onnx", pairs, backend_kwargs={"calibration_shapes": 3})
        assert raised.value.problems[0].where == str(source)
        assert not (tmp_path / "q.onnx").exists()
