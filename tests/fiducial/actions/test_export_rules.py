"""What is said of an export before anything is loaded."""

from pathlib import Path

import pytest
from tiny_task import LINE, Spec

from fiducial.actions.export_rules import check_export, check_target, named_target
from fiducial.actions.preflight import check_rules
from fiducial.actions.registry import actions_of


class TestTarget:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("folder.onnx").mkdir()
        Path("model.onnx").touch()
        Path("model.pth").touch()
        Path("dangling.onnx").symlink_to("none")

    @pytest.mark.parametrize("name", ["new.onnx", "NEW.ONNX", "none/new.onnx", "model.pth/new.onnx", "a b.onnx"])
    def test_fine(self, name):
        assert not list(check_target(Path(name), overwrite=False))

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("folder.onnx", "folder.onnx is a folder"),
            (".", "is a folder"),
            ("model.pth", "model.pth does not end in .onnx"),
            ("model", "does not end in .onnx"),
            ("model.engine", "does not end in .onnx"),
            ("model.etlt", "NVIDIA's own"),
            ("n" * 256 + ".onnx", "cannot write to"),
            ("a\0b.onnx", "cannot write to"),
        ],
    )
    def test_never(self, name, found, overwrite):
        (problem,) = check_target(Path(name), overwrite=overwrite)
        assert problem.where == "export.onnx_file"
        assert found in problem.found

    @pytest.mark.parametrize("name", ["model.onnx", "dangling.onnx"])
    def test_only_when_asked(self, name):
        (problem,) = check_target(Path(name), overwrite=False)
        assert "exists already" in problem.found
        assert not list(check_target(Path(name), overwrite=True))


class TestSection:
    def test_everything_at_once(self, tmp_path):
        section = Spec.model_validate(
            {"export": {"opset_version": 99, "batch_size": 0, "onnx_file": str(tmp_path)}}
        ).export
        problems = {problem.where: problem.found for problem in check_export(section)}
        assert set(problems) == {"export.opset_version", "export.batch_size", "export.onnx_file"}

    def test_home_of_nobody_is_a_folder(self):
        section = Spec.model_validate({"export": {"onnx_file": "~nobody-of-this-name/model.onnx"}}).export
        assert not list(check_export(section))
        assert named_target(section) == Path("~nobody-of-this-name/model.onnx")

    def test_other_actions_do_not_look(self):
        spec = Spec.model_validate({"export": {"opset_version": 99}})
        found = {name: check_rules(LINE, spec, actions_of([LINE])[name]) for name in ("export", "evaluate")}
        assert [problem.where for problem in found["export"]] == ["export.opset_version"]
        assert not found["evaluate"]
