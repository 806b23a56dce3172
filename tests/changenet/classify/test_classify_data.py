"""Pairs as items of a data set, and as batches."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from changenet.classify.data import PairDataset, PairReader, collate_pairs, shared_goldens
from changenet.classify.datamodule import PairData
from changenet.classify.rows import read_pairs
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.transform import IMAGENET, PairAugment
from fiducial.data.loaders import ordered_loader
from fiducial.data.normalization import Normalization
from fiducial.data.samplers import Draw
from fiducial.errors import DatasetError

AUGMENT = "dataset__classify__augmentation_config"


@pytest.fixture
def make_dataset(make_spec):
    def make(split: str = "train", changes: dict | None = None, **arguments) -> PairDataset:
        data = make_spec(**(changes or {})).dataset.classify
        if data.augmentation_config.augment:
            arguments.setdefault("augment", PairAugment(data.augmentation_config))
        return PairDataset(read_pairs(data, split), Normalization(*IMAGENET), **arguments)

    return make


def same(one, other) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


class TestItem:
    def test_fields(self, make_dataset):
        item = make_dataset("val")[2]
        assert item["test"].shape == item["golden"].shape == (3, 64, 32)
        assert item["test"].dtype == torch.float32
        assert (int(item["label"]), int(item["row"]), int(item["golden_id"])) == (1, 2, 2)

    def test_lights_lie_below_each_other(self, make_dataset, pair_data, make_image):
        from PIL import Image

        item = make_dataset("val")[0]
        for number, light in enumerate(("SolderLight", "WhiteLight")):
            pixels = np.asarray(Image.open(pair_data / f"val/b0/0000_{light}.png"))
            assert torch.equal(item["test"][:, 32 * number : 32 * number + 32], Normalization(*IMAGENET)(pixels))

    def test_label_is_unknown_without_the_column(self, make_dataset, pair_data, tmp_path):
        text = "input_path,golden_path,object_name\nval/b0,golden,0000\n"
        (tmp_path / "infer.csv").write_text(text)
        files = {"csv_path": str(tmp_path / "infer.csv"), "images_dir": str(pair_data)}
        assert int(make_dataset("infer", {"dataset__classify__infer_dataset": files})[0]["label"]) == -1

    def test_unreadable_image_names_the_file(self, make_dataset, pair_data, tmp_path):
        shutil.copytree(pair_data, tmp_path / "data")
        (tmp_path / "data/val/b0/0000_WhiteLight.png").write_bytes(b"no image")
        files = {"csv_path": str(pair_data / "val.csv"), "images_dir": str(tmp_path / "data")}
        with pytest.raises(DatasetError, match=r"0000_WhiteLight\.png · not an image"):
            make_dataset("val", {"dataset__classify__validation_dataset": files})[0]

    def test_sixteen_bit_images_keep_their_range(self, make_dataset, pair_data, tmp_path):
        """TAO's reader cuts them at 255: white. Either way is one of the documented differences."""
        from PIL import Image

        shutil.copytree(pair_data, tmp_path / "data")
        for light in ("SolderLight", "WhiteLight"):
            Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)).save(tmp_path / f"data/val/b0/0000_{light}.png")
        files = {"csv_path": str(pair_data / "val.csv"), "images_dir": str(tmp_path / "data")}
        item = make_dataset("val", {"dataset__classify__validation_dataset": files})[0]
        red = (128 / 255 - IMAGENET[0][0]) / IMAGENET[1][0]
        assert item["test"][0].unique().tolist() == pytest.approx([red])

    def test_tiles_are_resized_also_when_width_and_height_are_swapped(self, make_dataset, tmp_path, make_image):
        """TAO's augmentation leaves a tile alone whose width is image_height and whose height is image_width."""
        for folder in ("in", "gold"):
            make_image(tmp_path / folder / "U1.png", np.zeros((16, 32, 3)))
        (tmp_path / "pairs.csv").write_text("input_path,golden_path,label,object_name\nin,gold,PASS,U1\n")
        for augment in (True, False):
            changes = {
                "dataset__classify__train_dataset": {
                    "csv_path": str(tmp_path / "pairs.csv"),
                    "images_dir": str(tmp_path),
                },
                "dataset__classify__input_map": None,
                "dataset__classify__num_input": 1,
                "dataset__classify__image_width": 16,
                "dataset__classify__image_height": 32,
                AUGMENT: {"augment": augment},
            }
            assert make_dataset("train", changes)[0]["test"].shape == (3, 32, 16)


class TestRandomness:
    def test_follows_from_seed_epoch_and_index(self, make_dataset):
        changes = {AUGMENT: {"augment": True}}
        one, other = make_dataset("train", changes, seed=3), make_dataset("train", changes, seed=3)
        other[Draw(0, 7)]  # what was read before does not matter
        assert same(one[Draw(5, 2)], other[Draw(5, 2)])
        assert not same(one[Draw(5, 2)], one[Draw(6, 2)])
        assert not same(one[Draw(5, 2)], make_dataset("train", changes, seed=4)[Draw(5, 2)])
        assert same(one[2], one[Draw(0, 2)])

    def test_workers_change_nothing(self, make_dataset):
        dataset = make_dataset("train", {AUGMENT: {"augment": True}}, seed=1)
        draws = [Draw(1, index) for index in range(8)]
        alone, workers = (
            list(DataLoader(dataset, batch_size=3, sampler=draws, num_workers=number)) for number in (0, 2)
        )
        assert all(same(one, other) for one, other in zip(alone, workers, strict=True))

    def test_the_pair_is_changed_alike(self, make_dataset):
        color = {"random_color": {"enable": False}, "with_random_blur": False, "augment": True}
        dataset = make_dataset("train", {AUGMENT: color})
        item = dataset[Draw(3, 1)]  # a good pair: the noise of ± 8 is all that differs
        assert (item["test"] - item["golden"]).abs().max() < 0.3


class TestGoldens:
    @pytest.fixture
    def several(self, make_dataset, tmp_path, make_image):
        for number in range(5):
            make_image(tmp_path / "gold" / f"g{number}.png", np.full((32, 32, 3), number))
        make_image(tmp_path / "few" / "only.png", np.full((32, 32, 3), 9))
        make_image(tmp_path / "in" / "U1.png", np.full((32, 32, 3), 50))
        rows = ["in,gold,PASS,U1", "in,few,PASS,U1", "in,gold,OPEN,U1"]
        (tmp_path / "pairs.csv").write_text("input_path,golden_path,label,object_name\n" + "\n".join(rows) + "\n")
        files = {"csv_path": str(tmp_path / "pairs.csv"), "images_dir": str(tmp_path)}
        changes = {
            "dataset__classify__test_dataset": files,
            "dataset__classify__num_golden": 3,
            "dataset__classify__input_map": None,
            "dataset__classify__num_input": 1,
        }
        return lambda **arguments: make_dataset("test", changes, **arguments)

    @staticmethod
    def chosen(dataset, index) -> list[int]:
        golden = dataset[index]["golden"]
        assert golden.shape == (3, 3, 32, 32)
        values = golden[:, 0, 0, 0] * IMAGENET[1][0] + IMAGENET[0][0]
        return (values * 255).round().int().tolist()

    def test_first_ones_by_name(self, several):
        assert self.chosen(several(), 0) == [0, 1, 2]
        assert self.chosen(several(), 1) == [9, 9, 9]  # repeated when there are too few

    def test_random_ones_are_drawn_anew_each_epoch_without_repeats(self, several):
        dataset = several(random_goldens=True, seed=2)
        drawn = [self.chosen(dataset, Draw(epoch, 0)) for epoch in range(30)]
        assert all(len(set(goldens)) == 3 for goldens in drawn)
        assert {golden for goldens in drawn for golden in goldens} == {0, 1, 2, 3, 4}
        assert drawn == [self.chosen(several(random_goldens=True, seed=2), Draw(epoch, 0)) for epoch in range(30)]

    def test_ids_tell_which_rows_share_them(self, several):
        assert [int(several()[i]["golden_id"]) for i in range(3)] == [0, -1, 0]
        assert [int(several(random_goldens=True)[i]["golden_id"]) for i in range(3)] == [-1, -1, -1]


def test_shared_goldens_of_single_ones(make_spec, tmp_path):
    rows = ["a,gold,PASS,U1", "b,gold,PASS,U1", "c,gold,PASS,U2", "d,other,PASS,U1", "e,other,PASS,U1"]
    (tmp_path / "pairs.csv").write_text("input_path,golden_path,label,object_name\n" + "\n".join(rows) + "\n")
    files = {"csv_path": str(tmp_path / "pairs.csv"), "images_dir": str(tmp_path)}
    table = read_pairs(make_spec(dataset__classify__test_dataset=files).dataset.classify, "test")
    assert shared_goldens(table) == [0, 0, -1, 2, 2]


class TestAlign:
    def test_moves_the_test_image_onto_its_golden(self, make_spec, tmp_path, make_image):
        picture = np.kron(np.random.default_rng(1).integers(0, 255, (16, 16, 3)), np.ones((2, 2, 1)))
        make_image(tmp_path / "gold/U1.png", picture)
        make_image(tmp_path / "in/U1.png", np.roll(picture, 3, axis=0))
        (tmp_path / "pairs.csv").write_text("input_path,golden_path,label,object_name\nin,gold,PASS,U1\n")
        files = {"csv_path": str(tmp_path / "pairs.csv"), "images_dir": str(tmp_path)}
        changes = {"dataset__classify__input_map": None, "dataset__classify__num_input": 1}
        table = read_pairs(make_spec(dataset__classify__test_dataset=files, **changes).dataset.classify, "test")
        apart, aligned = (
            np.abs(
                np.subtract(*(image.astype(int) for image in PairReader(table, align=align).composed(table.rows[0])))
            )
            for align in (False, True)
        )
        assert apart[4:-4].mean() > 40
        assert aligned[4:-4].mean() < apart[4:-4].mean() / 10


def test_shared_goldens_are_decoded_once(make_dataset):
    dataset = make_dataset("val")
    for index in range(11):
        dataset[index]
    assert dataset.reader.goldens.misses == 4 * 2
    assert dataset.reader.goldens.hits == (11 - 4) * 2


class TestLoaders:
    def test_in_order_with_a_short_last_batch(self, make_dataset):
        batches = list(ordered_loader(make_dataset("val"), batch_size=4, workers=0))
        assert [batch["row"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]

    def test_the_weight_of_a_defect_is_printed_as_tao_does(self, make_dataset, caplog, monkeypatch):
        monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
        with caplog.at_level("INFO"):
            PairData(make_dataset("train"), None, batch_size=4, workers=0, fpratio=0.25).train_dataloader()
        assert "Sampling Defective components at 00.50:1 rate" in caplog.text  # 0.25 * 16 good / 8 defects

    def test_resuming_with_larger_batches_does_not_leave_the_epoch(self, make_dataset, monkeypatch):
        data = PairData(make_dataset("train"), None, batch_size=8, workers=0, fpratio=0.25)
        monkeypatch.setattr(data, "position", lambda: (2, 5))  # five batches of four were done
        assert list(data.train_dataloader()) == []

    def test_training_draws_defects_as_often_as_asked(self, make_dataset):
        data = PairData(make_dataset("train", seed=1), None, batch_size=4, workers=0, fpratio=1.0)
        loader = data.train_dataloader()
        labels = []
        for epoch in range(20):
            loader.sampler.set_epoch(epoch)
            labels += [label for draw in loader.sampler for label in [int(draw.index % 3 == 2)]]
        assert np.mean(labels) == pytest.approx(0.5, abs=0.06)
        assert data.num_batches == len(loader) == 6
        assert data.val_dataloader() == []


class TestCollate:
    def items(self, dataset, rows):
        return [dataset[row] for row in rows]

    def test_goldens_that_rows_share_are_named_once(self, make_dataset):
        dataset = make_dataset("val")  # row i has golden i modulo 4
        batch = collate_pairs(self.items(dataset, [4, 1, 0, 5]))
        assert batch["golden_place"].tolist() == [0, 1, 0, 1]
        first = batch["golden"][batch["golden_rows"]]
        assert torch.equal(first[batch["golden_place"]], batch["golden"])

    def test_nothing_is_said_where_none_is_shared(self, make_dataset):
        assert "golden_rows" not in collate_pairs(self.items(make_dataset("val"), [0, 1, 2]))

    def test_augmented_goldens_are_shared_with_nobody(self, make_dataset):
        dataset = make_dataset("train", {"dataset__classify__augmentation_config": {"augment": True}})
        items = self.items(dataset, [0, 4])
        assert [int(item["golden_id"]) for item in items] == [-1, -1]
        assert "golden_rows" not in collate_pairs(items)


@pytest.mark.parametrize("augment", [False, True])
def test_kept_pictures_are_the_same(make_spec, augment, monkeypatch):
    monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
    changes = {f"{AUGMENT}__augment": augment}
    plain, kept = (
        ClassifyRuntime(make_spec(**changes, dataset__classify__cache=kind)).dataset("train") for kind in ("off", "ram")
    )
    for index in [*range(len(plain))] * 2:
        assert same(plain[Draw(3, index)], kept[Draw(3, index)])
    shared = kept.reader.goldens.shared
    assert shared.hits > shared.misses > 0
    assert plain.reader.goldens.shared is None
