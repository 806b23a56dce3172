import re

import pytest

from fiducial.report import Scale, Thread, parallel

SCALES = [Scale("a.b.rate", [(0.0, "0.1"), (1.0, "10")]), Scale("kind", [(0.0, "x"), (1.0, "y")])]


class TestParallel:
    def test_threads_go_where_their_places_are(self):
        text = parallel("T", SCALES, [Thread([0.0, 1.0]), Thread([1.0, 0.5])])
        first, second = re.findall(r'<path d="M(.*?)"', text)
        (x0, low), (x1, high) = ([float(part) for part in point.split()] for point in first.split("L"))
        assert x0 < x1
        assert low > high  # downwards on a screen
        assert [float(point.split()[1]) for point in second.split("L")] == [high, (low + high) / 2]

    def test_places_that_are_none_are_left_out(self):
        text = parallel("T", SCALES, [Thread([None, 1.0]), Thread([None, None])])
        assert re.findall(r'<path d="M(.*?)"', text)[0].count("L") == 0
        assert text.count("<path") == 1

    def test_says_what_it_shows(self):
        text = parallel("T <x>", SCALES, [Thread([0.0, 0.0], "good", "training & 3")])
        for part in (
            'aria-label="T &lt;x&gt;"',
            "training &amp; 3",
            'class="line good"',
            "rate<title>a.b.rate</title>",
        ):
            assert part in text

    def test_a_place_for_every_scale(self):
        with pytest.raises(ValueError, match="needs 2 places"):
            parallel("T", SCALES, [Thread([0.0])])
