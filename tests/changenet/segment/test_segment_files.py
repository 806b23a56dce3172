"""Lists, layouts and archives of a segment dataset."""

import gc
import http.server
import shutil
import tarfile
from functools import partial
from threading import Thread

import pytest

from changenet.config import ExperimentSpec
from changenet.segment.files import read_list, read_split
from fiducial.errors import DatasetError, SourceError
from fiducial.spec.path_map import use_path_map


def data_of(root, **options):
    tree = {"task": "segment", "dataset": {"segment": {"root_dir": str(root), **options}}}
    return ExperimentSpec.model_validate(tree).dataset.segment


class TestReadList:
    def test_comments_columns_blank_lines_and_names_with_spaces(self, tmp_path, make_image):
        make_image(tmp_path / "A" / "two words.png", [[0]])
        make_image(tmp_path / "A" / "odd #1.png", [[0]])
        path = tmp_path / "list.txt"
        path.write_text("# header\na.png\n\n  b.png label.png\nc.png # the third\ntwo words.png\nodd #1.png\n")
        entries = [(2, "a.png"), (4, "b.png"), (5, "c.png"), (6, "two words.png"), (7, "odd #1.png")]
        assert read_list(path, tmp_path / "A") == entries

    def test_one_entry(self, tmp_path):
        (tmp_path / "list.txt").write_text("only.png")
        assert read_list(tmp_path / "list.txt", tmp_path) == [(1, "only.png")]

    def test_windows_text(self, tmp_path):
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\nb.png\r\n")
        assert [name for _, name in read_list(tmp_path / "list.txt", tmp_path)] == ["a.png", "b.png"]

    def test_windows_folders(self, tmp_path, make_image):
        make_image(tmp_path / "s" / "a.png", [[0]])
        make_image(tmp_path / "s\\b.png", [[0]])  # a name like any other here
        (tmp_path / "list.txt").write_text("s\\a.png\ns\\b.png\n")
        assert [name for _, name in read_list(tmp_path / "list.txt", tmp_path)] == ["s/a.png", "s\\b.png"]

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"", r"list\.txt · cannot be read as a list: an empty file"),
            (b"\n \n", r"list\.txt · no entries"),
            (b"# nothing\n", r"list\.txt · no entries"),
            (b"\xef\xbb\xbf", r"list\.txt · no entries"),
            (b"\xff\xfea\x00", r"list\.txt · cannot be read as a list: it is UTF-16 text"),
            (b"a.png\r\n\xe4.png\n", r"list\.txt:2 · cannot be read as a list: byte 0xe4 is not UTF-8"),
            (b"a.png\nb\0.png\n", r"list\.txt:2 · cannot be read as a list: a NUL character"),
        ],
    )
    def test_nothing_to_read(self, tmp_path, content, found):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(DatasetError, match=found):
            read_list(tmp_path / "list.txt", tmp_path)

    @pytest.mark.parametrize("line", ["# " + 99 * "long ", 300 * "x" + ".png", "/".join(50 * ["a" * 100])])
    def test_long_lines(self, tmp_path, line):
        (tmp_path / "list.txt").write_text(f"{line}\na.png\n")
        assert read_list(tmp_path / "list.txt", tmp_path)[-1] == (2, "a.png")

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_line_ends(self, tmp_path, end, make_image):
        names = ["a.png", "b\u2028c.png", "d\x85e.png"]  # what Python also takes for line ends
        for name in names:
            make_image(tmp_path / name, [[0]])
        (tmp_path / "list.txt").write_bytes(end.join(["", *names, ""]).encode())
        assert read_list(tmp_path / "list.txt", tmp_path) == [(k + 2, name) for k, name in enumerate(names)]


class TestEntriesWithFolders:
    """TAO joins an entry to both image folders and to the masks' folder: a full path is one file three times."""

    @pytest.fixture
    def images(self, tmp_path, make_image):
        make_image(tmp_path / "data" / "A" / "s" / "x.png", [[0]])
        make_image(tmp_path / "elsewhere" / "x.png", [[0]])
        return tmp_path / "data" / "A"

    def read(self, images, *lines):
        path = images.parent / "list.txt"
        path.write_text("\n".join(lines))
        return [name for _, name in read_list(path, images)]

    def test_names_with_dots_stay_names(self, images):
        entries = ["s/x.png", "./s/x.png", "s/../s/x.png", "...png"]
        assert self.read(images, *entries) == entries

    @pytest.mark.parametrize(
        ("entry", "fix"),
        [
            ("{A}/s/x.png", "write s/x.png"),
            ("{A}/./s/../s/x.png", "write s/x.png"),
            ("../A/s/x.png", "write s/x.png"),
            ("s/../../A/s/x.png", "write s/x.png"),
            ("{top}/link/A/s/x.png", "write s/x.png"),
            ("{A}/linked/x.png", "write linked/x.png"),  # a link within the folder is part of the name
            ("/elsewhere/x.png", "write names below"),
            ("../B/x.png", "write names below"),
            ("../../elsewhere/y.png", "write names below"),
            ("..", "write names below"),
            (".", "write names below"),
            ("/", "write names below"),
            ("s/../..", "write names below"),
            ("C:\\data\\A\\x.png", "write names below"),
        ],
    )
    def test_all_that_are_paths_are_refused_together(self, images, tmp_path, entry, fix):
        (tmp_path / "link").symlink_to(images.parent)
        (images / "linked").symlink_to(tmp_path / "elsewhere")
        entry = entry.format(A=images, top=tmp_path)
        with pytest.raises(DatasetError, match="is a path, which both images and the mask would share") as caught:
            self.read(images, "s/x.png", entry, entry)
        assert [problem.where[-2:] for problem in caught.value.problems] == [":2", ":3"]
        assert {problem.fix.startswith(fix) for problem in caught.value.problems} == {True}

    def test_a_relative_root(self, images, monkeypatch):
        monkeypatch.chdir(images.parents[1])
        path = images.parent / "list.txt"
        path.write_text(f"{images}/s/x.png\n")
        with pytest.raises(DatasetError, match=r"write s/x\.png"):
            read_list(path, images.relative_to(images.parents[1]))

    def test_folders_of_a_container_are_mapped(self, images):
        use_path_map({"/workspace": str(images.parents[1])})
        try:
            assert self.read(images, "/workspace/data/A/s/x.png") == ["s/x.png"]
            with pytest.raises(DatasetError, match="write names below"):
                self.read(images, "/workspace/data/B/s/x.png")
        finally:
            use_path_map({})


class TestReadSplit:
    def test_paths(self, scene_data):
        split = read_split(data_of(scene_data), "val")
        assert split.list_path == scene_data / "list" / "val.txt"
        assert split.names == ["val_0.png", "val_1.png", "val_2.png"]
        pair = split.pairs[1]
        assert (pair.line, pair.before) == (2, scene_data / "A" / "val_1.png")
        assert (pair.after, pair.label) == (scene_data / "B" / "val_1.png", scene_data / "label" / "val_1.png")
        assert split.where(pair) == f"{split.list_path}:2"

    def test_names_are_held_and_no_paths(self, scene_data, tmp_path, make_list):
        def paths():
            return sum(type(each) is type(tmp_path) for each in gc.get_objects())

        root = shutil.copytree(scene_data, tmp_path / "scenes")
        make_list(root, "val", [f"val_{number}.png" for number in range(100)])
        before = paths()
        split = read_split(data_of(root), "val")
        assert paths() - before < 10
        assert split.pairs[1:3] == [split.pairs[1], split.pairs[2]]
        assert [pair.name for pair in split.pairs] == split.names

    def test_inference_reads_no_masks(self, scene_data):
        assert {pair.label for pair in read_split(data_of(scene_data), "infer").pairs} == {None}

    @pytest.mark.parametrize(
        ("image", "suffix", "mask"),
        [
            ("x.jpg", ".png", "x.png"),  # TAO's rule
            ("x.jpg.old.jpg", "_m.png", "x_m.png.old_m.png"),
            ("x.png", ".png", "x.png"),
            ("x.tif", ".png", "x.png"),  # by its stem, where TAO looks for x.tif
            ("x.JPG", ".png", "x.png"),
        ],
    )
    def test_name_of_the_mask(self, tmp_path, make_image, make_list, image, suffix, mask):
        make_image(tmp_path / "label" / mask, [[0]])
        for folder in "AB":
            (tmp_path / folder).mkdir()
        make_list(tmp_path, "test", [image])
        assert read_split(data_of(tmp_path, label_suffix=suffix), "test").pairs[0].label.name == mask

    def test_own_folder_names(self, scene_data, tmp_path):
        names = {"A": "before", "B": "after", "list": "splits", "label": "truth"}
        for old, new in names.items():
            (tmp_path / new).symlink_to(scene_data / old)
        data = data_of(
            tmp_path,
            image_folder_name="before",
            change_image_folder_name="after",
            list_folder_name="splits",
            annotation_folder_name="truth",
        )
        assert read_split(data, "test").pairs[0].label == tmp_path / "truth" / "test_0.png"

    def test_missing_list_names_those_there(self, scene_data):
        with pytest.raises(DatasetError, match=r"holdout\.txt.*test\.txt, train\.txt, val\.txt.*test_split"):
            read_split(data_of(scene_data, test_split="holdout"), "test")

    def test_a_folder_or_a_dangling_link_where_the_list_is_meant(self, scene_data, tmp_path):
        for folder in "AB":
            (tmp_path / folder).symlink_to(scene_data / folder)
        (tmp_path / "list" / "all.txt").mkdir(parents=True)
        (tmp_path / "list" / "gone.txt").symlink_to("nowhere")
        for name, found in {
            "all": "a folder, not a file",
            "gone": "a link to nowhere",
            300 * "x": "longer than",
        }.items():
            with pytest.raises(DatasetError, match=found):
                read_split(data_of(tmp_path, predict_split=name), "infer")

    def test_missing_folder_names_those_there(self, scene_data):
        with pytest.raises(SourceError, match=r"no folder 'before'.*there is A, B"):
            read_split(data_of(scene_data, image_folder_name="before"), "test")

    def test_root_not_set(self):
        with pytest.raises(DatasetError, match="root_dir"):
            read_split(data_of(""), "test")

    def test_calibration_reads_the_list_predict(self, scene_data, tmp_path, make_list):
        for folder in "AB":
            (tmp_path / folder).symlink_to(scene_data / folder)
        make_list(tmp_path, "predict", ["val_0.png"])
        data = data_of("", quant_calibration_dataset={"images_dir": str(tmp_path)})
        assert read_split(data, "calibration").names == ["val_0.png"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
class TestArchives:
    @pytest.mark.parametrize("outer", [".", "LEVIR"])
    def test_one_archive(self, scene_data, tmp_path, outer):
        with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
            tar.add(scene_data, outer)
        pairs = read_split(data_of(tmp_path / "set.tar.gz"), "train").pairs
        assert len(pairs) == 6
        assert all(path.is_file() for pair in pairs for path in (pair.before, pair.after, pair.label))

    def test_a_file_that_is_none(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no archive")
        with pytest.raises(SourceError, match=r"root_dir .*notes\.txt.* a file, and no archive"):
            read_split(data_of(tmp_path / "notes.txt"), "train")

    @pytest.mark.parametrize("folder", ["", "/", "/sets/one", "/sets/one/?version=3"])
    def test_archives_below_a_web_address(self, scene_data, tmp_path, monkeypatch, folder):
        """A web server lists nothing: the archives are asked for by their names."""
        where = tmp_path / folder.strip("/").partition("?")[0]
        where.mkdir(parents=True, exist_ok=True)
        for part in ("A", "B", "list", "label"):
            with tarfile.open(where / f"{part}.tar.gz", "w:gz") as tar:
                tar.add(scene_data / part, part)
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}{folder}"
            pairs = read_split(data_of(root), "train").pairs
            assert len(pairs) == 6
            assert all(path.is_file() for pair in pairs for path in (pair.before, pair.after, pair.label))
            (where / "label.tar.gz").unlink()
            assert len(read_split(data_of(root), "infer").pairs) == len(read_split(data_of(scene_data), "infer").pairs)
            with pytest.raises(SourceError, match=r"nothing at http://127\.0\.0\.1:\d+/.*label\.tar\.gz.*HTTP 404"):
                read_split(data_of(f"{root.partition('?')[0]}"), "train")
            server.shutdown()

    @pytest.mark.parametrize("inside", ["{part}", "."])
    def test_an_archive_for_each_part(self, scene_data, tmp_path, inside):
        for part in ("A", "B", "list", "label"):
            with tarfile.open(tmp_path / f"{part}.tar.gz", "w:gz") as tar:
                tar.add(scene_data / part, inside.format(part=part))
        pairs = read_split(data_of(tmp_path), "train").pairs
        assert all(path.is_file() for pair in pairs for path in (pair.before, pair.after, pair.label))
