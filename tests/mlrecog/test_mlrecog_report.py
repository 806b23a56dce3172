"""The pages of ``evaluate`` and ``inference``, read as a browser's tree."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from mlrecog import report
from mlrecog.folders import Sample
from mlrecog.gallery import UNKNOWN, Found
from mlrecog.open_set import open_set
from mlrecog.report import write_answers_report, write_retrieval_report
from mlrecog.results import Answers, Embedded, Labelled

NAMES = ("cola <b>&", "fanta", "water", "tea")
SIDE = 300


class Html:
    """A page. It must also be well-formed XML, but for its scripts and styles."""

    def __init__(self, path):
        self.text = path.read_text(encoding="utf-8")
        bare = re.sub(r"<(script|style)\b.*?</\1>", "", self.text, flags=re.DOTALL)
        self.root = ElementTree.fromstring(bare.removeprefix("<!doctype html>"))
        self.sections = {section.findtext("h2"): section for section in self.root.iter("section")}

    def said(self, title):
        return " ".join(part.strip() for part in self.sections[title].itertext() if part.strip())

    def tiles(self, title):
        found = self.sections[title].iterfind(".//div[@class='tile']")
        return {tile.findtext("span"): tile.findtext("strong") for tile in found}

    def rows(self, title):
        (body,) = self.sections[title].iter("tbody")
        return [["".join(cell.itertext()) for cell in row] for row in body]

    def cards(self, title):
        """Of each: headline, badge, captions, facts."""
        found = []
        for card in self.sections[title].iter("article"):
            headline, badge = card.find("h3")
            facts = [part.text for part in card.find("dl")]
            captions = [caption.text for caption in card.iter("figcaption")]
            found.append((headline.text, badge.text, captions, dict(zip(facts[::2], facts[1::2], strict=True))))
        return found

    def images(self, title):
        for image in self.sections[title].iter("img"):
            head, _, data = image.get("src").partition(",")
            assert head == "data:image/jpeg;base64"
            yield image.get("alt"), np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def on_a_circle(*degrees):
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


def side(folder, name, labels):
    """Pictures, each of one grey."""
    samples = []
    for number, label in enumerate(labels):
        path = folder / name / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE // 2), (20 * number + 40,) * 3).save(path)
        samples.append(Sample(path, label))
    return Labelled(name, tuple(samples), NAMES)


def embedded(folder):
    """Four classes in the gallery, of which ``tea`` has no picture.

    Queries: one that is right; two of ``fanta``, of which the first is taken for ``cola``, and the second nearly; one
    of ``tea``, which cannot be found.
    """
    reference, queries = side(folder, "gallery", [0, 0, 1, 2]), side(folder, "queries", [0, 1, 1, 3])
    embeddings = on_a_circle(0.0, 20.0, 90.0, 180.0), on_a_circle(5.0, 30.0, 60.0, 120.0)
    return Embedded((reference, queries), embeddings)


def write_retrieval(path, result, **about):
    found = result.retrieval
    kpis = {"test Precision at Rank 1": found.mean("precision_at_1", by_class=False), "test_mAP": None, "n": 3}
    return Html(write_retrieval_report(path, result, kpis, open_set(found.own_Q, found.other_Q), about))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_retrieval(folder / "report.html", embedded(folder), model="<best>.pth", batch_size=4)


QUERIES, CLASSES, MIXED = "Queries, wrong ones first", "Classes", "Mixed up"
OPEN_SET, MAP = "Is it in the gallery at all?", "Map of the queries"


class TestRetrieval:
    def test_sections(self, page):
        assert list(page.sections) == ["Summary", QUERIES, MIXED, CLASSES, OPEN_SET, MAP, "Run"]
        assert page.root.findtext(".//h1") == "Retrieval"
        assert page.root.findtext(".//header/p") == "<best>.pth"

    def test_is_self_contained_and_escaped(self, page):
        assert not re.search(r"https?:|@import|url\(", page.text)
        assert "<b>" not in page.text
        assert "&lt;div" not in page.text  # nor is finished markup escaped once more
        assert page.text.count("<script") == page.text.count("</script>") == 1

    def test_summary(self, page):
        assert page.tiles("Summary") == {"test Precision at Rank 1": "0.6667", "test_mAP": "–", "n": "–"}

    def test_queries(self, page):
        wrong, nearly, right = page.cards(QUERIES)  # and not the one that cannot be found
        assert wrong == (
            "fanta, taken for cola <b>&",
            "wrong",
            ["query: fanta", "1. cola <b>& (0.030)", "2. cola <b>& (0.268)", "3. fanta (1.000)", "4. water (3.732)"],
            {"file": "queries/1.png", "nearest of its class": "1", "nearest of another": "0.03038"},
        )
        assert [card[:2] for card in (nearly, right)] == [("fanta", "right"), ("cola <b>&", "right")]
        assert nearly[2][1:3] == ["1. fanta (0.268)", "2. cola <b>& (0.468)"]
        assert right[3] == {"file": "queries/0.png", "nearest of its class": "0.007611", "nearest of another": "1.826"}

    def test_pictures_beside_them(self, page):
        greys = [int(pixels.mean().round()) for _, pixels in page.images(QUERIES)][:4]
        assert greys == pytest.approx([60, 60, 40, 80], abs=2)  # query 1; gallery 1, 0, 2
        alts, drawn = zip(*page.images(QUERIES), strict=True)
        assert alts[0] == "fanta, taken for cola <b>&: query: fanta"
        assert {pixels.shape[:2] for pixels in drawn} == {(70, 140)}

    def test_mixed_up(self, page):
        assert page.rows(MIXED) == [["fanta", "cola <b>&", "1"]]

    def test_classes_worst_first_and_those_without_queries_last(self, page):
        assert page.rows(CLASSES) == [
            ["fanta", "2", "1", "0.5", "0.5"],
            ["cola <b>&", "1", "2", "1", "1"],
            ["water", "0", "1", "–", "–"],
            ["tea", "1", "0", "–", "–"],
        ]

    def test_open_set(self, page, tmp_path):
        found = embedded(tmp_path).retrieval
        judged = open_set(found.own_Q, found.other_Q)
        told = page.tiles(OPEN_SET)
        assert list(told) == ["threshold", "margin", "AUROC", "balanced accuracy"]
        assert [float(value) for value in told.values()] == pytest.approx(list(judged.plain().values()), rel=1e-3)
        charts = [chart.get("aria-label") for chart in page.sections[OPEN_SET].iter("svg")]
        assert charts == ["Accepted, by the share of strangers accepted", "Distance of the nearest picture"]

    def test_map_has_every_query(self, page):
        queries, gallery = page.sections[MAP].iter("svg")
        assert [chart.get("aria-label") for chart in (queries, gallery)] == ["Queries", "Gallery"]
        assert [group.findtext("title") for group in queries.iter("g") if group.findtext("title")] == [
            "fanta",
            "cola <b>&",
            "tea",
        ]
        assert len(list(queries.iter("circle"))) == len(list(gallery.iter("circle"))) == 4

    def test_curves(self, page):
        charts = [chart.get("aria-label") for chart in page.sections["Summary"].iter("svg")]
        assert charts == [
            "Queries with their class among the nearest",
            "Share of the nearest that are of the query's class",
        ]

    def test_run(self, page):
        assert page.said("Run").split()[1:] == ["model", "<best>.pth", "batch_size", "4"]


class TestUnusual:
    def one_class(self, folder, embeddings=None):
        labelled = side(folder, "one", [0, 0, 0])
        x = on_a_circle(0.0, 10.0, 40.0) if embeddings is None else embeddings
        return Embedded((labelled, labelled), (x, x), same=True)

    def test_one_set_of_one_class(self, tmp_path):
        page = write_retrieval(tmp_path / "report.html", self.one_class(tmp_path))
        assert MIXED not in page.sections
        assert "nothing can be told" in page.said(OPEN_SET)
        assert [card[1] for card in page.cards(QUERIES)] == ["right"] * 3
        for _, _, captions, facts in page.cards(QUERIES):
            assert len(captions) == 3  # itself is not among its neighbours
            assert facts["nearest of another"] == "–"

    def test_pictures_that_are_gone(self, tmp_path):
        result = embedded(tmp_path)
        for sample in (result.sides[0].samples[1], *result.sides[1].samples[:1]):
            sample.path.unlink()
        result.sides[1].samples[2].path.write_bytes(b"no picture")
        wrong, nearly, right = write_retrieval(tmp_path / "report.html", result).cards(QUERIES)
        assert wrong[2] == ["query: fanta", "2. cola <b>& (0.268)", "3. fanta (1.000)", "4. water (3.732)"]
        assert nearly[2][:2] == ["1. fanta (0.268)", "3. cola <b>& (1.000)"]
        assert right[2][:2] == ["1. cola <b>& (0.008)", "3. fanta (1.826)"]
        for sample in (*result.sides[0].samples, *result.sides[1].samples):
            sample.path.unlink(missing_ok=True)
        page = write_retrieval(tmp_path / "report.html", result)
        assert all(captions == [] for _, _, captions, _ in page.cards(QUERIES))
        assert page.said(QUERIES).count("its picture cannot be read any more") == 3

    def test_embeddings_of_one_number(self, tmp_path):
        """Also to be drawn on a plane."""
        page = write_retrieval(tmp_path / "report.html", self.one_class(tmp_path, torch.tensor([[1.0], [1], [-1]])))
        assert len(list(page.sections[MAP].iter("svg"))) == 1

    def test_too_few_for_a_map(self, tmp_path):
        result = self.one_class(tmp_path)
        few = Embedded((result.sides[0], side(tmp_path, "few", [0, 0])), (result.embeddings[0], on_a_circle(5.0, 9.0)))
        assert "too few queries" in write_retrieval(tmp_path / "report.html", few).said(MAP)

    def test_many_queries_stay_small(self, tmp_path):
        reference, queries = side(tmp_path, "gallery", [0, 1]), side(tmp_path, "queries", [0, 1])
        many = Labelled("queries", queries.samples * 2500, NAMES)
        angles = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 360
        x = torch.stack((angles.deg2rad().cos(), angles.deg2rad().sin()), 1)
        page = write_retrieval(tmp_path / "report.html", Embedded((reference, many), (on_a_circle(0.0, 90.0), x)))
        cards = page.cards(QUERIES)
        assert len(cards) == report.SHOWN
        assert {badge for _, badge, _, _ in cards} == {"wrong"}
        assert len(list(next(page.sections[MAP].iter("svg")).iter("circle"))) == 1000  # every fifth
        assert len(page.text) < 2_000_000

    def test_colours_on_the_map_are_the_largest_classes(self, tmp_path):
        names = tuple(f"class {number}" for number in range(9))
        labels = [label for label in range(9) for _ in range(label + 1)]
        samples = tuple(Sample(tmp_path / "none.png", label) for label in labels)
        labelled = Labelled("all", samples, names)
        x = on_a_circle(*(float(place) for place in range(len(labels))))
        said = write_retrieval(tmp_path / "report.html", Embedded((labelled, labelled), (x, x), same=True)).said(MAP)
        assert [name for name in (*names, "others") if name in said] == [*names[4:], "others"]


class TestAnswers:
    @pytest.fixture
    def page(self, tmp_path):
        labelled = side(tmp_path, "inputs", [-1, -1])
        sources = [str(sample.path) for sample in side(tmp_path, "gallery", [0, 1, 2, 3]).samples]
        found = Found(
            torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.9, 1.0, 1.1, 1.2]]),
            (NAMES, NAMES[::-1]),
            (tuple(sources), (*sources[:1], "s3://bucket/elsewhere.png", *sources[2:])),
            torch.tensor([0.2, 1.0]),
        )
        paths = tuple(sample.path for sample in labelled.samples)
        answers = Answers(paths, found, tuple(found.decisions(0.5, None)))
        return Html(write_answers_report(tmp_path / "report.html", answers, {"model": "best.pth"}))

    def test_summary(self, page):
        assert list(page.sections) == ["Summary", "Farthest from the gallery first", "Run"]
        assert page.tiles("Summary") == {"pictures": "2", "unknown": "1"}
        assert page.root.findtext(".//h1") == "Recognition"

    def test_farthest_first(self, page):
        unknown, known = page.cards("Farthest from the gallery first")
        assert unknown == (
            "inputs/1.png",
            UNKNOWN,
            ["picture", "1. tea (0.900)", "3. fanta (1.100)", "4. cola <b>& (1.200)"],
            {"nearest": "0.9", "nearest of another class": "1"},
        )
        assert known == (
            "inputs/0.png",
            "cola <b>&",
            ["picture", "1. cola <b>& (0.100)", "2. fanta (0.200)", "3. water (0.300)", "4. tea (0.400)"],
            {"nearest": "0.1", "nearest of another class": "0.2"},
        )
        badges = [badge.get("class") for badge in page.root.iterfind(".//article/h3/span[2]")]
        assert badges == ["badge bad", "badge"]


def test_an_older_page_is_replaced_in_one_step(tmp_path):
    (tmp_path / "report.html").write_text("<p>an older page")
    found = Found(torch.tensor([[0.1]]), (("a",),), (("",),), torch.tensor([torch.inf]))
    write_answers_report(tmp_path / "report.html", Answers((Path("x.png"),), found, ("a",)), {})
    assert "an older page" not in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
