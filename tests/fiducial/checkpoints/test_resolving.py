"""From what a user writes to a file."""

import json
import os

import pytest

from fiducial.checkpoints import real_file, resolve_model_file
from fiducial.checkpoints.resolving import newest_first
from fiducial.errors import CheckpointError

PREFIX = "changenet_model_classify"


@pytest.fixture
def train(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for epoch, step in ((0, 10), (1, 20), (1, 25), (2, 30), (10, 110)):
        (folder / f"model_epoch_{epoch:03d}_step_{step:05d}.pth").write_bytes(b"x")
    (folder / f"{PREFIX}_latest.pth").symlink_to("model_epoch_002_step_00030.pth")
    (folder / "other_latest.pth").symlink_to("model_epoch_000_step_00010.pth")
    return folder


def resolve(value, root, **options):
    return resolve_model_file(value, results_dir=root, prefix=PREFIX, key="evaluate.checkpoint", **options)


def name(value, root, **options):
    return resolve(value, root, **options).path.name


def write_status(train, records):
    (train / "status.json").write_text("\n".join(json.dumps(record) for record in records) + '\n{"cut o')


class TestLatest:
    @pytest.mark.parametrize("value", ["latest", None, "", "???"])
    def test_own_link(self, train, value):
        found = resolve(value, train.parent)
        assert found.path == (train / "model_epoch_002_step_00030.pth").resolve()
        assert ("is not set" in found.how) == (value != "latest")

    def test_regular_file_and_text_pointer(self, train):
        link = train / f"{PREFIX}_latest.pth"
        link.unlink()
        link.write_text("model_epoch_001_step_00020.pth\n")
        assert name("latest", train.parent) == "model_epoch_001_step_00020.pth"
        link.write_bytes(b"PK\x03\x04")
        assert name("latest", train.parent) == link.name

    def test_without_link_the_highest(self, train):
        (train / f"{PREFIX}_latest.pth").unlink()
        assert name("latest", train.parent) == "model_epoch_010_step_00110.pth"

    @pytest.mark.parametrize("target", [f"{PREFIX}_latest.pth", "gone.pth"])
    def test_broken_link_is_passed_over_and_said(self, train, target):
        link = train / f"{PREFIX}_latest.pth"
        link.unlink()
        link.symlink_to(target)
        found = resolve("latest", train.parent)
        assert found.path.name == "model_epoch_010_step_00110.pth"
        assert "link" in found.how
        for path in train.glob("model_*"):
            path.unlink()
        with pytest.raises(CheckpointError, match=r"link to itself|links to gone"):
            resolve("latest", train.parent)


class TestBest:
    def test_best_file_first(self, train):
        (train / "model_best_001.pth").touch()
        (train / f"{PREFIX}_best.pth").symlink_to("model_epoch_001_step_00020.pth")
        assert name("best", train.parent) == "model_best_001.pth"
        (train / "model_best_001.pth").unlink()
        assert name("best", train.parent) == "model_epoch_001_step_00020.pth"

    def test_several_best_files_by_metric(self, train):
        for epoch in (1, 2):
            (train / f"model_best_{epoch:03d}.pth").touch()
        assert name("best", train.parent) == "model_best_002.pth"
        write_status(train, [{"epoch": e, "message": "Eval metrics generated.", "kpi": {"v": e}} for e in (1, 2)])
        assert name("best", train.parent, monitor="v") == "model_best_001.pth"
        assert name("best", train.parent, monitor="v", mode="max") == "model_best_002.pth"

    def test_status_of_tao_with_sticky_kpis(self, train):
        records = []
        for epoch, loss in ((0, 0.5), (1, 0.2), (2, float("nan")), (3, 0.1), (10, 0.4)):
            kpi = {"val_loss": loss}
            records += [
                {"message": "Eval metrics generated.", "kpi": kpi},
                {"epoch": epoch, "message": "Training loop in progress", "kpi": kpi},
                {"message": "Train metrics generated.", "kpi": {"train_loss": 10 - loss}},
                {"message": "some log line", "kpi": {"train_loss": 10 - loss}},
            ]
        write_status(train, records)
        found = resolve("best", train.parent, monitor="val_loss")
        assert found.path.name == "model_epoch_001_step_00025.pth"  # epoch 3 is better and not saved
        assert "epoch 1" in found.how
        assert "0.2" in found.how
        assert name("best", train.parent, monitor="train_loss") == "model_epoch_000_step_00010.pth"
        assert name("best", train.parent, monitor="nothing") == "model_epoch_002_step_00030.pth"

    def test_status_of_tao_that_validates_after_the_epoch(self, train):
        """One of its networks writes the record of the validation between those of the loop and of the training."""
        records = []
        for epoch, rank in ((0, 0.5), (1, 0.9), (2, 0.7)):
            records += [
                {"epoch": epoch, "message": "Training loop in progress"},
                {"message": "Eval metrics generated.", "kpi": {"val Precision at Rank 1": rank}},
                {"message": "Train metrics generated.", "kpi": {"train_loss": 1.0}},
            ]
        write_status(train, records)
        found = resolve("best", train.parent, monitor="val Precision at Rank 1", mode="max")
        assert found.path.name == "model_epoch_001_step_00025.pth"

    def test_weights_of_another_program_are_no_checkpoint(self, train):
        (train / "model.bin").touch()  # OpenVINO's
        for path in train.glob("*.pth"):
            path.unlink()
        with pytest.raises(CheckpointError, match="holds no"):
            resolve("best", train.parent)


class TestNewestFirst:
    """What a training may be continued from: `latest`, then the highest epoch and step, `best` at the end."""

    STEPS = ((10, 110), (2, 30), (1, 25), (1, 20), (0, 10))

    def names(self, folder):
        return [path.name for path in newest_first(folder, prefix=PREFIX, key="k")]

    def expected(self, *steps):
        return [f"model_epoch_{epoch:03d}_step_{step:05d}.pth" for epoch, step in steps]

    def test_link_first(self, train):
        rest = [step for step in self.STEPS if step != (2, 30)]
        assert self.names(train.parent) == self.names(train) == self.expected((2, 30), *rest)

    @pytest.mark.parametrize("how", ["no link", "to nothing", "to itself"])
    def test_link_that_leads_nowhere(self, train, how):
        link = train / f"{PREFIX}_latest.pth"
        link.unlink()
        if how != "no link":
            link.symlink_to("gone.pth" if how == "to nothing" else link.name)
        assert self.names(train) == self.expected(*self.STEPS)

    def test_text_pointer_and_copy(self, train):
        link = train / f"{PREFIX}_latest.pth"
        link.unlink()
        link.write_text("model_epoch_001_step_00020.pth\n")
        assert self.names(train)[0] == "model_epoch_001_step_00020.pth"
        link.write_bytes(b"PK\x03\x04")
        assert self.names(train)[:2] == [link.name, *self.expected(self.STEPS[0])]

    def test_best_files_after_those_of_their_epoch(self, train):
        (train / f"{PREFIX}_latest.pth").unlink()
        (train / "model_best_002.pth").write_bytes(b"x")
        (train / "model_best_epoch_011.pth").write_bytes(b"x")
        (train / "named_otherwise.pth").write_bytes(b"x")
        (train / f"{PREFIX}_best.pth").symlink_to("named_otherwise.pth")
        first, second, third, *_, last = self.names(train)
        assert (first, second, third) == ("model_best_epoch_011.pth", *self.expected((10, 110), (2, 30)))
        assert self.names(train)[3] == "model_best_002.pth"
        assert last == "named_otherwise.pth"

    def test_nothing(self, tmp_path):
        assert self.names(tmp_path) == []
        with pytest.raises(CheckpointError, match="k · no folder"):
            self.names(tmp_path / "none")


class TestPaths:
    def test_folder_of_which_the_latest_is_meant(self, train):
        (train / "model_best_001.pth").write_bytes(b"x")
        assert name(str(train), None, of_folder="latest") == "model_epoch_002_step_00030.pth"
        assert name(str(train.parent), None) == "model_best_001.pth"

    def test_folders(self, train):
        (train.parent / "evaluate").mkdir()
        for folder in (train, train.parent):
            assert name(folder, None) == "model_epoch_002_step_00030.pth"
        with pytest.raises(CheckpointError, match=r"holds no \.pth"):
            resolve(train.parent / "evaluate", None)

    def test_file_as_given(self, train, monkeypatch):
        link = train / f"{PREFIX}_latest.pth"
        assert resolve(str(link), None) == type(resolve(link, None))(link, "given")
        monkeypatch.setenv("HOME", str(train))
        assert resolve("~/model_epoch_000_step_00010.pth", None).path == train / "model_epoch_000_step_00010.pth"

    def test_missing_file_names_the_nearest_of_its_kind(self, train):
        (train / "model.onnx").touch()
        with pytest.raises(CheckpointError, match=r"train holds model\.onnx$"):
            resolve(train / "modle.onnx", None, suffixes=(".onnx",))
        with pytest.raises(CheckpointError, match=r"train holds no \.engine or \.plan file"):
            resolve(train / "model.engine", None, suffixes=(".engine", ".plan"))

    def test_missing_file_names_the_nearest(self, train):
        with pytest.raises(CheckpointError, match=r"evaluate\.checkpoint · no file .*model_epoch_002_step_00030\.pth"):
            resolve(train / "model_epoch_002_step_00031.pth", None)
        with pytest.raises(CheckpointError, match="there is no folder"):
            resolve(train / "no" / "x.pth", None)
        with pytest.raises(CheckpointError, match=r"no file .*lastest · did you mean latest\?"):
            resolve("lastest", None)
        with pytest.raises(CheckpointError, match="not on this machine"):
            resolve("https://example.org/x.pth", None)

    def test_self_link(self, train):
        link = train / "self.pth"
        link.symlink_to(link.name)
        with pytest.raises(CheckpointError, match=r"self\.pth is a link to itself · delete it"):
            real_file(link)
        (train / "a.pth").write_text("a.pth")
        with pytest.raises(CheckpointError, match="points to itself"):
            real_file(train / "a.pth")

    def test_deployed_files_are_the_newest(self, train):
        export = train.parent / "export"
        export.mkdir()
        for age, file in ((10, "old.onnx"), (5, "new.onnx"), (1, "model.engine")):
            (export / file).touch()
            os.utime(export / file, (1e9 - age, 1e9 - age))
        for value in ("latest", None, train.parent, export):
            assert name(value, train.parent, suffixes=(".onnx",)) == "new.onnx"
        assert name(train.parent, None, suffixes=(".engine", ".trt")) == "model.engine"

    def test_of_a_search_the_best_training_and_what_was_made_of_it(self, train, tmp_path_factory):
        root = tmp_path_factory.mktemp("searched")
        (root / "export").mkdir()
        (root / "export/model.onnx").touch()
        (root / "automl").mkdir()
        (root / "automl/best.json").write_text(json.dumps({"folder": str(train.parent)}))
        for value in (root, "latest", None):
            assert name(value, root) == "model_epoch_002_step_00030.pth"
            assert name(value, root, suffixes=(".onnx",)) == "model.onnx"

    def test_of_a_search_the_epoch_that_its_best_training_counts_by(self, train):
        (train / f"{PREFIX}_best.pth").symlink_to("model_epoch_010_step_00110.pth")
        (train.parent / "best.json").write_text(json.dumps({"folder": ".", "epoch": 2}))
        assert name(train.parent, None) == "model_epoch_001_step_00025.pth"
        (train.parent / "best.json").write_text(json.dumps({"folder": ".", "epoch": 5}))
        assert name(train.parent, None) == "model_epoch_010_step_00110.pth"


class TestEpoch:
    def test_last_step_of_the_epoch(self, train):
        assert name("epoch:1", train.parent) == "model_epoch_001_step_00025.pth"
        assert name("epoch:010", train.parent) == "model_epoch_010_step_00110.pth"

    @pytest.mark.parametrize(
        ("value", "message"), [("epoch:7", "saved epochs: 0, 1, 2, 10"), ("epoch:x", "whole number")]
    )
    def test_errors(self, train, value, message):
        with pytest.raises(CheckpointError, match=message):
            resolve(value, train.parent)


def test_nothing_to_look_into(tmp_path):
    with pytest.raises(CheckpointError, match="no results_dir"):
        resolve("latest", None)
    with pytest.raises(CheckpointError, match="no folder"):
        resolve(None, tmp_path / "none")
