"""ONNX files of other programs, damaged ones and hostile ones: an error of one line, or the right numbers."""

import copy
import multiprocessing
import pickle

import numpy as np
import onnx
import onnx_models
import pytest
import tiny_runtime
import torch
from onnx import TensorProto, helper
from onnx_models import AXIS, SUM, constant, outside, value, write
from tiny_task import Spec

from fiducial.deploy import onnx_predictor
from fiducial.deploy.onnx_file import read_onnx
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.errors import CheckpointError

ROWS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def opened(path, **graph):
    runtime = tiny_runtime.Runtime(Spec())
    runtime.graph = lambda: tiny_runtime.Graph({"x": tiny_runtime.GraphInput("x", (3,))}, ("y",), "batch", **graph)
    return OnnxPredictor(path, runtime)


def refused(path, **graph):
    """What is said, in one line for each problem."""
    with pytest.raises(CheckpointError) as caught:
        opened(path, **graph).predict({"x": ROWS})
    assert not [problem for problem in caught.value.problems if "\n" in str(problem)]
    assert str(path) in str(caught.value) or "card" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.onnx"


class TestInterface:
    def test_of_another_program(self, path, caplog):
        np.testing.assert_allclose(opened(write(path)).predict({"x": ROWS})["y"], [6, 15])
        assert f"{path} has no model card: its inputs are prepared as the spec says" in caplog.text

    @pytest.mark.parametrize("shape", [("n", 3), (None, None), ("n", "width")])
    def test_open_sides(self, path, shape):
        write(path, inputs=[value("x", shape)], outputs=[value("y", None)])
        np.testing.assert_allclose(opened(path, shapes={"y": ()}).predict({"x": ROWS})["y"], [6, 15])

    @pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
    def test_other_floats_are_converted(self, path, kind):
        write(path, inputs=[value("x", kind=kind)], outputs=[value("y", ("b",), kind)])
        output = opened(path).predict({"x": ROWS})["y"]
        assert output.dtype == torch.float32
        np.testing.assert_allclose(output, [6, 15])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"inputs": [value("z")], "nodes": [helper.make_node("ReduceSum", ["z", "axis"], ["y"], keepdims=0)]},
             "no input 'x' (it has z)"),
            ({"inputs": [value("x"), value("z")]}, "an input 'z' that the task has no values for"),
            ({"outputs": [value("other", ("b",))],
              "nodes": [helper.make_node("ReduceSum", ["x", "axis"], ["other"], keepdims=0)]},
             "no output 'y' (it has other)"),
            ({"inputs": [value("x", ("b", 4))]}, "input x is [4], the spec composes [3]"),
            ({"inputs": [value("x", ("b", 3, 1))]}, "input x is [3, 1], the spec composes [3]"),
            ({"inputs": [value("x", (3,))], "nodes": [helper.make_node("Identity", ["x"], ["y"])]},
             "input x is [], the spec composes [3]"),
            ({"inputs": [value("x", ())], "nodes": [helper.make_node("Identity", ["x"], ["y"])],
              "outputs": [value("y", ())]}, "input x is [], the spec composes [3]"),
            ({"inputs": [value("x", kind=TensorProto.INT64)], "outputs": [value("y", ("b",), TensorProto.INT64)]},
             "input x takes a int64, and float32 is what it gets"),
            ({"nodes": [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
              "outputs": [value("y", ("b",), TensorProto.INT64)]}, "output y is a int64"),
            ({"inputs": [value("x", (0, 3))], "outputs": [value("y", (0,))]}, "batches of 0"),
        ],
    )  # fmt: skip
    def test_that_does_not_fit(self, path, changes, said):
        assert said in refused(write(path, **changes))

    def test_sequences_are_no_tensors(self, path):
        sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
        write(path, [helper.make_node("SequenceConstruct", ["x"], ["y"])], outputs=[sequence])
        assert "output y is a seq(tensor(float))" in refused(path)

    def test_two_batch_sizes(self, path):
        runtime = tiny_runtime.Runtime(Spec())
        two = {name: tiny_runtime.GraphInput(name, (3,)) for name in ("x", "z")}
        runtime.graph = lambda: tiny_runtime.Graph(two, ("y",), "batch")
        write(path, inputs=[value("x", (2, 3)), value("z", (4, 3))])
        with pytest.raises(CheckpointError, match="batches of 2, 4 for its inputs"):
            OnnxPredictor(path, runtime)

    def test_outputs_of_another_shape(self, path):
        write(path, [helper.make_node("Identity", ["x"], ["y"])], outputs=[value("y", None)])
        assert "output y is [3], the spec's network gives []" in refused(path, shapes={"y": ()})

    def test_outputs_of_another_batch(self, path):
        write(path, [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], outputs=[value("y", None)])
        assert "output y is [] instead of [2]" in refused(path)


class TestRunning:
    def test_operator_that_does_not_exist(self, path):
        assert "onnxruntime cannot load it" in refused(write(path, [helper.make_node("Nothing", ["x"], ["y"])]))

    @pytest.mark.parametrize("domain", ["nvidia", "trt"])
    def test_nodes_of_tensorrt(self, path, domain):
        nodes = [helper.make_node("MultiscaleDeformableAttnPlugin_TRT", ["x"], ["y"], domain=domain)]
        text = refused(write(path, nodes))
        assert "MultiscaleDeformableAttnPlugin_TRT" in text
        assert "export.deformable_attention=gather" in text

    @pytest.mark.parametrize("name", ["RandomNormalLike", "Bernoulli"])
    def test_random_numbers(self, path, name):
        assert f"draws random numbers ({name})" in refused(write(path, [helper.make_node(name, ["x"], ["y"])]))

    def test_shapes_that_do_not_meet(self, path):
        nodes = [helper.make_node("Add", ["x", "w"], ["s"]), helper.make_node("ReduceSum", ["s", "axis"], ["y"])]
        write(path, nodes, [constant("w", np.ones(7)), *AXIS], inputs=[value("x", ("b", None))])
        assert "onnxruntime stopped" in refused(path)

    @pytest.mark.parametrize("name", ["ConstantOfShape", "Expand"])
    def test_more_memory_than_there_is(self, path, name):
        inputs = ["shape"] if name == "ConstantOfShape" else ["x", "shape"]
        nodes = [helper.make_node(name, inputs, ["large"]), helper.make_node("ReduceSum", ["large"], ["y"])]
        text = refused(write(path, nodes, [constant("shape", [2**44, 1, 3], np.int64)], outputs=[value("y", None)]))
        assert "onnxruntime" in text

    def test_a_loop_without_end(self, path, monkeypatch):
        monkeypatch.setattr(onnx_predictor, "LOOP_SECONDS", 0.3)
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Identity", ["in"], ["out"])],
            "body",
            [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("in", None)],
            [value("still", [], TensorProto.BOOL), value("out", None)],
        )
        nodes = [helper.make_node("Loop", ["count", "go", "x"], ["same"], body=body)]
        nodes += [helper.make_node("ReduceSum", ["same", "axis"], ["y"], keepdims=0)]
        for count, ends in ((3, True), (2**60, False)):
            more = [constant("count", count, np.int64), constant("go", True, np.bool_)]
            write(path, nodes, [*AXIS, *more])
            assert read_onnx(path).has_loops
            if ends:
                np.testing.assert_allclose(opened(path).predict({"x": ROWS})["y"], [6, 15])
            else:
                assert "its loops did not end within 0.3 s" in refused(path)


class TestWeightsBesideTheGraph:
    NODES = (
        helper.make_node("Mul", ["x", "w"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axis"], ["y"], keepdims=0),
    )

    def test_are_read(self, path):
        path.with_name("w.bin").write_bytes(np.array([1, 10, 100], np.float32).tobytes())
        write(path, self.NODES, [outside("w", "w.bin"), *AXIS])
        np.testing.assert_allclose(opened(path).predict({"x": ROWS})["y"], [321, 654])

    @pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "folder/../../w.bin", "link.bin"])
    def test_outside_of_the_folder(self, tmp_path, location):
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "w.bin").write_bytes(bytes(12))
        (folder / "link.bin").symlink_to(tmp_path / "w.bin")
        write(folder / "m.onnx", self.NODES, [outside("w", location), *AXIS])
        assert f"in {location!r}, outside of its folder" in refused(folder / "m.onnx")

    def test_in_an_attribute(self, path):
        hidden = helper.make_node("Constant", [], ["w"], value=outside("w", "../w.bin"))
        assert "outside of its folder" in refused(write(path, [hidden, *self.NODES]))

    def test_that_are_not_there(self, path):
        assert "in 'w.bin', which is not there · copy both files" in refused(
            write(path, self.NODES, [outside("w", "w.bin"), *AXIS])
        )

    @pytest.mark.parametrize("more", [{"offset": 100}, {"offset": -4}, {"length": 4}, {"offset": "x"}])
    def test_that_end_too_early(self, path, more):
        path.with_name("w.bin").write_bytes(bytes(12))
        assert "onnxruntime" in refused(write(path, self.NODES, [outside("w", "w.bin", **more), *AXIS]))


class TestFile:
    @pytest.mark.parametrize(
        "content", [b"", b"\0", b"no model", b"PK\3\4", b"\x08\x07" * 40, b"\x3a\xff\xff\xff\xff\x07", bytes(1000)]
    )
    def test_no_onnx(self, path, content):
        path.write_bytes(content)
        assert "not an ONNX file" in refused(path)

    def test_cut_off_anywhere(self, path):
        content = write(path, card={}).read_bytes()
        for end in range(0, len(content), 7):
            path.write_bytes(content[:end])
            refused(path)

    def test_no_file(self, tmp_path, path):
        assert "no such file" in refused(path)
        path.symlink_to("/dev/zero")
        assert "no such file" in refused(path)
        assert "no such file" in refused(tmp_path)

    def test_names_that_are_no_text(self, path):
        content = write(path, card={}).read_bytes().replace(b"ReduceSum", b"Reduce\xffum")
        path.write_bytes(content)
        assert "op_type is not UTF-8" in refused(path)

    @pytest.mark.parametrize(
        "card",
        [
            *("{nope", "null", "5", "[]", '"text"', "", "NaN", "[" * 10_000),
            *({"mean": "x", "std": None}, {"mean": [1, None]}, {"mean": [float("nan")]}, {"std": [0.0]}),
            *({"mean": [10**400]}, {"mean": [True]}, {"threshold": "half"}, {"threshold": float("inf")}),
            *({"task": 5}, {"backbone": []}, {"inputs": {"x": {"shape": [1e400], "dtype": "float32"}}}, {"classes": 5}),
        ],
    )
    def test_cards_that_are_none(self, path, card):
        assert "its model card cannot be read" in refused(write(path, card=card))

    @pytest.mark.parametrize("colours", ["BGR", "rgb", ""])
    def test_other_colours(self, path, colours):
        assert "takes colours in the order" in refused(write(path, card={"colours": colours}))


class TestPickled:
    @pytest.fixture
    def predictor(self, path):
        return opened(write(path, card={"task": "line"}))

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_gives_the_same(self, predictor, again):
        other = again(predictor)
        assert other.session is not predictor.session
        assert torch.equal(other.predict({"x": ROWS})["y"], predictor.predict({"x": ROWS})["y"])

    def test_in_a_process_of_its_own(self, predictor):
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            (got,) = pool.map(predictor.predict, [{"x": ROWS}])
        assert torch.equal(got["y"], predictor.predict({"x": ROWS})["y"])

    def test_from_another_folder(self, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        write(path)
        kept = pickle.dumps(opened(type(path)(path.name)))
        monkeypatch.chdir("/")
        np.testing.assert_allclose(pickle.loads(kept).predict({"x": ROWS})["y"], [6, 15])

    def test_file_that_is_gone(self, predictor, path):
        kept = pickle.dumps(predictor)
        path.rename(path.with_name("other.onnx"))
        with pytest.raises(CheckpointError, match=r"m\.onnx · no such file"):
            pickle.loads(kept)

    def test_file_that_has_changed(self, predictor, path):
        kept = pickle.dumps(predictor)
        write(path, card={"task": "another"})
        with pytest.raises(CheckpointError, match="has changed since"):
            pickle.loads(kept)


def test_makers_write_what_the_checker_takes(path):
    onnx.checker.check_model(str(write(path, SUM, onnx_models.AXIS, card={})), full_check=True)
