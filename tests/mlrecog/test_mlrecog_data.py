"""Batches of classes, and items that depend on nothing but (seed, epoch, index)."""

from collections import Counter

import pytest
import torch
from mlrecog_shelves import make_folders

from fiducial.data.normalization import Normalization
from fiducial.data.samplers import Draw
from fiducial.errors import DatasetError
from mlrecog.batch_rules import check_batches
from mlrecog.data import ClassBatches, ClassImages
from mlrecog.folders import read_class_folders
from mlrecog.runtime import RecogRuntime
from mlrecog.transforms import EvalTransform, TrainTransform

LABELS = [0] * 5 + [1] * 4 + [2] * 6 + [3] * 4


def batches(labels=LABELS, **options):
    made = ClassBatches(labels, **{"batch_size": 4, "per_class": 2, "seed": 3, **options})
    return made, [[draw.index % len(labels) for draw in batch] for batch in made]


def test_each_batch_has_p_classes_with_k_pictures():
    made, found = batches()
    assert len(made) == len(found) == 4  # 19 pictures in batches of 4
    for batch in found:
        assert sorted(Counter(LABELS[place] for place in batch).values()) == [2, 2]
        assert len(set(batch)) == 4


def test_ranks_share_a_step_without_sharing_a_class():
    found = [batches(rank=rank, world=2)[1] for rank in range(2)]
    assert len(found[0]) == len(found[1]) == 2
    for one, other in zip(*found, strict=True):
        assert not {LABELS[place] for place in one} & {LABELS[place] for place in other}


def test_with_too_few_classes_ranks_draw_for_themselves():
    found = [batches(rank=rank, world=3)[1] for rank in range(3)]
    assert all(sorted(Counter(LABELS[p] for p in batch).values()) == [2, 2] for part in found for batch in part)


def test_epochs_differ_and_repeat():
    made, first = batches()
    made.set_epoch(1)
    second = [[draw.index for draw in batch] for batch in made]
    assert second != first
    again, _ = batches()
    again.set_epoch(1)
    again.start(2)
    assert [[draw.index for draw in batch] for batch in again] == second[2:]


def test_a_small_class_repeats_under_other_numbers():
    labels = [0, 1, 1, 1, 1]
    made = ClassBatches(labels, batch_size=4, per_class=2, seed=0)
    (batch,) = made
    numbers = [draw.index for draw in batch if labels[draw.index % 5] == 0]
    assert sorted(numbers) == [0, 5]


@pytest.mark.parametrize(
    ("labels", "batch_size", "per_class", "key", "said"),
    [
        (LABELS, 4, 4, "train.batch_size", "4 / dataset.num_instance 4 = 1 class"),
        (LABELS, 4, 1, "dataset.num_instance", "no picture has another"),
        (LABELS, 7, 2, "train.batch_size", "no whole number"),
        (LABELS, 12, 2, "train.batch_size", "6 classes in a batch, and 4 have pictures"),
        ([0] * 9, 4, 2, "dataset.train_dataset", "1 class with pictures"),
        ([0, 1], 4, 2, "train.batch_size", "there are 2 pictures"),
    ],
)
def test_batches_that_cannot_be(labels, batch_size, per_class, key, said):
    found = check_batches(labels, batch_size=batch_size, per_class=per_class)
    assert found is not None
    assert found[0] == key
    assert said in found[1]
    with pytest.raises(DatasetError):
        ClassBatches(labels, batch_size=batch_size, per_class=per_class, seed=0)


def test_what_is_proposed_works():
    _, _, fix = check_batches(LABELS, batch_size=7, per_class=2)
    assert fix == "use 6 or 8"
    assert check_batches(LABELS, batch_size=6, per_class=2) is None
    assert check_batches(LABELS, batch_size=8, per_class=2) is None


def test_items(tmp_path):
    folders = read_class_folders(str(make_folders(tmp_path, classes=("blue", "red"), each=2)), key="k")
    normalize = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    train = ClassImages(folders.samples, TrainTransform((32, 32), normalize), seed=1)
    item = train[Draw(2, 3)]
    assert item["image"].shape == (3, 32, 32)
    assert (int(item["label"]), int(item["place"])) == (1, 3)
    assert torch.equal(item["image"], train[Draw(2, 3)]["image"])
    assert not torch.equal(item["image"], train[Draw(3, 3)]["image"])
    again = train[Draw(2, 3 + 4)]  # the second draw of the same picture in a batch
    assert int(again["place"]) == 3
    assert not torch.equal(item["image"], again["image"])
    evaluated = ClassImages(folders.samples, EvalTransform((32, 32), normalize))
    assert torch.equal(evaluated[1]["image"], evaluated[1]["image"])


def test_kept_pictures_are_the_same(make_spec, tmp_path, monkeypatch):
    monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
    plain, kept = (RecogRuntime(make_spec(tmp_path, dataset__cache=kind)) for kind in ("off", "ram"))
    for one, other in zip(
        (plain.datamodule().train_set, *plain.images("val"), *plain.images("infer")),
        (kept.datamodule().train_set, *kept.images("val"), *kept.images("infer")),
        strict=True,
    ):
        for place in [*range(len(one))] * 2:
            assert torch.equal(one[Draw(3, place)]["image"], other[Draw(3, place)]["image"])
        assert other.pictures.shared.hits >= len(one)
        assert one.pictures.shared is None
