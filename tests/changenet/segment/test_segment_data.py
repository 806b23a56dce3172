"""Items, windows and batches."""

import numpy as np
import pytest
import torch

from changenet.segment.data import ImageShards, SceneDataset, Windowing, scene_loader
from changenet.segment.files import ScenePair, Split
from changenet.segment.reading import LabelEncoding, SceneReader
from changenet.segment.runtime import SegmentRuntime
from changenet.segment.tiles import windows
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import PictureCache
from fiducial.data.samplers import Draw


@pytest.fixture
def large(tmp_path, make_image):
    """Two pairs of 70×50 and 33×100; the pixels tell their place, and the mask is 1 in one small corner."""
    pairs = []
    for i, (height, width) in enumerate([(70, 50), (33, 100)]):
        rows, columns = np.mgrid[:height, :width]
        picture = np.stack([rows, columns, np.full_like(rows, i)], axis=-1)
        label = np.zeros((height, width))
        label[height - 4 :, width - 4 :] = 255
        paths = [
            make_image(tmp_path / f"{part}{i}.png", x) for part, x in zip("abm", (picture, picture, label), strict=True)
        ]
        pairs.append(ScenePair(f"{i}.png", i + 1, *paths))
    return Split(tmp_path / "list.txt", tuple(pairs))


RAW = Normalization((0, 0, 0), (1 / 255,) * 3)


def dataset(split, **options):
    return SceneDataset(split, SceneReader(LabelEncoding(True, 2), cache_mb=8), RAW, side=32, **options)


class TestResizing:
    def test_item(self, large):
        item = dataset(large)[1]
        assert item["A"].shape == item["B"].shape == (3, 32, 32)
        assert item["L"].shape == (32, 32)
        assert item["L"].dtype == torch.uint8
        assert (item["index"], item["size"].tolist()) == (1, [32, 32])
        assert "corner" not in item

    def test_masks_of_original_size(self, large):
        loader = scene_loader(dataset(large, original_size=True), workers=0, batch_size=2)
        batch = next(iter(loader))
        assert [tuple(label.shape) for label in batch["L"]] == [(70, 50), (33, 100)]
        assert batch["size"].tolist() == [[70, 50], [33, 100]]
        assert batch["A"].shape == (2, 3, 32, 32)

    def test_without_masks(self, large):
        pairs = tuple(ScenePair(p.name, p.line, p.before, p.after, None) for p in large.pairs)
        batch = next(iter(scene_loader(dataset(Split(large.list_path, pairs)), workers=0, batch_size=2)))
        assert "L" not in batch


class TestWindows:
    def test_every_window_of_every_image_in_turn(self, large):
        data = dataset(large, windowing=Windowing(overlap=8))
        want = [(i, w) for i, p in enumerate([(70, 50), (33, 100)]) for w in windows(*p, 32, 8)]
        assert data.items == want
        for number, (index, window) in enumerate(want):
            item = data[number]
            assert item["corner"].tolist() == [window.top, window.left]
            assert item["A"][:, 0, 0].round().tolist() == [window.top, window.left, index]
            assert item["size"].tolist() == [[70, 50], [33, 100]][index]

    def test_drawn_windows(self, large):
        data = dataset(large, windowing=Windowing(0, per_image=3), drawn=True, seed=4)
        assert data.image_of_items == [0, 0, 0, 1, 1, 1]
        corners = {tuple(data[Draw(epoch, 1)]["corner"].tolist()) for epoch in range(5)}
        assert len(corners) > 1
        assert torch.equal(data[Draw(3, 1)]["A"], data[Draw(3, 1)]["A"])

    def test_as_many_as_would_cover_the_image(self, large):
        data = dataset(large, windowing=Windowing(8), drawn=True)
        assert data.image_of_items == [0] * 6 + [1] * 8

    def test_windows_on_change(self, large):
        data = dataset(large, windowing=Windowing(0, per_image=20, on_change=1.0), drawn=True)
        assert all((data[i]["L"] == 1).any() for i in range(len(data)))

    def test_an_image_smaller_than_the_window_is_mirrored_and_ignored(self, tmp_path, make_image):
        path = make_image(tmp_path / "a.png", np.arange(20 * 24).reshape(20, 24) % 256)
        mask = make_image(tmp_path / "m.png", np.zeros((20, 24)))
        split = Split(tmp_path, (ScenePair("a", 1, path, path, mask),))
        item = dataset(split, windowing=Windowing(8))[0]
        assert (item["L"][:20, :24] == 0).all()
        assert (item["L"] == 255).sum() == 32 * 32 - 20 * 24
        assert torch.equal(item["A"][:, 20, :24], item["A"][:, 18, :24])


class TestImageShards:
    def test_images_stay_together(self):
        images = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
        shards = [list(ImageShards(images, 2, rank=rank, world_size=2)) for rank in range(2)]
        assert shards == [[[0, 1], [2, 5], [6, 7], [8]], [[3, 4], [9]]]
        assert [len(ImageShards(images, 2, rank=rank, world_size=2)) for rank in range(2)] == [4, 2]


class TestRandomness:
    def test_item_follows_from_seed_epoch_and_number(self, make_spec):
        runtime = SegmentRuntime(make_spec())
        first, second = runtime.dataset("train"), SegmentRuntime(make_spec()).dataset("train")
        assert torch.equal(first[Draw(1, 2)]["A"], second[Draw(1, 2)]["A"])
        assert not torch.equal(first[Draw(1, 2)]["A"], first[Draw(2, 2)]["A"])
        assert not torch.equal(first[2]["A"], SegmentRuntime(make_spec(train__seed=5)).dataset("train")[2]["A"])

    def test_workers_give_the_same_batches(self, make_spec):
        data = SegmentRuntime(make_spec()).dataset("train")
        batches = [list(scene_loader(data, workers=workers, batch_size=3)) for workers in (0, 2)]
        for alone, worked in zip(*batches, strict=True):
            assert all(torch.equal(alone[key], worked[key]) for key in alone)

    def test_a_negative_seed_leaves_the_run_unseeded(self, make_spec):
        orders = {}
        for seed in (7, 7, -1, -1):
            data = SegmentRuntime(make_spec(train__seed=seed)).datamodule()
            loader = data.train_dataloader()
            orders.setdefault(seed, []).append((data.train_set.seed, [draw.index for draw in loader.sampler]))
        assert orders[7][0] == orders[7][1]
        assert orders[-1][0][0] != orders[-1][1][0]
        assert min(seed for seed, _ in orders[-1]) >= 0

    def test_only_training_is_augmented(self, make_spec):
        runtime = SegmentRuntime(make_spec())
        for split in ("val", "test", "infer"):
            data = runtime.dataset(split)
            assert torch.equal(data[Draw(1, 0)]["A"], data[Draw(2, 0)]["A"])

    def test_normalisation_of_the_spec_counts_everywhere_but_in_tao(self, make_spec):
        own = {"dataset__segment__augmentation": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
        ours, taos = (SegmentRuntime(make_spec(compat=compat, **own)) for compat in ("off", "tao"))
        assert ours.dataset("test")[0]["A"].min() >= 0
        assert taos.dataset("test")[0]["A"].min() < 0
        assert taos.dataset("train").normalize == ours.dataset("train").normalize


OPTIONS = {
    "resized": {},
    "windows": {"dataset__segment__windows": {"enable": True, "cache_mb": 0}, "dataset__segment__img_size": 32},
    "original size": {"dataset__segment__outputs": {"original_size": True}, "dataset__segment__img_size": 32},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_kept_pictures_are_the_same(make_spec, options, monkeypatch):
    monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
    runtimes = [SegmentRuntime(make_spec(**options, dataset__segment__cache=kind)) for kind in ("off", "ram")]
    for name in ("train", "test"):
        plain, kept = (runtime.dataset(name) for runtime in runtimes)
        for number in [*range(len(plain))] * 2:
            one, other = plain[Draw(3, number)], kept[Draw(3, number)]
            assert all(torch.equal(one[key], other[key]) for key in one)
        shared = kept.reader._pictures.shared
        assert shared.hits >= shared.misses > 0


def test_a_mask_that_changed_is_read_anew(large, monkeypatch, make_image):
    monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
    reader = SceneReader(LabelEncoding(True, 2), shared=PictureCache(2**20))
    path = large.pairs[0].label
    assert reader.label(path, 32).sum() > 0
    make_image(path, np.zeros((70, 50)))
    assert reader.label(path, 32).sum() == reader.label(path).sum() == 0
