"""Items and their order: what is random follows from (seed, epoch, index), and a picture serves several boxes."""

import numpy as np
import pytest
import torch

from fiducial.data.samplers import Draw
from fiducial.errors import DatasetError
from mal.annotations import Rules, read_annotations, select
from mal.augment import BoxAugment
from mal.data import BoxDataset, BoxReader, PooledBatches


@pytest.fixture
def reader(pictures):
    annotations = read_annotations(pictures / "val" / "ann.json")
    return BoxReader(annotations, pictures / "val" / "img", crop_size=32, margin=0.3)


@pytest.fixture
def boxes(reader):
    return select(reader.annotations, Rules()).boxes


class TestItems:
    def test_of_evaluation(self, reader, boxes):
        item = BoxDataset(reader, boxes)[1]
        assert item["image"].shape == (3, 32, 32)
        assert set(item["boxmask"].unique().tolist()) == {0.0, 1.0}
        assert item["area"] == pytest.approx(boxes[1].area)
        assert "clean" not in item

    def test_of_training_are_drawn_by_seed_epoch_and_index(self, reader, boxes):
        def item(seed, epoch, index):
            return BoxDataset(reader, boxes, augment=BoxAugment(), seed=seed)[Draw(epoch, index)]

        same = item(1, 2, 0), item(1, 2, 0)
        assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
        assert not torch.equal(item(1, 2, 0)["image"], item(1, 3, 0)["image"])
        assert not torch.equal(item(1, 2, 0)["image"], item(2, 2, 0)["image"])

    def test_student_and_teacher_see_one_crop_in_two_colours(self, reader, boxes):
        always = BoxAugment(jittered=1.0, blurred=0.0, grey=0.0)
        item = BoxDataset(reader, boxes, augment=always)[0]
        assert not torch.equal(item["image"], item["clean"])
        never = BoxDataset(reader, boxes, augment=BoxAugment(jittered=0.0, blurred=0.0, grey=0.0))[0]
        assert torch.equal(never["image"], never["clean"])
        assert torch.equal(item["boxmask"], never["boxmask"])  # crops are drawn before colours

    def test_a_picture_of_another_size_is_named(self, reader, boxes, tmp_path):
        from dataclasses import replace

        odd = replace(reader.annotations.pictures[0], width=300)
        reader.annotations = replace(reader.annotations, pictures=(odd, *reader.annotations.pictures[1:]))
        with pytest.raises(DatasetError, match="128 x 96 pixels, 300 x 96"):
            BoxDataset(reader, boxes)[0]

    def test_a_picture_is_decoded_once(self, reader, boxes):
        dataset = BoxDataset(reader, boxes)
        for index in range(len(boxes)):
            dataset[index]
        assert (reader.cache.misses, reader.cache.hits) == (2, len(boxes) - 2)


class TestPooledBatches:
    pictures = np.repeat(np.arange(20), 5).tolist()

    def batches(self, **options):
        return PooledBatches(self.pictures, batch_size=8, seed=3, **options)

    def test_every_box_comes_once(self):
        drawn = [draw.index for batch in self.batches() for draw in batch]
        assert sorted(drawn) == list(range(100))
        assert len(self.batches()) == 13

    def test_orders_differ_by_epoch_and_are_repeatable(self):
        one, other = self.batches(), self.batches()
        other.set_epoch(1)
        assert list(one) == list(self.batches())
        assert [[d.index for d in b] for b in one] != [[d.index for d in b] for b in other]

    def test_boxes_of_a_pool_are_together(self):
        drawn = [self.pictures[draw.index] for batch in self.batches(pool=4) for draw in batch]
        for start in range(0, 100, 20):
            assert len(set(drawn[start : start + 20])) == 4

    def test_ranks_share_them(self):
        parts = [[d.index for b in self.batches(rank=r, world=2) for d in b] for r in (0, 1)]
        assert len(self.batches(rank=0, world=2)) == 7
        assert set(parts[0]) | set(parts[1]) == set(range(100))

    def test_it_goes_on_where_it_stopped(self):
        whole, rest = list(self.batches()), self.batches()
        rest.start(5)
        assert list(rest) == whole[5:]
