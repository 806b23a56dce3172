"""Writing: whole or not at all."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from fiducial.checkpoints import link, save_atomically
from fiducial.checkpoints.reading import read
from fiducial.checkpoints.writing import AtomicCheckpointIO, not_plain
from fiducial.errors import CheckpointError

CHECKPOINT = {"state_dict": {"w": torch.ones(2)}, "epoch": 1, "pytorch-lightning_version": "2.6"}


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"lr": 0.1, "sizes": [1, 2]})
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]


def fit(folder, epochs, resume=None):
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, plugins=[AtomicCheckpointIO()], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Tiny(), torch.utils.data.DataLoader(torch.ones(4, 2)), ckpt_path=resume)
    return trainer


def test_lightning_writes_and_resumes(tmp_path):
    path = tmp_path / "sub" / "m.pth"
    trainer = fit(tmp_path, 1)
    trainer.save_checkpoint(path)
    assert [file.name for file in path.parent.iterdir()] == ["m.pth"]
    torch.load(path, weights_only=True)
    checkpoint = read(path)
    assert checkpoint.kind == "lightning"
    assert checkpoint.meta["hyper_parameters"] == {"lr": 0.1, "sizes": [1, 2]}
    resumed = fit(tmp_path, 2, resume=path)
    assert (resumed.current_epoch, resumed.global_step) == (2, 8)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.pth"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"cannot be written \(disk full"):
        save_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pth"]
    assert AtomicCheckpointIO().load_checkpoint(path)["epoch"] == 1


def test_killed_writer_leaves_no_half_file(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from fiducial.checkpoints import save_atomically\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        "save_atomically(pathlib.Path(sys.argv[1]), write)\n"
    )
    path = tmp_path / "m.pth"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        [temporary] = tmp_path.iterdir()
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "other.pth")
        assert temporary.exists(), "its writer still runs"
        writer.send_signal(signal.SIGKILL)
    assert not path.exists()
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.pth", "other.pth"]


def test_resume_refuses_what_is_no_lightning_file(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="not a Lightning checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "m.pth")


def test_what_is_not_plain_is_named(tmp_path, caplog):
    tree = {"a": [1, "x", None, torch.ones(1)], "b": {"c": (pathlib.PurePosixPath("q"),)}}
    module = pathlib.PurePosixPath.__module__  # not the same in every Python
    assert list(not_plain(tree)) == [f"checkpoint['b']['c'][0] ({module}.PurePosixPath)"]
    AtomicCheckpointIO().save_checkpoint({**CHECKPOINT, **tree}, tmp_path / "m.pth")
    assert "will not open with weights_only=True" in caplog.text
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "m.pth")["b"] == {"c": ("q",)}


class TestLink:
    @pytest.fixture
    def target(self, tmp_path):
        path = tmp_path / "model_epoch_000_step_00010.pth"
        path.write_bytes(b"new")
        return path

    def test_relative_and_replacing(self, tmp_path, target):
        path = tmp_path / "x_latest.pth"
        path.write_bytes(b"a real file from before")
        for _ in range(2):
            link(target, path)
            assert os.readlink(path) == target.name
        link(path, tmp_path / "second.pth")
        assert os.readlink(tmp_path / "second.pth") == target.name
        assert len(list(tmp_path.iterdir())) == 3

    def test_never_to_itself(self, tmp_path, target):
        with pytest.raises(CheckpointError, match="itself"):
            link(target, target)
        link(target, tmp_path / "l.pth")
        with pytest.raises(CheckpointError, match="no file"):
            link(tmp_path / "gone.pth", tmp_path / "l.pth")
        assert (tmp_path / "l.pth").read_bytes() == b"new"

    @pytest.mark.parametrize("hard_links", [True, False])
    def test_without_symlinks(self, tmp_path, target, monkeypatch, hard_links):
        def refuse(*_, **__):
            raise OSError("not permitted")

        monkeypatch.setattr(pathlib.Path, "symlink_to", refuse)
        if not hard_links:
            monkeypatch.setattr(os, "link", refuse)
        path = tmp_path / "x_latest.pth"
        for _ in range(2):
            link(target, path)
            assert not path.is_symlink()
            assert path.read_bytes() == b"new"
        assert path.samefile(target) == hard_links
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_names_are_the_models_own_when_resuming(tmp_path, prefix):
    torch.save({"state_dict": {f"{prefix}model.w": torch.ones(2)}, "epoch": 1}, tmp_path / "m.pth")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "m.pth")
    assert list(loaded["state_dict"]) == ["model.w"]
    assert loaded["epoch"] == 1
