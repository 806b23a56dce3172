"""The gallery in a folder: what is kept is what was given, whatever happens meanwhile."""

import csv
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from gallery_makers import CARD, MODEL, embeddings, part
from hypothesis import given
from hypothesis import strategies as st

import mlrecog.gallery_base
import mlrecog.gallery_files
from fiducial.errors import CheckpointError, DatasetError
from mlrecog.gallery import UNKNOWN, Added, Found, Gallery, GalleryCard, ModelFacts, Part, gallery_class, open_gallery
from mlrecog.gallery_table import Entry, guarded, read_table, table_bytes, unguarded
from mlrecog.neighbours import nearest, unit

FILES = ("embeddings.safetensors", "table.csv", "gallery.json")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "shop")


class TestRoundTrip:
    def test_what_is_given_is_there_again(self, path):
        built = Gallery.build(path, CARD, [part(5), part(3, seed=1)])
        found = open_gallery(path)
        assert isinstance(found, Gallery)
        assert found.card == built.card == CARD
        assert found.entries == built.entries
        assert [(e.label, e.source, e.sha256) for e in found.entries] == [
            (e.label, e.source, e.sha256) for given in (part(5), part(3, seed=1)) for e in given.entries
        ]
        assert torch.equal(found.embeddings_ND, unit(torch.cat([embeddings(5), embeddings(3, seed=1)])))
        assert found.counts == {"cola 0": 3, "cola 1": 3, "cola 2": 2}
        assert len(found) == 8

    def test_only_three_files_are_left(self, path):
        gallery = Gallery.build(path, CARD, [part(4)])
        gallery.add([part(4, seed=1)])
        gallery.remove(labels=["cola 0"])
        assert sorted(os.listdir(path)) == sorted([*FILES, ".lock"])

    def test_labels_and_sources_alone(self, path):
        gallery = Gallery.build(path, CARD, [Part.of(["a", "b"], ["x.png", "y.png"], embeddings(2))])
        assert gallery.add([Part.of(["c"], ["z.png"], embeddings(1, seed=2))]) == Added(1, 0, 0)
        assert list(open_gallery(path).counts) == ["a", "b", "c"]

    def test_empty(self, path):
        gallery = Gallery.build(path, CARD, [])
        assert len(open_gallery(path)) == 0
        with pytest.raises(DatasetError, match="empty gallery"):
            gallery.search(embeddings(1), 1)
        gallery.add([part(2)])
        assert gallery.search(embeddings(2)[:1], 1).labels == (("cola 0",),)

    def test_parts_give_all_or_some_of_it(self, path):
        gallery = Gallery.build(path, CARD, [part(9)])
        assert [e.source for given in gallery.parts() for e in given.entries] == [e.source for e in gallery.entries]
        some = list(gallery.parts(3))
        assert [e.source for given in some for e in given.entries] == [f"/shop/0/{n}.png" for n in (0, 3, 6)]
        assert torch.equal(some[0].embeddings_ND, gallery.embeddings_ND[[0, 3, 6]])


class TestAdd:
    def test_known_changed_and_new(self, path):
        gallery = Gallery.build(path, CARD, [part(3)])
        again = [Entry("cola 0", "/shop/0/0.png", "0-0"), Entry("fanta", "/shop/0/1.png", "other"), Entry("x", "/new")]
        new = embeddings(3, seed=5)
        assert gallery.add([Part(again, new)]) == Added(new=1, replaced=1, known=1)
        found = open_gallery(path)
        assert [e.label for e in found.entries] == ["cola 0", "fanta", "cola 2", "x"]
        expected = torch.stack([embeddings(3)[0], new[1], embeddings(3)[2], new[2]])
        assert torch.equal(found.embeddings_ND, unit(expected))

    def test_one_picture_given_twice_counts_as_it_was_last(self, path):
        twice = Part.of(["a", "b"], ["same.png", "same.png"], embeddings(2))
        gallery = Gallery.build(path, CARD, [twice])
        assert [e.label for e in gallery.entries] == ["b"]
        assert torch.equal(gallery.embeddings_ND, unit(embeddings(2)[1:]))

    def test_known_alone_writes_nothing(self, path):
        gallery = Gallery.build(path, CARD, [part(3)])
        before = os.stat(os.path.join(path, "gallery.json"))
        assert gallery.add([part(3)]) == Added(0, 0, 3)
        after = os.stat(os.path.join(path, "gallery.json"))
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_what_another_added_meanwhile_stays(self, path):
        mine, other = Gallery.build(path, CARD, [part(3)]), Gallery.open(path)
        other.add([part(2, seed=1)])
        mine.add([part(2, seed=2)])
        assert len(open_gallery(path)) == len(mine) == 7
        assert len(other) == 5

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            (Part.of(["a"], ["s"], torch.zeros(1, 8)), "s · an embedding of no direction"),
            (Part.of(["a"], ["s"], torch.full((1, 8), torch.nan)), "s · an embedding of no direction"),
            (Part.of(["a"], ["s"], torch.full((1, 8), torch.inf)), "s · an embedding of no direction"),
            (Part.of(["a"], ["s"], torch.ones(1, 7)), r"\(1, 7\).*of 8 numbers"),
            (Part.of([" "], ["s"], torch.ones(1, 8)), "an empty label"),
            (Part.of(["a"], [""], torch.ones(1, 8)), "an empty source"),
            (Part.of(["a\0b"], ["s"], torch.ones(1, 8)), "is no text"),
            (Part.of(["a"], ["s\udcff"], torch.ones(1, 8)), "is no text"),
            (Part.of(["a" * 5000], ["s"], torch.ones(1, 8)), "5000 characters"),
        ],
    )
    def test_what_cannot_be_kept_is_refused_and_nothing_changes(self, path, wrong, match):
        gallery = Gallery.build(path, CARD, [part(3)])
        with pytest.raises(DatasetError, match=match):
            gallery.add([part(2, seed=1), wrong])
        assert len(gallery) == len(open_gallery(path)) == 3


class TestRemove:
    def test_classes_and_pictures(self, path):
        gallery = Gallery.build(path, CARD, [part(7)])
        assert gallery.remove(labels=["cola 1"], sources=["/shop/0/3.png"]) == 3
        found = open_gallery(path)
        assert [e.source for e in found.entries] == [f"/shop/0/{n}.png" for n in (0, 2, 5, 6)]
        assert torch.equal(found.embeddings_ND, unit(embeddings(7)[[0, 2, 5, 6]]))

    def test_all_that_is_not_there_is_named_and_nothing_goes(self, path):
        gallery = Gallery.build(path, CARD, [part(7)])
        with pytest.raises(DatasetError, match=r"(?s)did you mean 'cola 1'.*no source '/x.png'") as error:
            gallery.remove(labels=["cola 0", "Cola 1"], sources=["/x.png"])
        assert len(error.value.problems) == 2
        assert len(open_gallery(path)) == 7

    def test_capitals_and_blanks_are_told(self, path):
        gallery = Gallery.build(path, CARD, [Part.of(["TEA 1"], ["x"], embeddings(1))])
        with pytest.raises(DatasetError, match="did you mean 'TEA 1'"):
            gallery.remove(labels=["tea1"])


class TestSearch:
    def test_hand_made(self, path):
        vectors = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [-3, 0]])
        card = GalleryCard(MODEL, dim=2)
        gallery = Gallery.build(path, card, [Part.of(["a", "a", "b", "c"], list("wxyz"), vectors)])
        found = gallery.search(torch.tensor([[5.0, 0], [0, 2]]), 3)
        assert found.labels == (("a", "a", "b"), ("b", "a", "a"))
        assert found.sources == (("w", "x", "y"), ("y", "x", "w"))
        torch.testing.assert_close(found.distances_Qk, torch.tensor([[0, 0.8, 2], [0, 0.4, 2]]))
        torch.testing.assert_close(found.rival_Q, torch.tensor([2, 0.4]))

    def test_is_the_exact_search(self, path):
        gallery = Gallery.build(path, CARD, [part(300)])
        queries = embeddings(20, seed=9)
        found, expected = gallery.search(queries, 7), nearest(unit(queries), unit(embeddings(300)), 7)
        assert torch.equal(found.distances_Qk, expected.distances_Qk)
        assert found.sources == tuple(tuple(f"/shop/0/{n}.png" for n in row) for row in expected.places_Qk.tolist())

    @pytest.mark.parametrize("crowd", [10, 200])
    def test_rival_beyond_the_neighbours(self, path, crowd):  # of one class, more than are looked at first
        near = torch.tensor([1.0, 0]) + 0.01 * embeddings(crowd, dim=2)
        far = torch.tensor([[0.0, 1], [-1, 0]])
        labels = ["crowd"] * crowd + ["b", "c"]
        given = Part.of(labels, [str(i) for i in range(crowd + 2)], torch.cat([near, far]))
        found = Gallery.build(path, GalleryCard(MODEL, dim=2), [given]).search(torch.tensor([[1.0, 0], [0, 1]]), 2)
        torch.testing.assert_close(found.rival_Q[0], torch.tensor(2.0))
        assert found.labels == (("crowd", "crowd"), ("b", "crowd"))

    def test_no_rival_in_a_gallery_of_one_class(self, path):
        found = Gallery.build(path, CARD, [part(5, classes=1)]).search(embeddings(2), 9)
        assert found.rival_Q.isinf().all()
        assert found.distances_Qk.shape == (2, 5)  # as many as there are

    def test_wrong_queries(self, path):
        gallery = Gallery.build(path, CARD, [part(5)])
        with pytest.raises(DatasetError, match=r"queries \(1, 9\) for a gallery of 8 numbers"):
            gallery.search(torch.ones(1, 9), 1)
        with pytest.raises(DatasetError, match="no numbers"):
            gallery.search(torch.full((1, 8), torch.nan), 1)

    def test_decisions(self):
        found = Found(
            torch.tensor([[0.1, 0.2], [0.1, 0.15], [0.9, 1.0]]),
            (("a", "a"), ("b", "c"), ("d", "d")),
            (("", ""),) * 3,
            torch.tensor([torch.inf, 0.15, 1.5]),
        )
        assert found.decisions(None, None) == ["a", "b", "d"]
        assert found.decisions(0.5, None) == ["a", "b", UNKNOWN]
        assert found.decisions(None, 0.2) == ["a", UNKNOWN, "d"]
        assert found.decisions(0.05, 0.2) == [UNKNOWN] * 3
        assert found.decisions(0.1, 0.0) == ["a", "b", UNKNOWN]  # at the threshold it is known


class TestModel:
    def test_same_model_whatever_its_file(self):
        CARD.check(ModelFacts(MODEL.weights, (64, 48), MODEL.mean, MODEL.std, file="model.onnx"), "shop")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"weights": "cd" * 32, "file": "new.onnx"}, r"built with resnet_50 best.pth \(weights abab.*new.onnx"),
            ({"image_size": (48, 64)}, r"48 x 64, and given 64 x 48 · set model.input_width=48 model.input_height=64"),
            ({"mean": (0.5, 0.4, 0.31)}, r"a mean of .*set dataset.pixel_mean=\[0.5, 0.4, 0.3\]"),
            ({"std": (0.2, 0.2)}, "a std of"),
        ],
    )
    def test_another_is_refused_by_name(self, change, match):
        given = ModelFacts(**{**vars(MODEL), **change})
        with pytest.raises(CheckpointError, match=match):
            CARD.check(given, "shop")

    def test_gallery_that_was_built_anew_with_another_model(self, path):
        mine = Gallery.build(path, CARD, [part(3)])
        other = GalleryCard(ModelFacts("ef" * 32, (64, 48), MODEL.mean, MODEL.std), dim=8)
        Gallery.build(path, other, [part(2)], overwrite=True)
        with pytest.raises(CheckpointError, match="efefefefefef"):
            mine.add([part(1, seed=3)])
        assert len(open_gallery(path)) == 2

    def test_threshold_and_margin_are_kept(self, path):
        gallery = Gallery.build(path, CARD, [part(3)])
        gallery.decide_by(None, 0.1)
        assert (open_gallery(path).card.threshold, gallery.card.margin) == (0.4, 0.1)
        gallery.decide_by(0.0, None)
        assert (open_gallery(path).card.threshold, open_gallery(path).card.margin) == (0.0, 0.1)


class TestBuild:
    def test_replaces_only_when_told_to(self, path):
        Gallery.build(path, CARD, [part(3)])
        with pytest.raises(DatasetError, match=r"there is a gallery · add to it, or set gallery.overwrite=true"):
            Gallery.build(path, CARD, [part(5)])
        assert len(open_gallery(path)) == 3
        Gallery.build(path, CARD, [part(5)], overwrite=True)
        assert len(open_gallery(path)) == 5

    def test_other_files_are_left_alone(self, tmp_path):
        (tmp_path / "a.txt").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(DatasetError, match=r"other files \(a.txt\)"):
                Gallery.build(str(tmp_path), CARD, [part(3)], overwrite=overwrite)
        with pytest.raises(DatasetError, match="is a file"):
            Gallery.build(str(tmp_path / "a.txt"), CARD, [part(3)])
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_no_gallery(self, path, tmp_path):
        for place in (path, str(tmp_path)):
            with pytest.raises(DatasetError, match="no gallery there"):
                open_gallery(place)

    def test_addresses(self):
        assert gallery_class("shop") is gallery_class("a/b") is Gallery
        assert gallery_class("s3://b/x") is gallery_class("x.lance") is gallery_class("x.lance/") is not Gallery
        with pytest.raises(DatasetError, match="no gallery is kept at https://h/x"):
            gallery_class("https://u:secret@h/x")


labels = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


class TestTable:
    @given(st.lists(st.tuples(labels, labels)))
    def test_any_text_reads_back_equal(self, texts):
        entries = tuple(Entry(label, source, "0f", "2026-01-01T00:00:00+00:00") for label, source in texts)
        assert read_table(table_bytes(entries), "table.csv") == entries

    @given(labels)
    def test_no_cell_is_a_formula(self, text):
        assert guarded(text)[0] not in "=+-@\t\r\n"
        assert unguarded(guarded(text)) == text

    def test_spreadsheets_know_it_as_utf_8(self, path):
        evil = '=HYPERLINK("http://x","cola")'
        Gallery.build(path, CARD, [Part.of([evil, "Größe, 1 l"], ["-1", "@x"], embeddings(2))])
        data = (open_gallery(path).folder / "table.csv").read_bytes()
        assert data.startswith(b"\xef\xbb\xbfrow,label,source,sha256,added\r\n")
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines()))
        assert [row[:3] for row in rows[1:]] == [["0", "'" + evil, "'-1"], ["1", "Größe, 1 l", "'@x"]]
        assert list(open_gallery(path).counts) == [evil, "Größe, 1 l"]

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xfe",
            b"a,b\r\n",
            b"row,label,source,sha256,added\r\n1,a,b,c,d\r\n",
            b"row,label,source,sha256,added\r\n0,a,b,c\r\n",
            b'row,label,source,sha256,added\r\n0,"a,b,c,d\r\n',
            b"row,label,source,sha256,added\r\n0," + b"a" * 200_000 + b",b,c,d\r\n",
        ],
    )
    def test_no_table(self, data):
        with pytest.raises(DatasetError, match=r"table.csv · is no gallery's table"):
            read_table(data, "table.csv")


class TestDamage:
    """Files from elsewhere: one line says what is wrong."""

    def test_each_file_missing_or_cut_off(self, path):
        gallery = Gallery.build(path, CARD, [part(5)])
        for name in FILES:
            file = gallery.folder / name
            whole = file.read_bytes()
            file.write_bytes(whole[:-3])
            with pytest.raises(DatasetError, match=name):
                open_gallery(path)
            file.unlink()
            with pytest.raises(DatasetError, match="no gallery there" if name == "gallery.json" else name):
                open_gallery(path)
            file.write_bytes(whole)
        assert len(open_gallery(path)) == 5

    def test_files_of_two_galleries(self, path, tmp_path):
        gallery, other = Gallery.build(path, CARD, [part(5)]), Gallery.build(str(tmp_path / "b"), CARD, [part(6)])
        (gallery.folder / "table.csv").write_bytes((other.folder / "table.csv").read_bytes())
        with pytest.raises(DatasetError, match=r"table.csv · is not the file that was written with the gallery"):
            open_gallery(path)

    @pytest.mark.parametrize(
        "change",
        [
            {"dim": 10**9},
            {"dim": True},
            {"dim": 9},
            {"pictures": 6},
            {"pictures": -1},
            {"pictures": "many"},
            {"pictures": float("inf")},
            {"threshold": 10**400},
            {"model": None},
            {"model": {"weights": 3}},
            {"threshold": "low"},
            {"threshold": float("nan")},
            {"files": []},
            {"files": {}},
            {"format": "x" * (1 << 20)},
        ],
    )
    def test_description(self, path, change):
        gallery = Gallery.build(path, CARD, [part(5)])
        file = gallery.folder / "gallery.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(DatasetError):
            open_gallery(path)

    @pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000, '{"format": 1}'])
    def test_no_description(self, path, text):
        gallery = Gallery.build(path, CARD, [part(5)])
        (gallery.folder / "gallery.json").write_text(text)
        with pytest.raises(DatasetError, match="is no gallery's description"):
            open_gallery(path)

    def test_no_file_where_one_should_be(self, path):
        gallery = Gallery.build(path, CARD, [part(5)])
        (gallery.folder / "table.csv").unlink()
        os.mkfifo(gallery.folder / "table.csv")  # to read it would last for ever
        with pytest.raises(DatasetError, match=r"table.csv is missing"):
            open_gallery(path)

    def test_a_later_format(self, path):
        gallery = Gallery.build(path, CARD, [part(5)])
        file = gallery.folder / "gallery.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
        with pytest.raises(DatasetError, match="format 2; this version reads up to 1 · update"):
            open_gallery(path)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e30])
    def test_embeddings_that_are_none(self, path, monkeypatch, value):
        gallery = Gallery.build(path, CARD, [part(5)])
        gallery.embeddings_ND[3, 2] = value
        gallery.embeddings_ND[3, 3] += 0.5
        state = mlrecog.gallery_files.State(gallery.card, gallery.entries, gallery.embeddings_ND)
        mlrecog.gallery_files.write(gallery.folder, state)
        with pytest.raises(DatasetError, match="have not length 1"):
            open_gallery(path)


def write_and_die(path, step):
    """Add to a gallery and be killed at the ``step``-th thing that touches the disk."""
    torch.set_num_threads(1)  # a forked child has no others
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for module, name in ((mlrecog.gallery_files, "save_atomically"), (os, "rename"), (os, "replace")):
        setattr(module, name, counted(getattr(module, name)))
    mlrecog.gallery_files.shutil.rmtree = counted(mlrecog.gallery_files.shutil.rmtree)
    Gallery.open(path).add([part(4, seed=1)])
    os._exit(0)


def add_many(path, seed, start):
    torch.set_num_threads(1)
    start.wait()
    for number in range(8):
        Gallery.open(path).add([part(2, seed=seed, first=2 * number)])
    os._exit(0)


fork = multiprocessing.get_context("fork")


class TestProcesses:
    def test_killed_anywhere_it_is_the_old_or_the_new_gallery(self, path):
        Gallery.build(path, CARD, [part(3)])
        sizes = []
        for step in range(1, 30):
            process = fork.Process(target=write_and_die, args=(path, step))
            process.start()
            process.join(30)
            found = open_gallery(path)  # without a writer that would mend it
            sizes.append(len(found))
            assert torch.equal(found.embeddings_ND[:3], unit(embeddings(3)))
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            found.add([part(1, seed=2)])  # the next writer mends it, and goes on
            assert len(open_gallery(path)) == len(found) == sizes[-1] + 1
            Gallery.build(path, CARD, [part(3)], overwrite=True)
        assert process.exitcode == 0
        assert {3, 7} == set(sizes)
        assert sizes == sorted(sizes)
        assert sorted(os.listdir(path)) == sorted([*FILES, ".lock"])

    def test_two_writers_and_a_reader(self, path):
        Gallery.build(path, CARD, [part(1)])
        start = fork.Event()
        writers = [fork.Process(target=add_many, args=(path, seed, start)) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        start.set()
        sizes = []
        while any(writer.is_alive() for writer in writers):
            found = open_gallery(path)
            assert len(found.embeddings_ND) == len(found)
            sizes.append(len(found))
        for writer in writers:
            writer.join(30)
            assert writer.exitcode == 0
        assert sizes == sorted(sizes)
        assert len(open_gallery(path)) == 1 + 2 * 16

    def test_a_writer_waits_or_is_told(self, path, monkeypatch, caplog):
        caplog.set_level("INFO", "fiducial")
        gallery = Gallery.build(path, CARD, [part(1)])
        held, release = threading.Event(), threading.Event()

        def hold():
            with mlrecog.gallery_base.exclusive(gallery.folder / ".lock", path):
                held.set()
                release.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30)
        monkeypatch.setattr(mlrecog.gallery_base, "_WAIT_S", 0.05)
        with pytest.raises(DatasetError, match="another process has been writing it"):
            gallery.add([part(1, seed=1)])
        monkeypatch.setattr(mlrecog.gallery_base, "_WAIT_S", 30.0)
        threading.Timer(0.1, release.set).start()
        gallery.add([part(1, seed=1)])
        thread.join()
        assert "waiting for another process" in caplog.text
        assert len(open_gallery(path)) == 2

    def test_a_folder_that_cannot_be_written(self, path, monkeypatch):
        gallery = Gallery.build(path, CARD, [part(1)])

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(mlrecog.gallery_files.os, "rename", refuse)
        with pytest.raises(DatasetError, match="cannot be written"):
            gallery.add([part(1, seed=1)])
        assert len(open_gallery(path)) == 1


def test_one_picture_in_a_large_gallery_is_found_quickly(path):
    gallery = Gallery.build(path, GalleryCard(MODEL, dim=64), [part(20_000, dim=64, classes=500)])
    query = embeddings(1, dim=64, seed=3)
    gallery.search(query, 5)
    start = time.perf_counter()
    gallery.search(query, 5)
    assert time.perf_counter() - start < 0.5  # 5 ms on an idle machine
