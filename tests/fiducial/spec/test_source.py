"""Reading a spec file: what may be wrapped, where the action would write."""

import pytest
from tiny_task import Spec

from fiducial.errors import SpecError
from fiducial.spec.source import Source, read_source


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return path

    return write


class TestUnwrap:
    def test_before_aliases_and_overrides(self, file):
        path = file("wrapped: {train: {learning_rate: 0.2, seed: 3}}")
        source = read_source(Spec, path, ["train.seed=5"], unwrap=lambda tree: tree["wrapped"])
        assert source.tree == {"train": {"lr": 0.2, "seed": 5}}
        assert source.given == {"train", "train.lr", "train.seed"}

    def test_is_given_the_file_as_written(self, file):
        seen = []
        read_source(
            Spec, file("train: {learning_rate: 0.2}"), ["train.seed=5"], unwrap=lambda tree: seen.append(tree) or {}
        )
        assert seen == [{"train": {"learning_rate": 0.2}}]

    def test_without_a_file_there_is_nothing_to_unwrap(self):
        assert read_source(Spec, None, ["train.seed=5"], unwrap=lambda tree: tree["wrapped"]).tree == {
            "train": {"seed": 5}
        }

    def test_its_error_is_the_users(self, file):
        def unwrap(tree):
            raise SpecError("spec", "is not wrapped", "wrap it")

        with pytest.raises(SpecError, match="is not wrapped"):
            read_source(Spec, file("train: {}"), (), unwrap=unwrap)


def test_more_secrets_than_a_spec_has_are_refused():
    urls = {f"a{i}": f"https://me{i}:secret{i}@host/x" for i in range(300)}
    with pytest.raises(SpecError, match="passwords, keys and signed URLs"):
        read_source(Spec, {"clearml": urls}, ())


class TestResultsDir:
    @pytest.mark.parametrize(
        ("tree", "folder"),
        [
            ({"results_dir": "/r"}, "/r/evaluate"),
            ({"results_dir": "/data/r"}, "/here/r/evaluate"),
            ({"results_dir": "/r", "evaluate": {"results_dir": "/e"}}, "/e"),
            ({"results_dir": "/r", "evaluate": 3}, "/r/evaluate"),
            ({"results_dir": "/r", "evaluate": {"results_dir": "${x}"}}, "/r/evaluate"),
            *(({"results_dir": value}, None) for value in ("", "???", None, 3, "${x}")),
        ],
    )
    def test_as_far_as_the_tree_tells(self, tree, folder):
        assert Source(tree).results_dir("evaluate", {"/data": "/here"}) == folder

    def test_folder_named_after_the_section(self):
        tree = {"results_dir": "/r", "evaluate": {"trt_engine": "m.engine", "batch_size": "many"}}
        assert Source(tree).results_dir("evaluate", {}, lambda own: f"trt_{own['batch_size']}") == "/r/trt_many"
        tree["evaluate"]["results_dir"] = "/e"
        assert Source(tree).results_dir("evaluate", {}, lambda own: "trt") == "/e"
