import re

import numpy as np
import pytest

from fiducial.report import Cursor, Dot, Line, histogram, line_chart
from fiducial.report.charts import _Axis


class TestAxis:
    def test_pixels_run_from_start_to_end(self):
        axis = _Axis(0.0, 2.0, 100.0, 20.0)
        assert [axis.pixel(v) for v in (0, 1, 2)] == [100, 60, 20]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
            (0, 37, [0, 10, 20, 30]),
            (-0.3, 0.25, [-0.2, 0.0, 0.2]),
            (990, 1010, [990, 995, 1000, 1005, 1010]),
            (0, 3e-5, [0, 1e-5, 2e-5, 3e-5]),
        ],
    )
    def test_ticks_are_round(self, low, high, ticks):
        assert _Axis(low, high, 0, 1).ticks() == pytest.approx(ticks)


class TestLineChart:
    def test_points_land_where_the_scales_say(self):
        text = line_chart("T", [Line("a", [0, 1], [0, 2])], x_range=(0, 1), y_range=(0, 2))
        x0, x1 = re.search('data-x="0 1 (.*?) (.*?)"', text).groups()
        y0, y1 = re.search('data-y="0 2 (.*?) (.*?)"', text).groups()
        (path,) = re.findall(r'<path d="M(.*?)"', text)
        assert [float(v) for v in re.split("[ L]", path)] == [float(v) for v in (x0, y0, x1, y1)]

    def test_says_what_it_shows(self):
        text = line_chart("Loss <x>", [Line("train & val", [0], [1])], x_label="epoch", y_label="loss")
        assert 'role="img" aria-label="Loss &lt;x&gt;"' in text
        assert "train &amp; val" in text
        assert "epoch" in text
        assert "<circle" in text  # a single point is a dot

    def test_gaps_flat_lines_and_no_data(self):
        text = line_chart("T", [Line("a", [0, 1, 2], [1, float("nan"), 1]), Line("b", [], [])])
        assert len(re.findall("L", re.search(r'd="(M.*?)"', text).group(1))) == 1
        assert "nan" not in text + line_chart("T", [])

    def test_many_points_are_thinned(self):
        x = np.linspace(0, 1, 100_000)
        assert len(line_chart("T", [Line("a", x.tolist(), x.tolist())])) < 20_000

    def test_marks(self):
        text = line_chart("T", [Line("a", [0, 1], [0, 1])], cursors=[Cursor("c", 5, "m")], dots=[Dot("d", 0, 1)])
        assert 'id="c" class="cursor" transform="translate(446.0 0)"' in text  # held inside the chart
        assert 'id="d" class="marker" transform="translate(56.0 12.0)"' in text

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="2 x for 1 y"):
            line_chart("T", [Line("a", [0, 1], [0])])


class TestHistogram:
    def test_each_group_in_percent_of_itself(self):
        text = histogram("S", {"PASS": [0.0, 0.0, 0.0, 1.0], "defect": [1.0]}, bins=2)
        heights = [float(v) for v in re.findall(r'<rect [^>]*height="([\d.]+)"', text)]
        full = max(heights)
        assert heights == [pytest.approx(0.75 * full, abs=0.1), pytest.approx(0.25 * full, abs=0.1), full]
        assert "PASS: 3 in 0 … 0.5" in text
        assert "defect (1)" in text

    @pytest.mark.parametrize("groups", [{}, {"PASS": []}, {"PASS": [0.3, 0.3]}, {"PASS": np.array([2.0])}])
    def test_little_data(self, groups):
        assert "nan" not in histogram("S", groups)
