import json
import re
from html.parser import HTMLParser

import pytest

from fiducial.report import (
    Cell,
    Page,
    Picture,
    Tile,
    columns,
    copy_line,
    facts,
    gallery,
    note,
    number,
    percent,
    rate,
    table,
    tag,
    tiles,
)
from fiducial.report.markup import Html, embedded_json

NASTY = """<script>alert("x")</script> & 'C:\\a"b'"""


class _Balance(HTMLParser):
    """Counts elements and fails on one that is closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attrs):
        self.handle_startendtag(name, attrs)
        self.open.append(name)

    def handle_startendtag(self, name, attrs):
        self.seen.append(name)
        self.attributes += attrs

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


class TestMarkup:
    def test_text_and_attributes_are_escaped_once(self):
        parsed = _Balance(tag("p", NASTY, title=NASTY, data_row=3))
        assert parsed.seen == ["p"]
        assert parsed.text == NASTY
        assert parsed.attributes == [("title", NASTY), ("data-row", "3")]
        assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"

    def test_attribute_values(self):
        assert tag("input", checked=True, disabled=False, id=None, class_="a") == '<input checked class="a"/>'

    def test_finished_markup_stays(self):
        assert tag("p", Html("<b>x</b>")) == "<p><b>x</b></p>"

    def test_json_cannot_end_its_element(self):
        value = {"name": "</script><!-- & \u2028", "n": [1, 2.5, None]}
        block = embedded_json("data", value)
        content = re.fullmatch(r'<script type="application/json" id="data">(.*)</script>', block).group(1)
        assert not set("<>&\u2028") & set(content)
        assert json.loads(content) == value

    def test_json_refuses_nan(self):
        with pytest.raises(ValueError, match="JSON"):
            embedded_json("data", float("nan"))

    def test_numbers(self):
        assert [number(v) for v in (None, float("nan"), 3, 12345, 0.123456, 1.0, 1e-7)] == [
            "–",
            "–",
            "3",
            "12\u202f345",
            "0.1235",
            "1",
            "1e-07",
        ]
        assert (percent(0.125), percent(None)) == ("12.50\u202f%", "–")
        assert (rate(0.5), rate(1.0, 2), rate(None)) == ("0.5000", "1.00", "–")


class TestBlocks:
    def test_table(self):
        text = table(["name", "n"], [[NASTY, 12000], ["b", None]], sortable=True)
        parsed = _Balance(text)
        assert parsed.seen.count("tr") == 3
        assert NASTY in parsed.text
        assert [value for name, value in parsed.attributes if name == "data-sort"] == ["12000", ""]
        assert 'class="sortable"' in text

    def test_table_cells_sort_by_value_and_show_a_hint(self):
        text = table(["recall"], [[Cell("0.50", 0.5, hint="0.4–0.6")], [Cell("–", None)]])
        assert '<td class="num" data-sort="0.5">0.50<small>0.4–0.6</small></td>' in text
        assert '<td class="num" data-sort="">–</td>' in text

    def test_table_with_a_short_row_is_an_error(self):
        with pytest.raises(ValueError, match="2 cells"):
            table(["a", "b"], [["1"]])

    def test_others_escape_what_they_are_given(self):
        picture = Picture(NASTY, {NASTY: "data:,"}, {NASTY: NASTY}, badge=NASTY, data={"score": 0.5})
        blocks = [
            tiles([Tile(NASTY, NASTY, NASTY, id="t")]),
            facts({NASTY: NASTY, "empty": None}),
            note(NASTY),
            columns(NASTY),
            copy_line(NASTY, NASTY, id="c"),
            gallery([picture]),
        ]
        for block in blocks:
            parsed = _Balance(block)
            assert "script" not in parsed.seen
            assert NASTY in parsed.text

    def test_a_picture_without_images_says_why(self):
        assert "no file" in gallery([Picture("row 1", {}, {}, problem="no file")])


class TestPage:
    def test_is_one_file_that_asks_for_nothing(self, tmp_path):
        page = Page("Title <1>", "sub").add("One", note("text"), intro="about").add("Two", "a < b")
        page.add_data("data", {"x": "</script>"}).add_script("fiducial.data('data')").write(tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        parsed = _Balance(text)
        assert any("default-src 'none'" in value for name, value in parsed.attributes if name == "content")
        assert not re.search(r"https?:|\bsrc=|@import|url\(", text)
        assert [value for name, value in parsed.attributes if name == "href"] == ["#section-1", "#section-2"]
        assert "a < b" in parsed.text
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]

    @pytest.mark.parametrize("source", ["x = '</Script>'", "<!-- x"])
    def test_a_script_that_would_end_its_element_is_refused(self, source):
        with pytest.raises(ValueError, match="must not contain"):
            Page("t").add_script(source)
