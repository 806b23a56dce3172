"""The gallery in a LanceDB table gives what the one in memory gives, on disk and in object storage."""

import json
import multiprocessing
import os

import pytest
import torch
from gallery_makers import CARD, MODEL, embeddings, part

from fiducial.errors import CheckpointError, DatasetError, MissingDependencyError
from mlrecog.gallery import Added, Gallery, GalleryCard, ModelFacts, Part, open_gallery
from mlrecog.gallery_table import Entry
from mlrecog.neighbours import unit

lancedb = pytest.importorskip("lancedb")
from mlrecog.lance import LanceGallery  # noqa: E402

LABELS = ["it's", '"quoted"', "back\\slash", "=1+1", "Größe", "a\nb", "%_", "--", "null"]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "shop.lance")


@pytest.fixture
def both(tmp_path):
    """The same gallery in memory and in a table."""
    return [
        Gallery.build(str(tmp_path / "small"), CARD, [part(200)]),
        LanceGallery.build(str(tmp_path / "large.lance"), CARD, [part(120), part_of_rest()]),
    ]


def part_of_rest():
    whole = part(200)
    return Part(whole.entries[120:], whole.embeddings_ND[120:])


def test_what_is_given_is_there_again(path):
    LanceGallery.build(path, CARD, [part(5), part(3, seed=1)])
    found = open_gallery(path)
    assert isinstance(found, LanceGallery)
    assert (found.card, len(found), found.counts) == (CARD, 8, {"cola 0": 3, "cola 1": 3, "cola 2": 2})
    parts = list(found.parts())
    assert [e.source for given in parts for e in given.entries] == [
        e.source for s in (0, 1) for e in part((5, 3)[s], seed=s).entries
    ]
    expected = torch.cat([embeddings(5), embeddings(3, seed=1)])
    assert torch.equal(torch.cat([given.embeddings_ND for given in parts]), unit(expected))
    assert all(e.added for given in parts for e in given.entries)


class TestEqualsTheSmallGallery:
    def check(self, both, k=7):
        queries = embeddings(30, seed=9)
        small, large = (gallery.search(queries, k) for gallery in both)
        torch.testing.assert_close(large.distances_Qk, small.distances_Qk, atol=1e-6, rtol=0)
        torch.testing.assert_close(large.rival_Q, small.rival_Q, atol=1e-6, rtol=0)
        assert (large.labels, large.sources) == (small.labels, small.sources)

    def test_search(self, both):
        self.check(both)
        self.check(both, 1000)

    def test_after_the_same_changes(self, both):
        changed = Part(
            [Entry("new", "/shop/0/3.png", "x"), Entry("cola 1", "/shop/0/4.png", "0-4")], embeddings(2, seed=3)
        )
        for gallery in both:
            gallery.remove(labels=["cola 1"], sources=["/shop/0/0.png", "/shop/0/2.png"])
            assert gallery.add([part(40, seed=4, classes=1), changed]) == Added(41, 1, 0)
            assert gallery.add([part(40, seed=4, classes=1)]) == Added(0, 0, 40)
        self.check(both)
        assert both[0].counts == both[1].counts

    def test_equal_pictures_come_in_order(self, tmp_path):
        vectors = torch.cat([embeddings(1).expand(5, -1), embeddings(20, seed=1)])
        given = Part.of([f"c{i}" for i in range(25)], [str(i) for i in range(25)], vectors)
        for name in ("small", "large.lance"):
            gallery = (LanceGallery if "lance" in name else Gallery).build(str(tmp_path / name), CARD, [given])
            assert gallery.search(embeddings(1), 3).sources == (("0", "1", "2"),)

    def test_one_class_alone_has_no_rival(self, path):
        found = LanceGallery.build(path, CARD, [part(40, classes=1)]).search(embeddings(2, seed=1), 2)
        assert found.rival_Q.isinf().all()

    def test_rival_beyond_the_neighbours(self, path):
        crowd = torch.tensor([1.0] + [0] * 7) + 0.01 * embeddings(100)
        labels = ["crowd"] * 100 + ["it's"]
        gallery = LanceGallery.build(
            path, CARD, [Part.of(labels, [str(i) for i in range(101)], torch.cat([crowd, torch.eye(8)[1:2]]))]
        )
        torch.testing.assert_close(gallery.search(torch.eye(8)[:2], 1).rival_Q[0], torch.tensor(2.0))

    def test_any_label(self, path):
        gallery = LanceGallery.build(path, CARD, [Part.of(LABELS, [f"{name}.png" for name in LABELS], embeddings(9))])
        assert gallery.counts == dict.fromkeys(sorted(LABELS), 1)
        assert [row[0] for row in gallery.search(embeddings(9), 1).labels] == LABELS
        assert gallery.known([f"{name}.png" for name in LABELS]).keys() == {f"{name}.png" for name in LABELS}
        for left, name in zip(range(8, -1, -1), LABELS, strict=True):
            assert gallery.remove(**({"labels": [name]} if left % 2 else {"sources": [f"{name}.png"]})) == 1
            assert len(gallery) == left
        with pytest.raises(DatasetError, match="empty gallery"):
            gallery.search(embeddings(1), 1)


class TestWriting:
    def test_of_one_picture_given_twice_the_last_counts(self, path):
        gallery = LanceGallery.build(path, CARD, [Part.of(["a", "b"], ["same", "same"], embeddings(2))])
        assert gallery.counts == {"b": 1}
        gallery.add([Part.of(["c"], ["same"], embeddings(1)), Part.of(["d", "e"], ["same", "z"], embeddings(2))])
        assert gallery.counts == {"d": 1, "e": 1}

    def test_replaces_only_when_told_to(self, path):
        LanceGallery.build(path, CARD, [part(3)])
        with pytest.raises(DatasetError, match="there is a gallery"):
            LanceGallery.build(path, CARD, [part(5)])
        other = GalleryCard(MODEL, dim=4)
        LanceGallery.build(path, other, [part(5, dim=4)], overwrite=True)
        assert (len(open_gallery(path)), open_gallery(path).card) == (5, other)

    def test_stopped_halfway_nothing_changes(self, path):
        gallery = LanceGallery.build(path, CARD, [part(3)])

        def stops():
            yield part(2, seed=1)
            raise KeyboardInterrupt

        for write in (gallery.add, lambda parts: LanceGallery.build(path, CARD, parts, overwrite=True)):
            with pytest.raises(KeyboardInterrupt):
                write(stops())
        with pytest.raises(DatasetError, match="no direction"):
            gallery.add([part(2, seed=1), Part.of(["a"], ["s"], torch.zeros(1, 8))])
        assert len(open_gallery(path)) == 3

    def test_build_again_after_one_that_was_killed(self, path, tmp_path):
        (tmp_path / "shop.lance" / "data").mkdir(parents=True)
        with pytest.raises(DatasetError, match="no gallery there"):
            open_gallery(path)
        assert len(LanceGallery.build(path, CARD, [part(3)])) == 3

    def test_unknown_ones_are_named_and_nothing_goes(self, path):
        gallery = LanceGallery.build(path, CARD, [part(7)])
        with pytest.raises(DatasetError, match=r"(?s)did you mean 'cola 1'.*no source '/x.png'"):
            gallery.remove(labels=["cola 0", "Cola 1"], sources=["/x.png"])
        assert len(open_gallery(path)) == 7

    def test_threshold_and_margin_are_kept(self, path):
        gallery = LanceGallery.build(path, CARD, [part(3)])
        gallery.decide_by(None, 0.1)
        gallery.add([part(3, seed=1)])
        found = open_gallery(path)
        assert (found.card.threshold, found.card.margin, len(found)) == (0.4, 0.1, 6)

    def test_gallery_that_was_built_anew_with_another_model(self, path):
        mine = LanceGallery.build(path, CARD, [part(3)])
        other = GalleryCard(ModelFacts("ef" * 32, (64, 48), MODEL.mean, MODEL.std), dim=8)
        LanceGallery.build(path, other, [part(2)], overwrite=True)
        with pytest.raises(CheckpointError, match="efefefefefef"):
            mine.add([part(1, seed=3)])

    def test_many_readers_while_one_writes(self, path):
        writer = LanceGallery.build(path, CARD, [part(30)])
        readers = [open_gallery(path) for _ in range(3)]
        writer.remove(labels=["cola 0"])
        writer.add([part(5, seed=1)])
        assert [len(reader) for reader in readers] == [30] * 3  # what they opened
        assert {label for reader in readers for row in reader.search(embeddings(9), 5).labels for label in row} == {
            "cola 0",
            "cola 1",
            "cola 2",
        }
        assert len(open_gallery(path)) == len(writer) == 25

    def test_two_writers(self, path):
        LanceGallery.build(path, CARD, [part(1)])
        spawn = multiprocessing.get_context("spawn")  # lancedb does not survive a fork
        writers = [spawn.Process(target=add_many, args=(path, seed)) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
            assert writer.exitcode == 0
        assert len(open_gallery(path)) == 1 + 2 * 6


def add_many(path, seed):
    for number in range(3):
        LanceGallery.open(path).add([part(2, seed=seed, first=2 * number)])


class TestIndex:
    @pytest.fixture(scope="class")
    @staticmethod
    def indexed(tmp_path_factory):
        centres = embeddings(50, dim=32).repeat(40, 1)
        given = Part.of(
            [f"c{i % 50}" for i in range(2000)],
            [str(i) for i in range(2000)],
            centres + 0.3 * embeddings(2000, dim=32, seed=1),
        )
        gallery = LanceGallery.build(
            str(tmp_path_factory.mktemp("index") / "x.lance"), GalleryCard(MODEL, dim=32), [given]
        )
        assert (gallery.is_indexed, gallery.recall()) == (False, None)
        gallery.make_index()
        return gallery

    def test_recall(self, indexed):
        assert indexed.is_indexed
        good = indexed.recall()
        indexed.probes, indexed.refine = 1, 1
        worse = indexed.recall()
        del indexed.probes, indexed.refine
        assert 0.9 < good <= 1
        assert worse < good

    def test_distances_are_exact_ones(self, indexed):
        queries = embeddings(10, dim=32, seed=2)
        found = indexed.search(queries, 3)
        indexed.exact = True
        exact = indexed.search(queries, 3)
        del indexed.exact
        for i in range(10):
            for distance, source in zip(found.distances_Qk[i].tolist(), found.sources[i], strict=True):
                if source in exact.sources[i]:
                    assert distance == pytest.approx(
                        exact.distances_Qk[i, exact.sources[i].index(source)].item(), abs=1e-6
                    )

    def test_more_neighbours_than_the_cells_hold(self, indexed):
        indexed.probes = 1
        assert indexed.search(embeddings(2, dim=32, seed=2), 1500).distances_Qk.shape == (2, 1500)
        del indexed.probes

    def test_what_is_added_is_found_and_indexed(self, indexed):
        indexed.add([Part.of(["new"], ["new"], embeddings(1, dim=32, seed=77))])
        assert indexed.search(embeddings(1, dim=32, seed=77), 1).labels == (("new",),)
        assert indexed.table.index_stats(indexed.table.list_indices()[0].name).num_unindexed_rows == 0

    def test_too_few(self, path, caplog):
        caplog.set_level("INFO", "fiducial")
        gallery = LanceGallery.build(path, CARD, [part(20)])
        gallery.make_index()
        assert "searched exactly" in caplog.text
        assert not gallery.is_indexed


class TestBadTables:
    @pytest.mark.parametrize("name", ["two words.lance", "a;b.lance", ".lance"])
    def test_names(self, tmp_path, name):
        with pytest.raises(DatasetError, match=r"gallery.path · .* cannot be a table's name"):
            open_gallery(str(tmp_path / name))

    def test_credentials_in_the_address(self):
        with pytest.raises(DatasetError, match="credentials in s3://bucket/x · give them in the environment"):
            open_gallery("s3://key:secret@bucket/x")

    def test_none(self, tmp_path):
        with pytest.raises(DatasetError, match="no gallery there"):
            open_gallery(str(tmp_path / "none" / "x.lance"))
        assert not list(tmp_path.iterdir())
        (tmp_path / "x.lance").write_text("mine")
        with pytest.raises(DatasetError, match="is a file"):
            LanceGallery.build(str(tmp_path / "x.lance"), CARD, [part(1)])

    def test_others_tables(self, tmp_path):
        import pyarrow as pa

        database = lancedb.connect(str(tmp_path))
        database.create_table("a", data=pa.table({"vector": [1.0]}))
        with pytest.raises(DatasetError, match="without the columns added, label, number"):
            open_gallery(str(tmp_path / "a.lance"))
        columns = {name: pa.array(["x"]) for name in ("label", "source", "sha256", "added")}
        vector = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 8, pa.float32()), 8)
        table = pa.table({**columns, "number": [1], "vector": vector})
        database.create_table("b", data=table)
        with pytest.raises(DatasetError, match="without a gallery's description"):
            open_gallery(str(tmp_path / "b.lance"))
        for name, said in (("c", "{"), ("d", "[]"), ("e", json.dumps({**CARD.plain(), "dim": 7}))):
            field = pa.field("vector", vector.type, metadata={"fiducial": said})
            schema = table.schema.set(table.schema.get_field_index("vector"), field)
            database.create_table(name, data=table.cast(schema))
            with pytest.raises(DatasetError):
                open_gallery(str(tmp_path / f"{name}.lance"))

    def test_embeddings_that_are_none(self, path):
        gallery = LanceGallery.build(path, CARD, [part(3)])
        rows = gallery.table.to_arrow().to_pylist()
        gallery.table.delete("true")
        gallery.table.add([{**row, "vector": [float("inf")] * 8} for row in rows], on_bad_vectors="fill")
        with pytest.raises(DatasetError, match="no numbers"):
            gallery.search(embeddings(1), 3)

    def test_without_the_extra(self, path, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "lancedb", None)
        with pytest.raises(MissingDependencyError, match=r"fiducial\[lancedb\]"):
            LanceGallery.build(path, CARD, [part(1)])


class TestObjectStorage:
    @pytest.fixture
    def bucket(self, monkeypatch):
        import boto3
        import requests

        server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        for name, value in {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", timeout=10)
        boto3.client("s3").create_bucket(Bucket="line7")
        yield "s3://line7"
        server.stop()

    @pytest.mark.parametrize("name", ["shop", "shop/", "shop/products.lance", "a/b/c.lance"])
    def test_equals_the_small_gallery(self, bucket, tmp_path, name):
        address, small = f"{bucket}/{name}", Gallery.build(str(tmp_path / "small"), CARD, [part(60)])
        with pytest.raises(DatasetError, match=f"s3://line7/{name.rstrip('/')} · no gallery there"):
            open_gallery(address)
        LanceGallery.build(address, CARD, [part(60)])
        with pytest.raises(DatasetError, match="there is a gallery"):
            LanceGallery.build(address, CARD, [part(60)])
        large = open_gallery(address)
        for gallery in (small, large):
            gallery.add([part(9, seed=1)])
            gallery.remove(labels=["cola 2"])
        queries = embeddings(9, seed=4)
        assert open_gallery(address).search(queries, 5).sources == small.search(queries, 5).sources

    def test_no_bucket(self, bucket):
        with pytest.raises(DatasetError, match=r"s3://other/shop · .*"):
            LanceGallery.build("s3://other/shop", CARD, [part(1)])
