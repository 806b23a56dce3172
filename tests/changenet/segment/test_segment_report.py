import re

import numpy as np
import pytest
import torch

from changenet.segment.image_results import ImageResult
from changenet.segment.masks import palette
from changenet.segment.metrics import confusion
from changenet.segment.objects import match_objects
from changenet.segment.report import Views, best_and_worst, write_report
from fiducial.errors import DatasetError

NAMES = ["perfect.png", "half.png", "missed.png", '<b>"alarm"</b>.png', "quiet.png", "</script>.png"]


def _views(index, size=64):
    """Truth: a square of 16 x 16. Found whole, by half, not at all; invented; nothing to find; whole with ignored."""
    truth, prediction = np.zeros((2, size, size), np.uint8)
    if index in (0, 1, 2, 5):
        truth[8:24, 8:24] = 1
    prediction[8:24, 8:24] = truth[8:24, 8:24] if index in (0, 5) else 0
    if index == 1:
        prediction[8:24, 8:16] = 1
    if index == 3:
        prediction[40:44, 40:44] = 1
    if index == 5:
        truth[:, 32:] = 255
    picture = np.full((size, size, 3), 90, np.uint8)
    return Views(picture, picture + truth[..., None] % 255 * 60, prediction, truth)


def _result(index, views, num_classes=2):
    truth, prediction = views.truth, views.prediction
    objects = match_objects(prediction > 0, truth == 1, ignored_HW=truth == 255)
    (matrix,) = confusion(torch.from_numpy(prediction[None]), torch.from_numpy(truth[None]), num_classes).numpy()
    return ImageResult(NAMES[index], matrix, objects)


RESULTS = [_result(i, _views(i)) for i in range(len(NAMES))]


def _load(index):
    if index == 2:
        raise DatasetError("A/missed.png", "no such file", "check root_dir")
    return _views(index)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        per_image=RESULTS,
        load_views=_load,
        metrics={"test_miou": 0.8},
        curves={"Loss": {"train_loss": ([0, 1], [0.7, 0.4])}},
        facts_of_run={"checkpoint": "model_epoch_001.pth"},
        subtitle="LEVIR",
    )
    return path


def _tile(html, label):
    return re.search(rf"<span>{label}</span><strong>(.*?)</strong>", html).group(1)


class TestBestAndWorst:
    def test_order(self):
        assert best_and_worst(RESULTS, 4) == ([5, 0], [2, 1])  # equal F1 and change: by name
        assert best_and_worst(RESULTS, 12) == ([5, 0], [2, 1, 3])

    def test_share_and_not_number_of_wrong_pixels(self):
        large = ImageResult("large", np.array([[99_000, 500], [500, 100]]))
        small = ImageResult("small", np.array([[90, 5], [5, 10]]))
        assert best_and_worst([large, small], 2) == ([0], [1])

    def test_none(self):
        assert best_and_worst([], 4) == best_and_worst(RESULTS, 0) == ([], [])


class TestPage:
    def test_states_the_result(self, page):
        html = page.read_text(encoding="utf-8")
        # 4 squares of 256 pixels, of which 256 + 128 + 256 are found; 16 invented
        assert (
            "The model finds 62.50\u202f% of the changed area, and 97.56\u202f% of what it marks has changed." in html
        )
        assert "Of 4 changed objects it finds 3 (and touches 3); 1 predicted object matches none." in html
        assert _tile(html, "F1 of the change") == f"{2 * 640 / (2 * 640 + 16 + 384):.4f}"
        assert _tile(html, "IoU of the change") == f"{640 / (640 + 16 + 384):.4f}"
        assert _tile(html, "Precision") == "0.9756"
        assert _tile(html, "Recall") == "0.6250"
        assert _tile(html, "Objects found") == "3 of 4"
        assert _tile(html, "False objects") == "1"
        for heading in ("Classes", "Objects", "Images", "Worst images", "Best images", "Training", "Run"):
            assert f"<h2>{heading}</h2>" in html
        assert "model_epoch_001.pth" in html
        assert html.count('class="gallery wide"') == 2
        assert "% of images" in html

    def test_confusion_matrix_is_normalised_by_row(self, page):
        html = page.read_text(encoding="utf-8")
        missed = re.search(r"<td[^>]*bad\) 17%[^>]*>(.*?)<small>384</small>", html)  # 45 % of 37.5 %
        assert missed.group(1) == "37.50\u202f%"
        assert re.search(r"good\) 28%[^>]*>62.50\u202f%<small>640</small>", html)

    def test_is_self_contained_and_escaped(self, page):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|url\(", html)
        assert set(re.findall(r'src="(.{22})', html)) == {"data:image/jpeg;base64"}
        assert "<b>" not in html
        assert html.count("</script>") == html.count("<script") == 1

    def test_an_image_that_cannot_be_read_is_shown_as_such(self, page):
        html = page.read_text(encoding="utf-8")
        assert "The images cannot be read: A/missed.png · no such file · check root_dir" in html
        assert html.count("<article") == 5
        assert html.count("<img") == 3 * 4

    @pytest.mark.parametrize("chosen", [[], [4], [3, 4], [2]])
    def test_without_images_or_change_or_prediction(self, tmp_path, chosen):
        write_report(
            tmp_path / "r.html", per_image=[RESULTS[i] for i in chosen], load_views=lambda i: _views(chosen[i])
        )
        html = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "nan" not in re.sub('data:image.*?"', "", html)
        headlines = {
            0: "No images",
            4: "Nothing changed",
            3: "Nothing changed in these images; 16 pixels",
            2: "marks nothing",
        }
        assert headlines[chosen[0] if chosen else 0] in html

    def test_many_classes(self, tmp_path):
        views = _views(0)
        views.prediction[8:24, 8:16] = 2
        write_report(
            tmp_path / "r.html",
            per_image=[_result(0, views, 3)],
            load_views=lambda i: views,
            class_names=["same", "built", "cleared"],
            class_colours=palette(3),
        )
        html = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert _tile(html, "F1 of the change") == "0.5000"  # the half of another class is missed and false
        assert html.count(">cleared<") >= 2
        assert "other class" in html

    def test_of_a_large_image_the_interesting_part(self, tmp_path):
        views = _views(0, size=1600)
        views.truth[1500:1510, 1000:1010] = 1  # missed, and smaller than what is found
        result = _result(0, views)
        shown = {}
        for num in (1, 2):
            write_report(tmp_path / "r.html", per_image=[result], load_views=lambda i: views, num_shown=num)
            html = (tmp_path / "r.html").read_text(encoding="utf-8")
            shown[num] = re.search(r"640 × 640 pixels at row (\d+), column (\d+) of 1600 × 1600", html).groups()
        assert shown == {1: ("0", "0"), 2: ("960", "640")}  # as the best image, and as the worst


@pytest.mark.browser
class TestInABrowser:
    def test_no_policy_is_broken_and_tables_sort(self, page, dump):
        sort = """const heads = [...document.querySelectorAll("table.sortable th button")];
            heads.find(button => button.textContent === "missed").click();
            document.body.dataset.order = [...document.querySelectorAll("table.sortable tbody tr")].map(
                row => row.cells[2].textContent).join();
            document.body.dataset.loaded = [...document.images].every(image => image.naturalWidth > 0);
            document.body.dataset.wash = getComputedStyle(
                document.querySelector("td[style]")).backgroundColor !== "rgba(0, 0, 0, 0)";"""
        html = dump(page, script=sort)
        assert 'data-order="256,128,0,0,0,0"' in html
        assert 'data-loaded="true"' in html
        assert 'data-wash="true"' in html
