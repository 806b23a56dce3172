import base64
import re

import numpy as np
import pytest
import torch

from changenet.classify.metrics import classify_report
from changenet.classify.report import worst_rows, write_report
from fiducial.errors import SourceError

SCORE = torch.tensor([0.05, 0.10, 0.15, 0.35, 0.55, 0.30, 0.45, 0.80, 0.90])
LABEL = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
NAMES = ["C1", "C1", "R2", "R2", '<b>"U3"</b>', "C1", "R2", "C1", "</script>"]


def _pair(index):
    if index == 4:
        raise SourceError("b/4.jpg", "no such file", "check images_dir")
    golden = np.full((300, 400, 3), 90, dtype=np.uint8)
    golden[100:200, 100:300] = 200
    test = golden.copy()
    if index > 4:
        test[120:160, 120:200] = 20
    return test, golden


def _write(path, score=SCORE, label=LABEL, names=NAMES, margin=0.4, **more):
    report = classify_report(score, label, margin, groups=names, bootstrap=20)
    rows = [{"object_name": name, "input_path": f"b/{i}"} for i, name in enumerate(names)]
    write_report(path, report=report, score=score, label=label, margin=margin, rows=rows, load_pair=_pair, **more)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    curves = {"Loss": {"train_loss": ([0, 1], [0.7, 0.4])}}
    _write(path, curves=curves, facts_of_run={"checkpoint": "model_epoch_001.pth"}, subtitle="test.csv")
    return path


def _text(html, element):
    return re.sub("<.*?>", "", re.search(rf'id="{element}"[^>]*>(.*?)</', html).group(1))


class TestWorstRows:
    def test_hardest_first(self):
        assert worst_rows(SCORE, LABEL, 4) == ([5, 6], [4, 3])

    def test_a_small_class_leaves_its_place_to_the_other(self):
        assert worst_rows(SCORE, LABEL, 24) == ([5, 6, 7, 8], [4, 3, 2, 1, 0])
        assert worst_rows(SCORE[4:], LABEL[4:], 4) == ([1, 2, 3], [0])
        assert worst_rows(SCORE[:5], LABEL[:5], 2) == ([], [4, 3])


class TestPage:
    def test_states_the_result(self, page):
        html = page.read_text(encoding="utf-8")  # margin 0.4: 0.30 is missed, 0.55 a false alarm
        assert "At margin 0.4 the model misses 1 of 4 defects and raises 1 false alarm on 5 good rows." in html
        assert "To miss none, set 0.225: 2 false alarms." in html
        assert [_text(html, f"live-{name}") for name in ("tn", "fp", "fn", "tp")] == ["4", "1", "1", "3"]
        assert _text(html, "margin-yaml") == "eval_margin: 0.4"
        for heading in ("Thresholds", "Component types", "Hardest defects", "Hardest good rows", "Training", "Run"):
            assert f"<h2>{heading}</h2>" in html
        assert "model_epoch_001.pth" in html
        assert "test_true_fpr" in html

    def test_is_self_contained_and_escaped(self, page):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|url\(", html)
        assert set(re.findall(r'src="(.{22})', html)) == {"data:image/jpeg;base64"}
        assert "<b>" not in html
        assert "&lt;b&gt;&quot;U3&quot;&lt;/b&gt;" in html
        assert html.count("</script>") == html.count("<script") == 3

    def test_holds_every_score_exactly(self, page):
        html = page.read_text(encoding="utf-8")
        good, bad = (
            np.frombuffer(base64.b64decode(re.search(rf'"{name}":"(.*?)"', html).group(1)), "<f4")
            for name in ("good", "bad")
        )
        assert good.tolist() == SCORE[LABEL == 0].tolist()
        assert bad.tolist() == SCORE[LABEL == 1].tolist()

    def test_a_row_without_images_is_shown_as_such(self, page):
        html = page.read_text(encoding="utf-8")
        assert "The images cannot be read: b/4.jpg · no such file · check images_dir" in html
        assert html.count("<img") == 3 * 8

    def test_margins_are_printed_with_enough_digits(self, tmp_path):
        score = torch.tensor([0.123456, 0.123458, 0.9])
        html = _write(tmp_path / "r.html", score, torch.tensor([0, 1, 1]), ["a"] * 3, margin=0.123457)
        assert _text(html, "margin-yaml") == "eval_margin: 0.123457"

    @pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 9), slice(0, 0)])
    def test_one_class_or_no_rows(self, tmp_path, rows):
        html = _write(tmp_path / "r.html", SCORE[rows], LABEL[rows], NAMES[rows])
        assert 'id="roc-dot"' not in html
        assert ">nan<" not in html

    def test_many_rows_stay_small(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        label = (torch.rand(20_000, generator=generator) < 0.1).long()
        score = torch.rand(20_000, generator=generator)
        html = _write(tmp_path / "r.html", score, label, ["C1"] * 20_000)
        assert len(html) < 2_000_000
        assert html.count("<article") == 24


def _live(html):
    names = ("tn", "fp", "fn", "tp", "precision", "recall", "f1")
    return ", ".join(f"{name} {_text(html, f'live-{name}')}" for name in names)


@pytest.mark.browser
class TestInABrowser:
    def test_as_evaluated_and_sorting_by_number(self, page, dump):
        sort = """document.querySelector("table.sortable th:nth-child(2) button").click();
            document.body.dataset.order = [...document.querySelectorAll("table.sortable tbody tr")].map(
                row => row.cells[1].textContent).join();"""
        html = dump(page, "#section-2", sort)
        assert _live(html) == "tn 4, fp 1, fn 1, tp 3, precision 0.7500, recall 0.7500, f1 0.7500"
        assert html.count(">missed defect<") == html.count(">false alarm<") == 1
        assert 'data-order="9,4,3,1,1"' in html

    def test_address_sets_the_margin(self, page, dump):
        html = dump(page, "#margin=0.2")  # 0.35 and 0.55 are false alarms, nothing is missed
        assert _live(html) == "tn 3, fp 2, fn 0, tp 4, precision 0.6667, recall 1.0000, f1 0.8000"
        assert _text(html, "live-missed-hint") == "0.00\u202f% of 4"
        assert _text(html, "live-alarms-hint") == "40.00\u202f% of 5"
        assert _text(html, "margin-yaml") == "eval_margin: 0.2"
        assert _text(html, "margin-override") == "model.classify.eval_margin=0.2"
        assert html.count(">missed defect<") == 0
        assert html.count(">false alarm<") == 2

    def test_each_control(self, page, dump):
        """Every way to set a margin, one after the other; missed defects, false alarms and the line to paste each."""
        script = """const seen = [], text = id => document.getElementById(id).textContent;
            const note = () => seen.push([text("live-fn"), text("live-fp"), text("margin-yaml")].join(" "));
            const go = hash => {
                history.replaceState(null, "", hash); dispatchEvent(new Event("hashchange")); note(); };
            const type = (id, value, name) => { const control = document.getElementById(id);
                control.value = value; control.dispatchEvent(new Event(name)); note(); };
            go("#margin=0.3"); go("#margin="); go("#margin=x"); go("#margin=0.1000001");
            type("margin-field", "0.5", "input"); type("margin-field", "", "input");
            const chart = document.getElementById("score-histogram"), box = chart.getBoundingClientRect();
            const clientX = box.left + box.width * (56 + 0.7 * 390) / 460;  // 70 % of the way from 0 to 0.9
            chart.dispatchEvent(new PointerEvent("pointerdown", {clientX, buttons: 1})); note();
            document.querySelector("td button[data-margin]").click(); note();
            document.body.dataset.hash = location.hash;
            type("margin-slider", "0.9", "input");
            document.body.dataset.seen = seen.join("; ");"""
        html = dump(page, script=script)
        assert re.search('data-seen="(.*?)"', html).group(1).split("; ") == [
            "1 2 eval_margin: 0.3",  # a score of 0.3 is not above a margin of 0.3, as in PyTorch
            "1 2 eval_margin: 0.3",
            "1 2 eval_margin: 0.3",
            "0 3 eval_margin: 0.1",  # the shortest decimal with the same decisions
            "2 1 eval_margin: 0.5",
            "2 1 eval_margin: 0.5",
            "2 0 eval_margin: 0.63",
            "0 2 eval_margin: 0.225",
            "4 0 eval_margin: 0.9",
        ]
        assert 'data-hash="#margin=0.225"' in html
        assert _text(html, "live-precision") == "–"
        marks = [
            re.search(rf'id="{mark}"[^>]*translate\((.*?)\)', html) for mark in ("margin-cursor", "roc-dot", "pr-dot")
        ]
        assert [mark.group(1) for mark in marks] == ["446.0 0.0", "56.0 256.0", "56.0 12.0"]

    @pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 0)])
    def test_one_class_or_no_rows(self, tmp_path, dump, rows):
        _write(tmp_path / "r.html", SCORE[rows], LABEL[rows], NAMES[rows])
        html = dump(tmp_path / "r.html", "#margin=0.2")
        assert _text(html, "live-fp") == str(int((SCORE[rows] > 0.2).sum()))
        assert _text(html, "live-recall") == "–"
