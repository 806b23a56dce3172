"""Training on kept features of a frozen backbone: the same losses, without seeing a picture twice."""

import json
import logging
import shutil

import pytest
import tiny_dinov3
import torch

from changenet import run
from changenet.classify.runtime import ClassifyRuntime
from changenet.kept_features import check_feature_cache, is_kept, makes_new
from fiducial.run.status import read_status

FAN = "fan_tiny_8_p4_hybrid"
AUGMENT = "dataset__classify__augmentation_config"
TURNS = {"augment": True, "with_random_crop": False, "with_random_blur": False, "random_color": {"enable": False}}


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A whole FAN and a decoder as a start, so that both can be frozen and are the same in every run."""
    from fiducial.backbones.names import build_pyramid

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "fan.pth"
    torch.save(build_pyramid(FAN, image_size=(64, 32)).state_dict(), path)
    return path


@pytest.fixture
def frozen(make_spec_tree, pair_data, tmp_path, weights):
    def make(**changes):
        frozen = {"model__backbone__freeze_backbone": True, "model__backbone__pretrained_backbone_path": str(weights)}
        # in 64 bits: batches of another size are rounded otherwise, and so small a network makes much of it
        return make_spec_tree(pair_data, tmp_path / "results", train__precision="64-true", **frozen, **changes)

    return make


def losses(result_folder):
    """Every loss and score that a training reports."""
    return [line["kpi"] for line in read_status(result_folder / "train" / "status.json") if "kpi" in line]


def close(a, b):
    assert len(a) == len(b) > 3
    for found, wanted in zip(a, b, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6, nan_ok=True)


class TestSameLosses:
    @pytest.mark.parametrize("augment", [None, TURNS])
    @pytest.mark.parametrize("difference", ["learnable", "euclidean"])
    def test_in_memory(self, frozen, tmp_path, difference, augment):
        loss = "ce" if difference == "learnable" else "contrastive"
        spec = frozen(
            model__classify__difference_module=difference,
            train__classify__loss=loss,
            **({AUGMENT: augment} if augment else {}),
        )
        found = []
        for kind in ("off", "ram"):
            run("train", spec, f"train.feature_cache={kind}", f"results_dir={tmp_path / kind}", "train.num_epochs=3")
            found.append(losses(tmp_path / kind))
        close(found[1], found[0])

    @pytest.mark.slow
    def test_on_disk_with_workers_and_again(self, frozen, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="fiducial")
        found = {}
        for name, kind in (("plain", "off"), ("first", "disk"), ("second", "disk")):
            where = f"results_dir={tmp_path / name}"
            run("train", frozen(), f"train.feature_cache={kind}", where, "dataset.classify.workers=2")
            found[name] = losses(tmp_path / name)
        close(found["first"], found["plain"])
        close(found["second"], found["plain"])
        reports = [r.getMessage() for r in caplog.records if "features of the frozen backbone" in r.getMessage()]
        assert "; 0 pictures computed" in reports[-1]

    def test_continued(self, frozen, tmp_path):
        found = []
        for kind in ("off", "ram"):
            spec, where = frozen(train__feature_cache=kind), f"results_dir={tmp_path / kind}"
            run("train", spec, where, "train.num_epochs=1")
            run("train", spec, where, "train.num_epochs=2")
            found.append(losses(tmp_path / kind))
        close(found[1], found[0])


def loaders_of(make_spec, weights, **changes):
    """Cache, module and the two loaders of a frozen euclidean network."""
    spec = make_spec(
        model__backbone__freeze_backbone=True,
        model__backbone__pretrained_backbone_path=str(weights),
        train__feature_cache="ram",
        **changes,
    )
    runtime = ClassifyRuntime(spec)
    data, module = runtime.datamodule(), runtime.module(pretrained=True)
    return module, data.train_dataloader(), data.val_dataloader()[0]


def epoch(module, loader):
    return [module.evaluate_batch(batch)[1].item() for batch in loader]


class TestPictures:
    def test_are_read_once(self, make_spec, weights, monkeypatch):
        module, train, val = loaders_of(make_spec, weights)
        first = epoch(module, val)
        assert module.features.encoded == 11 + 4  # rows, and the goldens that they share

        def refuse(*arguments, **options):
            raise AssertionError("a picture was read")

        for loader in (train, val):
            monkeypatch.setattr(loader.dataset.reader, "tiles", refuse)
        assert epoch(module, val) == pytest.approx(first, abs=1e-6)
        assert module.features.encoded == 15

    def test_of_tests_and_goldens_are_shared(self, make_spec, weights):
        """Of a row whose test image is its golden nothing is computed twice."""
        module, _, val = loaders_of(make_spec, weights)
        table = val.dataset.table
        goldens = {table.golden_files(row) for row in table.rows}
        val.dataset.table = val.dataset.reader.table = _GoldensAlone(table)
        epoch(module, val)
        assert module.features.encoded == len(goldens)

    def test_a_changed_file_is_seen_anew(self, make_spec, weights, pair_data, tmp_path, make_image):
        copy = tmp_path / "data"
        shutil.copytree(pair_data, copy)
        module, _, val = loaders_of(
            make_spec,
            weights,
            dataset__classify__validation_dataset={"csv_path": str(copy / "val.csv"), "images_dir": str(copy)},
            dataset__classify__golden_cache_mb=0,
        )
        before = epoch(module, val)
        row = val.dataset.table.rows[0]
        make_image(val.dataset.table.test_files(row)[0], torch.full((32, 32, 3), 255).numpy())
        after = epoch(module, val)
        assert module.features.encoded == 15 + 1
        assert after[0] != pytest.approx(before[0], abs=1e-6)
        assert after[1:] == pytest.approx(before[1:], abs=1e-6)

    def test_registered_pictures_depend_on_their_golden(self, make_spec, weights):
        _, _, val = loaders_of(make_spec, weights, dataset__classify__align="shift")
        dataset = val.dataset
        row = dataset.table.rows[0]
        registered = dataset._names(dataset.keys, row, None)["test_key"]
        dataset.reader.align = False
        assert dataset._names(dataset.keys, row, None)["test_key"] != registered

    def test_with_tensorboard_every_batch_can_be_shown(self, make_spec, weights):
        module, _, val = loaders_of(
            make_spec, weights, train__tensorboard={"enabled": True, "infrequent_logging_frequency": 1}
        )
        plain = ClassifyRuntime(make_spec()).dataset("val")[0]
        for _ in range(2):
            batch = next(iter(val))
            module.evaluate_batch(batch)
            shown = module.preview(batch)
            undo = val.dataset.normalize.undo
            assert torch.equal(shown["compare_sample"], undo(plain["test"]))
            assert torch.equal(shown["golden_sample"], undo(plain["golden"]))

    def test_a_file_that_is_gone_is_named(self, make_spec, weights, pair_data, tmp_path):
        from fiducial.errors import DatasetError

        copy = tmp_path / "data"
        shutil.copytree(pair_data, copy)
        files = {"csv_path": str(copy / "val.csv"), "images_dir": str(copy)}
        _, _, val = loaders_of(make_spec, weights, dataset__classify__validation_dataset=files)
        path = val.dataset.table.test_files(val.dataset.table.rows[0])[0]
        path.unlink()
        with pytest.raises(DatasetError, match=path.name):
            val.dataset[0]


class _GoldensAlone:
    """A table whose rows compare every golden with itself."""

    def __init__(self, table):
        self._table = table

    def __getattr__(self, name):
        return getattr(self._table, "golden_files" if name == "test_files" else name)


class TestOfNoUse:
    def said(self, make_spec, **changes):
        return [problem.found for problem in check_feature_cache(make_spec(train__feature_cache="ram", **changes))]

    def test_a_trained_backbone(self, make_spec):
        (found,) = self.said(make_spec)
        assert "the backbone is trained" in found

    def test_an_adapter(self, make_spec):
        spec = {"model__backbone__type": "c_radio_v2_vit_base_patch16_224", "model__backbone__freeze_backbone": True}
        (found,) = self.said(make_spec, **spec)
        assert "adapter" in found
        assert self.said(make_spec, **spec, model__classify__difference_module="euclidean") == []

    def test_new_pictures_each_time(self, make_spec):
        frozen = {"model__backbone__freeze_backbone": True}
        (found,) = self.said(make_spec, **frozen, **{AUGMENT: {"augment": True}})
        assert "every picture is new" in found
        assert "with_random_crop" in found
        assert self.said(make_spec, **frozen, **{AUGMENT: TURNS}) == []
        spec = make_spec(train__feature_cache="ram", **frozen, **{AUGMENT: {"augment": True}})
        assert is_kept(spec)  # of the validation's pictures
        assert len(makes_new(spec)) == 3
        assert not makes_new(make_spec(**{AUGMENT: TURNS | {"random_color": {"color_probability": 0.0}}}))

    def test_compiling(self, make_spec):
        (found,) = self.said(make_spec, model__backbone__freeze_backbone=True, train__compile=True)
        assert "not compiled" in found

    def test_off(self, make_spec):
        assert list(check_feature_cache(make_spec(train__feature_cache=False))) == []  # what YAML makes of off

    def test_training_with_new_pictures_keeps_those_of_validation(self, frozen, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="fiducial")
        spec = frozen(train__feature_cache="ram", **{AUGMENT: {"augment": True}})
        run("train", spec, "train.num_epochs=2")
        (_, last) = [r.getMessage() for r in caplog.records if "features of the frozen backbone" in r.getMessage()]
        assert "15 kept in memory" in last
        assert "is of no use in training" in caplog.text


def test_a_frozen_dinov3(make_spec_tree, pair_data, tmp_path, monkeypatch):
    tiny_dinov3.shrink(monkeypatch)
    spec = make_spec_tree(
        pair_data,
        tmp_path,
        model__backbone__type=tiny_dinov3.NAME,
        model__backbone__pretrained_backbone_path=str(tiny_dinov3.write_weights(tmp_path)),
        model__backbone__freeze_backbone=True,
        model__decode_head__feature_strides=[4, 8, 16, 32],
        model__classify__difference_module="euclidean",
        train__classify__loss="contrastive",
        train__precision="64-true",
    )
    found = []
    for kind in ("off", "disk"):
        run("train", spec, f"train.feature_cache={kind}", f"results_dir={tmp_path / kind}")
        found.append(losses(tmp_path / kind))
    close(found[1], found[0])
    (about,) = (tmp_path / "cache/features").glob("*/about.json")
    assert json.loads(about.read_text())["tensors"] == [["float64", [tiny_dinov3.WIDTH]]]
