"""``gallery build|add|remove|search|stats``, with a small network, as a checkpoint and as ONNX."""

import csv
import json
import os
import shutil

import pytest
from gallery_makers import SIZE, TinyTask, make_products, save_model
from PIL import Image

from fiducial.actions.perform import perform
from fiducial.data import kept
from fiducial.errors import CheckpointError, DatasetError, SourceError, SpecError
from fiducial.run.lock import only_run
from mlrecog import gallery_embed
from mlrecog.gallery import open_gallery

KINDS = ["shop", "shop.lance"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "best.pth")


@pytest.fixture
def shop(tmp_path, model, caplog):
    """``shop(verb, **keys)`` runs a verb; ``products`` has three classes."""
    caplog.set_level("INFO", "fiducial")
    make_products(tmp_path / "products")

    def run(verb, *overrides, path="shop", **keys):
        section = {"checkpoint": model, "path": str(tmp_path / path), **keys}
        for name in ("source", "query"):
            if name in section:
                section[name] = str(tmp_path / section[name])
        spec = {
            "results_dir": str(tmp_path / "results"),
            "model": {"input_height": SIZE[0], "input_width": SIZE[1]},
            "dataset": {"workers": 0},
            "gallery": section,
        }
        caplog.clear()
        return perform((TinyTask(),), "gallery", spec, list(overrides), verb=verb)

    run.folder = tmp_path
    return run


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", KINDS)
class TestVerbs:
    def test_from_build_to_stats(self, shop, path, caplog):
        built = shop("build", path=path, source="products", threshold=0.5)
        assert (built.kpis, "built with tiny best.pth" in caplog.text) == ({"pictures": 12, "classes": 3}, True)

        make_products(shop.folder / "new", classes=4, each=3, seed=1)
        added = shop("add", path=path, source="new")
        assert added.kpis == {"pictures": 24, "classes": 4}

        make_products(shop.folder / "query", classes=1, each=2, seed=2)
        found = shop("search", path=path, query="query/cola a", topk=3)
        rows = rows_of(found.files[0])
        assert list(rows[0]) == ["query", "rank", "label", "distance", "source", "decision"]
        assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
        assert {(row["label"], row["decision"]) for row in rows} == {("cola a", "cola a")}
        assert [float(row["distance"]) for row in rows[:3]] == sorted(float(row["distance"]) for row in rows[:3])
        assert all(os.path.isfile(row["source"]) and os.path.isfile(row["query"]) for row in rows)
        assert "2-0.png: cola a (nearest: cola a 0." in caplog.text

        removed = shop("remove", path=path, label="cola a", sources=[str(shop.folder / "new/cola b/1-0.png")])
        assert removed.kpis == {"pictures": 16, "classes": 3}
        assert "8 pictures removed" in caplog.text

        stats = shop("stats", path=path)
        said = json.loads(stats.files[0].read_text())
        assert said["counts"] == {"cola b": 6, "cola c": 7, "cola d": 3}
        assert (said["dim"], said["threshold"], said["model"]["file"], said["looked_at"]) == (8, 0.5, "best.pth", 16)
        assert "classes: cola c 7, cola b 6, cola d 3" in caplog.text

    def test_known_ones_are_not_added_again(self, shop, path, caplog):
        shop("build", path=path, source="products")
        assert shop("add", path=path, source="products").kpis["pictures"] == 12
        assert "12 of 12 pictures are in the gallery already" in caplog.text
        make_products(shop.folder / "products", classes=1, each=5, seed=0)  # one more
        (shop.folder / "products/cola b/0-0.png").write_bytes((shop.folder / "products/cola c/0-0.png").read_bytes())
        assert shop("add", path=path, source="products").kpis["pictures"] == 13
        assert "1 pictures added, 1 replaced" in caplog.text

    def test_what_has_not_changed_is_not_read_again(self, shop, path, monkeypatch):
        monkeypatch.setattr(kept, "SETTLED_NS", -1)
        read = []
        whole = gallery_embed.check_whole
        monkeypatch.setattr(gallery_embed, "check_whole", lambda path: (read.append(path.name), whole(path)))
        shop("build", path=path, source="products")
        assert len(read) == 12
        shop("add", path=path, source="products")
        shop("search", path=path, query="products/cola a")
        assert len(read) == 12
        (shop.folder / "products/cola b/0-0.png").write_bytes((shop.folder / "products/cola c/0-0.png").read_bytes())
        shop("add", path=path, source="products")
        assert read[12:] == ["0-0.png"]

    def test_one_folder_as_one_class(self, shop, path, caplog):
        shop("build", path=path, source="products")
        os.rename(shop.folder / "products/cola c", shop.folder / "more")
        make_products(shop.folder / "more/deeper", classes=1)
        assert shop("add", path=path, source="more", label="fanta").kpis == {"pictures": 20, "classes": 4}
        assert open_gallery(str(shop.folder / path)).counts["fanta"] == 8
        shop("add", path=path, source="more", label="sprite")
        assert "stays 'fanta': to make it 'sprite', remove it first" in caplog.text

    def test_checkpoint_and_onnx_are_one_model(self, shop, path, model):
        onnx = model.replace(".pth", ".onnx")
        shop("build", path=path, source="products", checkpoint=onnx)
        found = shop("search", path=path, query="products/cola b/0-2.png")
        row = rows_of(found.files[0])[0]
        assert (row["label"], row["source"]) == ("cola b", row["query"])
        assert float(row["distance"]) == pytest.approx(0, abs=1e-5)
        shop("search", path=path, query="products/cola b", checkpoint=onnx)

    def test_another_model_is_refused_by_name(self, shop, path, tmp_path):
        shop("build", path=path, source="products")
        other = save_model(tmp_path / "other.pth", seed=1)
        for verb, keys in (("search", {"query": "products/cola a"}), ("add", {"source": "new"})):
            make_products(shop.folder / "new", seed=3)
            with pytest.raises(CheckpointError, match=r"built with tiny best.pth \(weights .*with tiny other.pth"):
                shop(verb, path=path, checkpoint=other, **keys)
        same = save_model(tmp_path / "lighter.pth", mean=(0.4, 0.5, 0.5))
        with pytest.raises(CheckpointError, match=r"built with a mean of \[0.5, 0.5, 0.5\], and given \[0.4"):
            shop("search", path=path, checkpoint=same, query="products/cola a")

    def test_unknown_by_threshold_and_margin(self, shop, path):
        shop("build", path=path, source="products", threshold=0.0)
        make_products(shop.folder / "query", classes=1, seed=2)

        def decided(**keys):
            return {row["decision"] for row in rows_of(shop("search", path=path, query="query", **keys).files[0])}

        assert decided() == {"unknown"}
        assert decided(threshold=0.5) == {"cola a"}
        assert decided(threshold=0.5, margin=3.9) == {"unknown"}
        shop("add", path=path, threshold=0.5)
        assert decided() == {"cola a"}
        result = shop("search", path=path, query="query", margin=3.9)
        assert result.kpis == {"pictures": 4, "unknown": 4}

    def test_build_replaces_only_when_told_to(self, shop, path):
        shop("build", path=path, source="products")
        with pytest.raises(DatasetError, match="there is a gallery"):
            shop("build", path=path, source="products")
        shutil.rmtree(shop.folder / "products/cola a")
        assert shop("build", path=path, source="products", overwrite=True).kpis["classes"] == 2


class TestStats:
    def test_near_duplicates_and_outliers(self, shop, caplog):
        (shop.folder / "products/cola b/copy.png").write_bytes((shop.folder / "products/cola b/0-0.png").read_bytes())
        (shop.folder / "products/cola c/wrong.png").write_bytes((shop.folder / "products/cola a/0-0.png").read_bytes())
        (shop.folder / "products/COLA c").mkdir()
        Image.new("RGB", (30, 30), "red").save(shop.folder / "products/COLA c/alone.png")
        shop("build", source="products")
        assert "'COLA c' and 'cola c' differ in capitals" in caplog.text
        said = json.loads(shop("stats", duplicate_distance=0).files[0].read_text())

        def name(source):
            return os.path.relpath(source, shop.folder / "products")

        pairs = {frozenset((name(pair["source"]), name(pair["other_source"]))) for pair in said["near_duplicates"]}
        assert pairs >= {
            frozenset(("cola b/copy.png", "cola b/0-0.png")),
            frozenset(("cola c/wrong.png", "cola a/0-0.png")),
        }
        assert {name(each["source"]) for each in said["outliers"]} == {"cola c/wrong.png", "cola a/0-0.png"}
        assert said["labels_alike"] == [["COLA c", "cola c"]]
        assert "is nearest to 'cola a': 0.0000" in caplog.text

    def test_only_some_of_a_large_gallery(self, shop, caplog, monkeypatch):
        from mlrecog.gallery import Gallery

        shop("build", source="products")
        monkeypatch.setattr(Gallery, "sample", 5)
        assert json.loads(shop("stats").files[0].read_text())["looked_at"] == 5
        assert "of 5 of 12 pictures that were looked at" in caplog.text

    def test_empty(self, shop):
        shop("build", source="products")
        for label in ("cola a", "cola b", "cola c"):
            shop("remove", label=label)
        assert json.loads(shop("stats").files[0].read_text())["pictures"] == 0

    def test_recall_of_the_index(self, shop, caplog):
        make_products(shop.folder / "many", classes=20, each=15)
        shop("build", source="many", path="shop.lance", index="ivf_pq")
        assert "recall of the approximate index against exact search, 10 neighbours, a sample: " in caplog.text
        result = shop("stats", path="shop.lance")
        assert "recall of the approximate index" in caplog.text
        assert 0.5 < json.loads(result.files[0].read_text())["index_recall"] <= 1
        shop("add", source="products", path="shop.lance")
        assert "recall of the approximate index" in caplog.text

    def test_no_index_for_a_folder(self, shop, caplog):
        shop("build", source="products", index="ivf_pq")
        assert "a gallery in a folder is searched exactly" in caplog.text


class TestBadInput:
    @pytest.mark.parametrize(
        ("verb", "keys", "match"),
        [
            ("build", {}, "gallery.source · not set"),
            ("build", {"path": ""}, r"(?s)gallery.path · not set.*gallery.source · not set"),
            ("search", {}, "gallery.query · not set"),
            ("add", {}, "gallery.source · not set"),
            ("remove", {}, "gallery.label · not set, nor gallery.sources"),
        ],
    )
    def test_keys_that_are_missing(self, shop, verb, keys, match):
        with pytest.raises(SpecError, match=match):
            shop(verb, *(f"gallery.{name}={value or 'null'}" for name, value in keys.items()))

    def test_what_is_not_there(self, shop):
        with pytest.raises(SourceError, match=r"gallery.source · no file or folder"):
            shop("build", source="nothing")
        for verb, keys in (("add", {"source": "products"}), ("search", {"query": "products"}), ("stats", {})):
            with pytest.raises(DatasetError, match="no gallery there"):
                shop(verb, **keys)
        with pytest.raises(CheckpointError, match=r"gallery.checkpoint"):
            shop("build", source="products", checkpoint="/none.pth")
        assert not (shop.folder / "shop").exists()

    def test_unreadable_pictures_are_all_named_before_anything(self, shop):
        for name in ("cola a/0-1.png", "cola c/0-0.png"):
            (shop.folder / "products" / name).write_bytes(b"no picture")
        with pytest.raises(DatasetError, match=r"(?s)0-1.png.*0-0.png"):
            shop("build", source="products")
        assert not (shop.folder / "shop").exists()

    def test_a_picture_that_breaks_halfway_leaves_no_gallery(self, shop):
        path = shop.folder / "products/cola c/0-3.png"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        for place in KINDS:
            with pytest.raises(DatasetError, match=r"0-3.png"):
                shop("build", source="products", path=place)
            with pytest.raises(DatasetError, match="no gallery there"):
                open_gallery(str(shop.folder / place))

    def test_formulas_in_labels(self, shop):
        os.rename(shop.folder / "products/cola a", shop.folder / "products/=1+1")
        shop("build", source="products", threshold=4)
        result = shop("search", query="products/=1+1/0-0.png", topk=1)
        assert rows_of(result.files[0])[0]["label"] == "'=1+1"
        assert "=1+1" in open_gallery(str(shop.folder / "shop")).counts

    def test_archive_and_class_map(self, shop):
        shutil.make_archive(str(shop.folder / "pack"), "zip", shop.folder / "products")
        names = shop.folder / "names.yaml"
        names.write_text("cola a: Classic\ncola b: Zero\ncola c: Light\n")
        shop("build", f"dataset.class_map={names}", source="pack.zip")
        gallery = open_gallery(str(shop.folder / "shop"))
        assert list(gallery.counts) == ["Classic", "Light", "Zero"]
        assert gallery.entries[0].source == f"{shop.folder}/pack.zip/cola a/0-0.png"


def test_verbs_run_side_by_side_in_one_results_folder(shop, tmp_path):
    """A search while an `add` of the same spec goes on: its lock would refuse the second run."""
    shop("build", source="products")
    folder = tmp_path / "results" / "gallery"
    with only_run(folder, "gallery"):
        shop("search", query="products")
        shop("add", source="products")
    assert (folder / "search.csv").is_file()
