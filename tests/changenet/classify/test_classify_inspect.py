"""What check says about a data set."""

import shutil

import numpy as np
import pytest
from PIL import Image

from changenet.classify.inspect import check_data


@pytest.fixture
def data(pair_data, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pair_data, tmp_path / "data")


@pytest.fixture
def spec_of(make_spec, data):
    def make(**changes):
        files = {
            f"dataset__classify__{name}_dataset": {"csv_path": str(data / f"{split}.csv"), "images_dir": str(data)}
            for name, split in (("train", "train"), ("validation", "val"), ("test", "val"), ("infer", "val"))
        }
        return make_spec(**files, **changes)

    return make


def found(report, level="error"):
    return [problem for problem in report.problems if problem.level == level]


class TestFacts:
    def test_counts(self, spec_of):
        facts = check_data(spec_of(), ("train", "val"), False).facts
        assert facts["train"].count == 24
        assert facts["train"].labels == {"PASS": 16, "MISSING": 8}
        assert facts["val"].details["goldens"] == 4

    def test_thorough_adds_sizes(self, spec_of):
        facts = check_data(spec_of(), ("test",), True).facts
        assert facts["test"].details["sizes"] == {"32x32": 2 * (11 + 4)}

    def test_only_the_splits_of_the_action(self, spec_of):
        assert list(check_data(spec_of(), ("infer",), False).facts) == ["infer"]
        assert list(check_data(spec_of(), (), False).facts) == []

    def test_good_data(self, spec_of):
        assert check_data(spec_of(), ("train", "val"), True).problems == []


class TestFiles:
    def test_missing_file_with_another_extension_beside_it(self, spec_of, data):
        (data / "train/b4/0000_WhiteLight.png").rename(data / "train/b4/0000_WhiteLight.JPG")
        (problem,) = found(check_data(spec_of(), ("train", "val"), False))
        assert problem.where == f"{data}/train.csv:6"
        assert problem.found == f"Image file wasn't found at {data}/train/b4/0000_WhiteLight.png"
        assert problem.fix == "there is 0000_WhiteLight.JPG: set dataset.classify.image_ext: .JPG"

    def test_every_missing_file_is_listed(self, spec_of):
        assert len(found(check_data(spec_of(dataset__classify__image_ext=".jpg"), ("test",), False))) == 2 * (11 + 4)

    def test_extension_in_object_name(self, spec_of, data):
        text = (data / "val.csv").read_text()
        (data / "val.csv").write_text(text.replace(",0000,", ",0000.png,"))
        problems = found(check_data(spec_of(), ("test",), False))
        assert {problem.fix for problem in problems} == {"object_name already ends in .png: remove it from the CSV"}

    def test_wrong_folder(self, spec_of, data):
        (data / "train").rename(data / "elsewhere")
        (problem,) = found(check_data(spec_of(), ("train", "val"), False))  # one for all 48 files
        assert problem.where == f"{data}/train.csv:2"
        assert problem.found.endswith("train/b0/0000_SolderLight.png, and 47 more below the same folder")
        assert problem.fix.startswith(f"the folder {data}/train does not exist: check images_dir and the CSV's paths")

    @pytest.mark.parametrize("cut", [True, False])
    def test_damaged_image(self, spec_of, data, cut):  # a quick look sees only that the end is missing
        path = data / "val/b1/0001_SolderLight.png"
        content = path.read_bytes()
        path.write_bytes(content[:100] + (b"" if cut else bytes(len(content) - 120) + content[-20:]))
        assert len(found(check_data(spec_of(), ("test",), False))) == cut
        (problem,) = found(check_data(spec_of(), ("test",), True))
        assert problem.where == f"{data}/val.csv:3"
        assert str(path) in problem.found

    def test_lights_of_different_sizes(self, spec_of, data, make_image):
        make_image(data / "val/b1/0001_SolderLight.png", np.zeros((32, 40, 3)))
        make_image(data / "golden/0003_WhiteLight.png", np.zeros((16, 32, 3)))
        problems = found(check_data(spec_of(), ("test",), True), "warning")
        text = [problem.found for problem in problems if "different sizes" in problem.found]
        assert text[0] == "lights of the test image have different sizes: 32x32, 40x32"
        assert text[1] == "lights of the golden have different sizes: 32x16, 32x32"

    def test_several_goldens_need_a_folder_with_images(self, spec_of, data):
        shutil.rmtree(data / "golden")
        (data / "golden").mkdir()
        problems = found(check_data(spec_of(dataset__classify__num_golden=2), ("test",), False))
        assert problems[0].found == f"no *.png image in {data}/golden"
        assert len([problem for problem in problems if "no *.png" in problem.found]) == 1

    def test_path_columns_that_name_files(self, spec_of, data):
        text = (data / "val.csv").read_text()
        for row in (0, 1, 2):
            text = text.replace(
                f"val/b{row},golden,", f"val/b{row}/{row:04d}_SolderLight.png,golden/0003_WhiteLight.png,"
            )
        (data / "val.csv").write_text(text)
        problems = found(check_data(spec_of(), ("test",), False))
        assert [(p.where, p.found) for p in problems] == [
            (f"{data}/val.csv:2", "input_path names a file, val/b0/0000_SolderLight.png, as in 2 other rows"),
            (f"{data}/val.csv:2", "golden_path names a file, golden/0003_WhiteLight.png, as in 2 other rows"),
        ]
        assert problems[0].fix.startswith("write its folder, val/b0: ")

    @pytest.mark.parametrize(
        ("old", "new", "cause"),
        [
            ("val/b1", ".\\val\\b1", "written with backslashes"),
            ("val/b1", " val/b1", "a blank at its beginning"),
            ("0001", "x" * 300, "longer than a name can be"),
            ("0001", "\u00fc1", "accents are other Unicode characters"),
            ("0001", " ", "object_name is blank"),
            ("0001", "FOLDER", "it is a folder, not a file"),
            ("0001", "LINK", "a link to nowhere, which is not there"),
            ("0001", "Caps", "there is CAPS_SolderLight.png: capitals count"),
        ],
    )
    def test_names_that_explain_themselves(self, spec_of, data, old, new, cause):
        lines = (data / "val.csv").read_text().splitlines()
        lines[2] = lines[2].replace(old, new)
        (data / "val.csv").write_text("\n".join(lines), encoding="utf-8")
        (data / "val/b1/u\u03081_SolderLight.png").touch()
        (data / "val/b1/FOLDER_SolderLight.png").mkdir()
        (data / "val/b1/CAPS_SolderLight.png").touch()
        (data / "val/b1/LINK_SolderLight.png").symlink_to("nowhere")
        assert cause in found(check_data(spec_of(), ("test",), False))[0].fix

    def test_what_lies_beside_and_is_no_image_is_no_advice(self, spec_of, data):
        path = data / "train/b4/0000_WhiteLight.png"
        path.rename(path.with_suffix(".txt"))
        (problem,) = found(check_data(spec_of(), ("train",), False))
        assert problem.fix == "check object_name, the lights in input_map, and image_ext"

    @pytest.mark.parametrize("thorough", [False, True])
    @pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
    def test_camera_values_in_16_bits(self, spec_of, data, bits, thorough):
        for path in (*data.glob("val/*/*.png"), *data.glob("golden/*.png")):
            grey = np.array(Image.open(path).convert("L"))
            grey[0, 0] = 255
            Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) << (bits - 8)).save(path)
        report = check_data(spec_of(), ("test",), thorough)
        dark = [problem for problem in found(report, "warning") if "16 bits" in problem.found]
        kinds = ["test images", "goldens"] if bits in (10, 12, 14) else []
        assert len(dark) == len(kinds)
        for problem, kind in zip(dark, kinds, strict=True):
            assert (
                f"{kind} of 16 bits whose values reach {255 << (bits - 8)} of 65535: a camera's {bits}" in problem.found
            )
            assert problem.fix.startswith(f"multiply them by {1 << (16 - bits)} ")

    def test_several_pages(self, spec_of, data):
        pages = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
        pages[0].save(data / "val/b1/0001_SolderLight.png", "TIFF", save_all=True, append_images=pages[1:])
        (problem,) = found(check_data(spec_of(), ("test",), True), "warning")
        assert problem.where == f"{data}/val.csv:3"
        assert problem.found.startswith("1 images have several pages, of which the first is read")

    def test_a_file_below_an_object_name(self, spec_of, data):
        (data / "val.csv").write_text((data / "val.csv").read_text().replace(",0001,", ",0001_WhiteLight.png/x,"))
        assert "Image file wasn't found" in found(check_data(spec_of(), ("test",), False))[0].found


class TestRows:
    def test_all_pass_cannot_be_trained_on(self, spec_of, data):
        (data / "train.csv").write_text((data / "train.csv").read_text().replace("MISSING", "PASS"))
        (problem,) = found(check_data(spec_of(), ("train", "val"), False))
        assert "no defects" in problem.found

    def test_one_class_is_only_odd_elsewhere(self, spec_of, data):
        for split in ("train", "val"):
            text = (data / f"{split}.csv").read_text()
            (data / f"{split}.csv").write_text(text.replace("PASS", "OPEN"))
        report = check_data(spec_of(), ("train", "val"), False)
        assert found(report) == []
        assert [problem.found for problem in found(report, "warning")] == [
            "no PASS rows; the labels are 'OPEN' (16), 'MISSING' (8)",
            "no PASS rows; the labels are 'OPEN' (8), 'MISSING' (3)",
        ]

    def test_rows_that_contradict_or_repeat_others(self, spec_of, data):
        with (data / "train.csv").open("a") as file:
            file.write("train/b0/,golden,MISSING,0000,\n./train/b1,golden,PASS,0001,\ntrain/b2,golden,OPEN,0002,\n")
        problems = found(check_data(spec_of(), ("train",), False), "warning")
        assert [(p.where, p.found) for p in problems] == [
            (
                f"{data}/train.csv:26",
                "1 rows contradict an earlier row of the same images: lines 2 PASS and 26 MISSING",
            ),
            (f"{data}/train.csv:27", "2 rows repeat an earlier row: lines 3 and 27, lines 4 and 28"),
        ]

    def test_rows_that_compare_an_image_with_itself(self, spec_of, data):
        with (data / "val.csv").open("a") as file:
            file.write("golden,val/../golden/.,PASS,0001,\ngolden/,golden,OPEN,0002,\n")
        for split in ("test", "infer"):
            (problem,) = found(check_data(spec_of(), (split,), False), "warning")
            assert problem.where == f"{data}/val.csv:13"
            assert problem.found == "2 rows compare an image with itself (first: golden, 0001)"

    def test_boards_of_two_splits(self, spec_of, data):
        lines = (data / "train.csv").read_text().splitlines()
        with (data / "val.csv").open("a") as file:
            file.write("\n".join(lines[3:5]) + "\n")
        (problem,) = found(check_data(spec_of(), ("train", "val"), False), "warning")
        assert problem.where == f"{data}/val.csv:13"
        assert problem.found == "2 of 13 folders of input_path are trained on too (first: train/b2)"

    def test_fewer_rows_than_a_batch(self, spec_of):
        (problem,) = found(check_data(spec_of(dataset__classify__batch_size=32), ("train", "val"), False))
        assert "24 rows are fewer than one batch of 32" in problem.found
        assert found(check_data(spec_of(dataset__classify__batch_size=32), ("test",), False)) == []

    def test_fewer_rows_than_one_batch_for_every_gpu(self, spec_of):
        report = check_data(spec_of(dataset__classify__batch_size=16, train__num_gpus=2), ("train", "val"), False)
        assert "24 rows for 2 devices with batches of 16" in found(report, "warning")[0].found

    def test_no_validation_set_is_no_error(self, make_spec):
        report = check_data(make_spec(dataset__classify__validation_dataset={}), ("train", "val"), False)
        assert [problem.level for problem in report.problems] == ["warning"]
        assert list(report.facts) == ["train"]

    def test_problems_of_all_splits_together(self, spec_of, data):
        (data / "train.csv").write_text("a;b\n1;2\n")
        (data / "val/b1/0001_SolderLight.png").unlink()
        where = [problem.where for problem in found(check_data(spec_of(), ("train", "val"), False))]
        assert where == [f"{data}/train.csv:1", f"{data}/val.csv:3"]


class TestThorough:
    def test_test_images_that_are_trained_on(self, spec_of, data):
        for light in ("SolderLight", "WhiteLight"):
            shutil.copy(data / f"train/b2/0002_{light}.png", data / f"val/b2/0002_{light}.png")
        problems = found(check_data(spec_of(), ("train", "val"), True), "warning")
        assert {(p.where, p.found) for p in problems} == {
            (f"{data}/val.csv:4", f"the same image as {data}/train.csv:4"),
        }

    def test_shifted_images(self, spec_of, data, make_image):
        rng = np.random.default_rng(0)
        for row in range(11):
            golden = row % 4
            picture = np.kron(np.random.default_rng(golden).integers(0, 255, (16, 16, 3)), np.ones((4, 4, 1)))
            moved = np.roll(picture, 6, axis=1) if row == 5 else picture
            noisy = np.clip(moved + rng.integers(0, 5, moved.shape), 0, 255)
            for light in ("SolderLight", "WhiteLight"):
                make_image(data / f"golden/{golden:04d}_{light}.png", picture)
                make_image(data / f"val/b{row}/{golden:04d}_{light}.png", noisy)
        problems = [p for p in found(check_data(spec_of(), ("test",), True), "warning") if "beside" in p.found]
        assert len(problems) == 1
        assert "1 of 11 test images lie more than 3 pixels beside their golden (line 7 by 6.0)" in problems[0].found
        assert "dataset.classify.align: shift" in problems[0].fix
