"""MAL's benchmark runs, and both ways of every comparison give the same; its photographs hold what they should."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import mal_parts as bench
import mal_photos
from demo_mal_baseline import ELLIPSE, FILLED, baselines

from mal.annotations import read_annotations
from mal.crop import Crop, crop_around
from mal.mean_field import MeanField


@pytest.fixture(autouse=True)
def one_thread():
    """The benchmark sets the number of threads for its whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestPlainWays:
    @pytest.mark.parametrize("size", [3, 5])
    def test_the_unfolded_field_is_the_field(self, size):
        inputs, field = bench.field_inputs(2, 32), MeanField(size, num_iter=20)
        mask = bench.unfolded_field(field, *inputs)
        assert torch.equal(mask, field(*inputs))
        assert 0 < mask.mean() < inputs[2].mean()  # neither nothing nor the whole box

    def test_a_crop_from_nine_pictures_begins_again_at_the_opposite_edge(self):
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        for box in ((0, 0, 8, 9), (22, 12, 30, 20), (5, 5, 20, 12), (0, 0, 30, 20)):
            crop = crop_around(box, rng.uniform(0, 1, 4))
            assert np.array_equal(bench.copied(picture, crop, wrapped=True), crop.pixels(picture))

    def test_beyond_the_edges_of_a_mask_there_is_nothing(self):
        copied = bench.copied(np.ones((4, 5)), Crop(-2, 1, 4, 6), wrapped=False)
        assert copied.sum() == 4 * 3
        assert copied[:3, 2:].all()

    @pytest.mark.parametrize("training", [True, False])
    def test_the_loaders_give_equal_items(self, tmp_path, training):
        scale = bench.QUICK
        bench.draw_data(tmp_path / "data", (96, 64), scale)
        kinds = bench.WholePictures, bench.BoxReader
        plain, ours = (bench.dataset_of(kind, tmp_path / "data", scale, training=training) for kind in kinds)
        bench.check_items(plain, ours)
        ours.reader.crop_size -= 1
        with pytest.raises(AssertionError, match="item 0 differs"):
            bench.check_items(plain, ours)

    def test_a_box_at_a_time_gives_the_masks_of_a_batch(self):
        labeler = bench.labeler_of("vit-deit-tiny/16", 32)
        pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
        boxes = [(2, 3, 40, 50), (30, 10, 70, 40), (0, 0, 80, 60)]
        batch = labeler.label(pixels, boxes)
        for way in (bench.one_by_one, bench.one_by_one_plainly):
            for one, other in zip(way(labeler, pixels, boxes), batch, strict=True):
                assert (one.mask != other.mask).sum() <= 1

    @pytest.mark.parametrize(("crop", "expected"), [(512, 2), (224, 10), (64, 16), (1024, 1)])
    def test_the_fastest_batch_on_a_cpu_fits_its_caches(self, monkeypatch, crop, expected):
        labeler, seen = bench.labeler_of("vit-deit-tiny/16", crop), []
        monkeypatch.setattr(labeler, "_label", lambda pixels, boxes, size: seen.append(size))
        labeler.label(np.zeros((8, 8, 3), np.uint8), [])
        labeler.label(np.zeros((8, 8, 3), np.uint8), [], batch_size=3)
        assert seen == [expected, 3]

    def test_a_step_loses_the_same_with_and_without_the_teachers_graph(self):
        plain, ours = (bench.memory_of(bench.QUICK, way) for way in bench.STEPS)
        assert plain["loss"] == ours["loss"] > 0
        assert ours["megabytes"] < plain["megabytes"]


@pytest.mark.slow
def test_every_part_runs(capsys):
    assert bench.main(["--quick", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert [line[:3] for line in printed.splitlines() if line.startswith("(")] == ["(a)", "(b)", "(c)", "(c)", "(d)"]
    assert len(re.findall(r"\d\.\d\dx", printed)) == 5
    assert "less  (target less: met)" in printed


class TestPhotos:
    def test_components_that_touch_the_border_or_are_small_are_left_out(self):
        mask = np.zeros((12, 12), bool)
        mask[0:3, 4:8] = mask[5:8, 2:5] = mask[9, 9] = True
        mask[4, 5] = True  # touches the second at a corner
        (found,) = mal_photos.components(mask, 3)
        assert found.sum() == 10
        assert found[4, 5]

    def test_uneven_light_is_no_object(self):
        rows, columns = np.mgrid[:120, :160]
        grey = 40 + 0.6 * columns + 60 * (np.hypot(rows - 60, columns - 30) < 10)
        found = mal_photos.foreground(grey)
        assert abs(found[45:75, 15:45].sum() - np.pi * 100) < 60
        assert not found[:, 60:150].any()

    def test_dark_objects_are_those_of_the_inverted_picture(self):
        grey = np.full((60, 60), 200.0)
        grey[20:30, 20:35] = 50
        assert np.array_equal(mal_photos.foreground(grey, dark=True), mal_photos.foreground(255 - grey))

    def test_the_coins_are_round_and_nearly_all_there(self):
        # 24 lie in the picture; the cut between the parts goes through two of them, one merges with the border
        parts = mal_photos.objects_of(mal_photos.PHOTOS[0])
        masks = [mask for _, found in parts.values() for mask in found]
        assert len(masks) == 21
        for mask in masks:
            rows, columns = np.nonzero(mask)
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert 0.7 < width / height < 1.4
            assert 0.65 < mask.sum() / (width * height) < 0.85  # a disc fills 0.785 of its box

    def test_what_is_written_is_what_the_package_reads(self, tmp_path):
        counts = mal_photos.write(tmp_path)
        assert counts == {"train": 118, "test": 61}
        held_back = read_annotations(tmp_path / "test.json")
        assert all(held_back.has_mask(box) for box in held_back.boxes)
        for box in held_back.boxes:
            rows, columns = np.nonzero(held_back.mask(box))
            assert box.corners == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert not any(
            "segmentation" in row for row in json.loads((tmp_path / "train.json").read_text())["annotations"]
        )
        found = baselines(tmp_path / "test.json")
        assert 0.6 < found[FILLED] < found[ELLIPSE] < 0.85

    @pytest.mark.slow
    def test_it_trains(self, tmp_path):
        numbers = mal_photos.measure(tmp_path, epochs=1)
        assert set(numbers) == {"labeller", FILLED, ELLIPSE}
        assert 0 < numbers["labeller"] < 1
