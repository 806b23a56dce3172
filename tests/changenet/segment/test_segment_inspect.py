"""What is said of a dataset before the first batch."""

import errno
import os
import re
import shutil
import struct
import zlib
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from changenet.segment.inspect import check_data


@pytest.fixture
def root(tmp_path, make_scenes):
    folder = tmp_path / "data"
    for seed, (split, num) in enumerate({"train": 4, "val": 2, "test": 2}.items()):
        make_scenes(folder, split, num, seed=seed)
    return folder


SPLITS = {"train": ("train", "val"), "evaluate": ("test",), "inference": ("infer",)}


def said(spec, action="train", thorough=False, level=None):
    report = check_data(spec, SPLITS[action], thorough)
    return [str(problem) for problem in report.problems if level in (None, problem.level)]


def test_a_good_set_has_no_problems(root, make_spec):
    report = check_data(make_spec(root), ("train", "val"), True)
    assert report.problems == []
    assert report.facts["train"].count == 4
    assert report.facts["train"].labels == {"unchanged": "85.94%", "changed": "14.06%"}
    assert report.facts["train"].details["masks read"] == 4


def test_missing_files_are_named_with_their_line(root, make_spec):
    (root / "B" / "train_1.png").unlink()
    (root / "label" / "train_2.png").rename(root / "label" / "train_2.tiff")
    found = said(make_spec(root))
    assert len(found) == 2
    assert "train.txt:2 · no later image" in found[0]
    assert "train.txt:3 · no mask" in found[1]
    assert "; there is train_2.tiff · set dataset.segment.label_suffix=.tiff" in found[1]


def test_a_wrong_root_is_one_line(root, make_spec):
    (root / "label").rename(root / "elsewhere")
    (root / "label").mkdir()
    (root / "label" / "sub").write_text("no folder")
    assert len(said(make_spec(root))) == 6  # files are named one by one
    for path in (root / "list").iterdir():
        path.write_text("".join(f"sub/{name}\n" for name in path.read_text().split()))
    found = said(make_spec(root))
    assert len(found) == 6
    assert "train.txt:1 · no earlier image" in found[0]
    assert "and 3 more below the same folder" in found[0]
    assert "sub is a file, not a folder: check the names of the folders" in found[2]


@pytest.mark.parametrize(
    ("renames", "seen"),
    [
        ({"B": "{}.jpg"}, "no later image .*; there is train_0.jpg · both images have one name: rename it, or convert"),
        ({"A": "{}.jpg", "B": "{}.jpg"}, "no earlier image .*; there is train_0.jpg · write its name in the list"),
        ({"A": "{}.PNG"}, "no earlier image .*; there is train_0.PNG · capitals count"),
        (
            {"label": "{}_mask.png"},
            "no mask .*; there is train_0_mask.png · set dataset.segment.label_suffix=_mask.png",
        ),
        ({"label": "{}.bmp"}, "no mask .*; there is train_0.bmp · set dataset.segment.label_suffix=.bmp"),
        ({"B": "{}x.png"}, "no later image [^;]* · check the list$"),
    ],
)
def test_advice_about_missing_files(root, make_spec, renames, seen):
    for folder, name in renames.items():
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(name.format(path.stem)))
    assert re.search(seen, said(make_spec(root))[0])


def test_advice_about_names_with_folders_accents_and_links(root, make_spec, make_list):
    make_list(root, "train", ["A/train_0.png", "Zu\u0308rich.png", "gone.png"])
    (root / "A" / "Z\u00fcrich.png").write_bytes((root / "A" / "train_0.png").read_bytes())
    (root / "A" / "gone.png").symlink_to("/mnt/annex/gone.png")
    found = [text for text in said(make_spec(root)) if "no earlier image" in text]
    assert len(found) == 3
    assert "entries are names below A, without that folder" in found[0]
    assert "it is a link to /mnt/annex/gone.png, which is not there" in found[1]
    assert "accents are other Unicode characters (composed or not) · rename it, or the entry" in found[2]


def test_a_folder_that_may_not_be_read(root, make_spec, monkeypatch):
    """As another user sees it: those who run tests may often read everything."""
    real = os.stat

    def refused(path, *args, **more):
        if f"{root}/B/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "stat", refused)
    for thorough in (True, False):
        found = said(make_spec(root), "inference", thorough, level="error")
        assert len(found) == 2
        assert f"no later image {root}/B/test_0.png: its folder may not be read · give this user the right" in found[0]


class TestOneFileForTwo:
    def test_a_linked_folder(self, root, make_spec):
        shutil.rmtree(root / "B")
        (root / "B").symlink_to("A")
        found = said(make_spec(root), "inference", level="error")
        assert found == [
            f"{root}/list/test.txt:1 · both images are one file (and in 1 more pairs): nothing can have changed · "
            "check the links, and dataset.segment.change_image_folder_name"
        ]
        assert said(make_spec(root, dataset__segment__change_image_folder_name="A"), "inference", level="error")

    def test_single_links_are_a_warning(self, root, make_spec):
        (root / "B" / "test_1.png").unlink()
        (root / "B" / "test_1.png").symlink_to("../A/test_1.png")
        assert said(make_spec(root), "inference", level="error") == []
        (found,) = said(make_spec(root), "inference", level="warning")
        assert "test.txt:2 · both images are one file: nothing can have changed" in found

    def test_a_mask_is_never_an_image(self, root, make_spec):
        (root / "label" / "test_1.png").unlink()
        os.link(root / "B" / "test_1.png", root / "label" / "test_1.png")
        found = said(make_spec(root), "evaluate", level="error")
        assert "test.txt:2 · the mask is one of the images, the same file" in found[0]


def test_problems_of_all_splits_together(root, make_spec):
    (root / "A" / "train_0.png").unlink()
    (root / "A" / "val_0.png").unlink()
    assert len(said(make_spec(root))) == 2


def test_a_missing_root_is_named_once(tmp_path, make_spec):
    found = said(make_spec(tmp_path / "nowhere"))
    assert len(found) == 1
    assert "root_dir" in found[0]


def test_inference_needs_no_masks(root, make_spec):
    for path in (root / "label").iterdir():
        path.unlink()
    (root / "label").rmdir()
    assert said(make_spec(root), "inference") == []
    assert any("label" in text for text in said(make_spec(root), "evaluate"))


def test_masks_of_0_and_1_under_norm(root, make_spec, make_scenes):
    make_scenes(root, "train", 4, label=lambda changed: changed)
    found = said(make_spec(root), level="error")
    assert len(found) == 4
    assert "train.txt:1 · mask" in found[0]
    assert "label_transform: None" in found[0]
    assert said(make_spec(root, dataset__segment__label_transform="None", dataset__segment__num_classes=2))


def test_smooth_masks_are_a_warning(root, make_spec, make_scenes):
    def smooth(changed):
        soft = 255 * changed
        soft[0, :6] = 128
        return soft

    make_scenes(root, "train", 4, label=smooth)
    found = said(make_spec(root), level="warning")
    assert len(found) == 1
    assert "4 masks hold values between 0 and 255 (0.59% of the pixels" in found[0]
    assert said(make_spec(root), level="error") == []


def test_a_smooth_mask_without_255_is_named_however_few_its_pixels(root, make_spec, make_image):
    mask = np.zeros((32, 32))
    mask[4, 4] = 250
    make_image(root / "label" / "train_1.png", mask)
    (found,) = said(make_spec(root), level="warning")
    assert "train_1.png); these pixels count as unchanged: all of them in 1 masks without any 255" in found
    assert said(make_spec(root), level="error") == []


def test_colour_masks(root, make_spec, make_image):
    make_image(root / "label" / "train_0.png", np.arange(32 * 32 * 3).reshape(32, 32, 3) % 256)
    assert "train.txt:1" in said(make_spec(root), level="error")[0]
    assert "a colour picture" in said(make_spec(root), level="error")[0]


def test_class_numbers_too_high(root, make_spec, make_scenes):
    for split in ("train", "val"):
        make_scenes(root, split, 4, label=lambda changed: 3 * changed)
    ids = {"dataset__segment__label_transform": "None", "dataset__segment__num_classes": 3}
    found = said(make_spec(root, **ids), level="error")
    assert len(found) == 8
    assert "class numbers 3" in found[0]
    assert said(make_spec(root, **{**ids, "dataset__segment__num_classes": 4})) == []


def test_forgotten_norm(root, make_spec):
    found = said(make_spec(root, dataset__segment__label_transform="None"), level="error")
    assert all("label_transform: norm" in text for text in found)
    assert len(found) == 2


def test_sizes(root, make_spec, make_image):
    make_image(root / "B" / "train_1.png", np.zeros((16, 32)))
    found = said(make_spec(root))
    assert "train.txt:2 · different sizes: earlier 32 x 32, later 16 x 32, mask 32 x 32" in found[0]
    assert said(make_spec(root), level="error") == []
    assert len(said(make_spec(root, dataset__segment__windows={"enable": True}), level="error")) == 1


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_images(root, make_spec, cut):  # a quick look sees only that the end is missing
    path = root / "A" / "train_0.png"
    content = path.read_bytes()
    path.write_bytes(content[:100] + (b"" if cut else bytes(len(content) - 120) + content[-20:]))
    assert len(said(make_spec(root), level="error")) == cut
    assert "train.txt:1" in said(make_spec(root), thorough=True, level="error")[0]


@pytest.mark.parametrize("thorough", [True, False])
class TestDeepPixels:
    @staticmethod
    def write(root, highest, suffix=".png"):
        for folder in ("A", "B"):
            for path in list((root / folder).glob("train_*.png")):
                pixels = np.linspace(0, highest, 32 * 32).astype(np.uint16).reshape(32, 32)
                path.unlink()
                Image.fromarray(pixels).save(path.with_suffix(suffix))

    def test_12_bits_in_16(self, root, make_spec, thorough):
        self.write(root, 4095)
        (found,) = said(make_spec(root), thorough=thorough, level="error")
        assert "train.txt · 8 pictures of 16 bits whose values reach 4095 of 65535" in found
        assert "raster.percentiles, or .scaling: [0, 4095]" in found
        assert said(make_spec(root, dataset__segment__raster={"scaling": [0, 4095]}), thorough=thorough) == []

    def test_16_bits(self, root, make_spec, thorough):
        self.write(root, 65535)
        assert said(make_spec(root), thorough=thorough) == []

    def test_tiffs_say_what_their_values_mean(self, root, make_spec, make_list, thorough):
        self.write(root, 4095, ".tif")
        make_list(root, "train", [f"train_{i}.tif" for i in range(4)])
        found = said(make_spec(root), thorough=thorough, level="error")
        assert len(found) == 8
        assert "uint16 pixels · set dataset.segment.raster.percentiles, or .scaling" in found[0]
        raster = {"percentiles": [2, 98]}
        assert said(make_spec(root, dataset__segment__raster=raster), thorough=thorough, level="error") == []


def png_bomb(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("folder", ["A", "B", "label"])
def test_bombs_are_one_line(root, make_spec, folder, thorough):
    (root / folder / "train_1.png").write_bytes(png_bomb(60_000))
    found = said(make_spec(root), thorough=thorough, level="error")
    assert found
    assert all("train.txt:2" in text and f"{folder}/train_1.png: more than" in text for text in found)


def test_what_cannot_be_opened_is_named_where_it_is_listed(root, make_spec):
    (root / "A" / "train_0.png").write_text("version https://git-lfs.github.com/spec/v1")
    (root / "label" / "train_1.png").write_bytes(b"")
    (root / "B" / "train_2.png").write_text("<html>")
    for thorough in (True, False):
        found = said(make_spec(root), thorough=thorough, level="error")
        for line, text in ((1, "git-lfs"), (2, "an empty file"), (3, "a web page")):
            assert any(f"train.txt:{line}" in said_of and text in said_of for said_of in found)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
class TestTiffs:
    """The same reader for images and masks."""

    @pytest.fixture
    def tiffs(self, root, make_list):
        pytest.importorskip("rasterio")
        for folder in ("A", "B", "label"):
            for path in list((root / folder).iterdir()):
                Image.open(path).save(path.with_suffix(".tif"))
                path.unlink()
        for split, num in {"train": 4, "val": 2, "test": 2}.items():
            make_list(root, split, [f"{split}_{i}.tif" for i in range(num)])
        return root

    @staticmethod
    def write_masks(root, change, **more):
        rasterio = pytest.importorskip("rasterio")
        for path in (root / "label").glob("*.tif"):
            values = change((np.asarray(Image.open(path)) > 0).astype(np.uint8))
            profile = {"driver": "GTiff", "count": 1, "height": 32, "width": 32, "dtype": values.dtype.name}
            with rasterio.open(path, "w", **profile, **more) as file:
                file.write(values, 1)

    SUFFIX: ClassVar = {"dataset__segment__label_suffix": ".tif"}
    IDS: ClassVar = {**SUFFIX, "dataset__segment__label_transform": "None"}

    @pytest.mark.parametrize("folder", ["A", "B", "label"])
    def test_cut_off(self, tiffs, make_spec, folder):
        assert said(make_spec(tiffs, **self.SUFFIX)) == []
        path = tiffs / folder / "train_1.tif"
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"II") + 8] + content[8:-400])
        found = said(make_spec(tiffs, **self.SUFFIX), level="error")
        assert found
        assert all("train.txt:2" in text for text in found)

    def test_no_data_is_ignored(self, tiffs, make_spec):
        def change(mask):
            values = mask.astype(np.float32)
            values[16:] = np.nan
            return values

        self.write_masks(tiffs, change)
        report = check_data(make_spec(tiffs, **self.IDS), ("train",), True)
        assert [problem for problem in report.problems if problem.level == "error"] == []
        assert report.facts["train"].labels["ignored"] == "50.00%"

    def test_a_declared_number_is_no_class(self, tiffs, make_spec):
        self.write_masks(tiffs, lambda mask: np.where(np.arange(32)[:, None] < 8, 99, mask).astype(np.uint8), nodata=99)
        assert said(make_spec(tiffs, **self.IDS), level="error") == []

    def test_declared_0_counts_as_unchanged_and_is_said(self, tiffs, make_spec):
        self.write_masks(tiffs, lambda mask: 255 * mask, nodata=0)
        found = said(make_spec(tiffs, **self.SUFFIX))
        assert len(found) == 2  # one for each split
        assert "train.txt · 4 masks declare 0 to mean no data" in found[0]
        assert "it counts as unchanged" in found[0]

    def test_declared_255_is_a_contradiction_under_norm(self, tiffs, make_spec):
        self.write_masks(tiffs, lambda mask: 255 * mask, nodata=255)
        found = said(make_spec(tiffs, **self.SUFFIX), level="error")
        assert len(found) == 6
        assert "declares 255 to mean no data" in found[0]

    def test_fractions(self, tiffs, make_spec):
        self.write_masks(tiffs, lambda mask: mask * np.float32(0.5))
        assert "fractions (0.5, and 143 more)" in said(make_spec(tiffs, **self.IDS), level="error")[0]


def test_entries_listed_twice(root, make_spec, make_list):
    make_list(root, "train", [*(f"train_{i}.png" for i in range(4)), "train_2.png"])
    (found,) = said(make_spec(root), thorough=True)
    assert "train.txt · 1 entries are listed more than once (first: train_2.png)" in found


def test_fewer_pairs_than_a_batch(root, make_spec):
    found = said(make_spec(root, dataset__segment__batch_size=5))
    assert "4 pairs are fewer than one batch of 5" in found[0]
    assert said(make_spec(root, dataset__segment__batch_size=5), "evaluate") == []


def test_the_same_image_in_two_splits(root, make_spec, make_list):
    make_list(root, "val", ["val_0.png", "train_2.png"])
    found = said(make_spec(root), thorough=True)
    assert "val.txt:2 · train_2.png is also in" in found[0]


def test_no_change_anywhere(root, make_spec, make_scenes):
    make_scenes(root, "test", 2, label=lambda changed: 0 * changed)
    assert "no changed pixel in the 2 masks" in said(make_spec(root), "evaluate", level="warning")[0]


def test_no_validation_list(root, make_spec):
    found = said(make_spec(root, dataset__segment__validation_split=""))
    assert found == ["dataset.segment.validation_split · not set · training runs without validation"]
