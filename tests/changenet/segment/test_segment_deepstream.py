"""The files for DeepStream: both inputs, the result's logits."""

import pytest
import yaml

from changenet.segment.runtime import SegmentRuntime
from fiducial.errors import CheckpointError


@pytest.mark.parametrize("compat", ["off", "tao"])  # TAO writes none for this task
def test_files(make_spec, tmp_path, compat):
    mean, std = [0.2, 0.4, 0.6], [0.25, 0.25, 0.25]
    augmentation = {"mean": mean, "std": std}
    export = {"serialize_nvdsinfer": True}
    spec = make_spec(compat=compat, dataset__segment__augmentation=augmentation, export=export)
    written = SegmentRuntime(spec).write_beside_export(tmp_path / "model.onnx")
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "labels.txt").read_text() == "0;1\n"
    infer = yaml.safe_load((tmp_path / "nvdsinfer_config.yaml").read_text())["property"]
    assert (infer["network-type"], infer["output-tensor-meta"]) == (100, 1)
    assert (infer["output-blob-names"], infer["infer-dims"]) == ("output_final", "3;32;32")
    for number in (0, 1):
        config = yaml.safe_load((tmp_path / f"nvdspreprocess_config_{number}.yaml").read_text())
        assert config["property"]["tensor-name"] == f"input{number}"
        offsets = [float(offset) for offset in config["user-configs"]["offsets"].split(";")]
        factor = config["user-configs"]["pixel-normalization-factor"]
        assert [(51 - offset) * factor for offset in offsets] == pytest.approx([0, -0.8, -1.6], abs=1e-4)


def test_a_file_that_cannot_be_written(make_spec, tmp_path):
    (tmp_path / "nvdsinfer_config.yaml").mkdir()
    runtime = SegmentRuntime(make_spec(export={"serialize_nvdsinfer": True}))
    with pytest.raises(CheckpointError, match=r"nvdsinfer_config\.yaml · cannot be written \(Is a directory\)"):
        runtime.write_beside_export(tmp_path / "model.onnx")
