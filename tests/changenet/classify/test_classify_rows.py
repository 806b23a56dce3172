"""The CSV of pairs and the files it names."""

import shutil
from pathlib import Path

import pytest

from changenet.classify.config import ClassifyDataset
from changenet.classify.rows import Layout, check_labels, named_images, read_csv, read_pairs
from fiducial.errors import DatasetError, UserError
from fiducial.spec.path_map import use_path_map

HEADER = "input_path,golden_path,label,object_name"


def csv_at(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def dataset(folder: Path, **changes) -> ClassifyDataset:
    files = {"csv_path": str(folder / "pairs.csv"), "images_dir": str(folder)}
    return ClassifyDataset.model_validate({"test_dataset": files, "infer_dataset": files, "num_input": 1, **changes})


class TestReadCsv:
    def test_text_stays_text(self, tmp_path):
        columns, rows = read_csv(csv_at(tmp_path, f"{HEADER},board\na,b,PASS,0012,007\n"))
        assert columns == ("input_path", "golden_path", "label", "object_name", "board")
        assert (rows[0].object_name, rows[0].fields["board"]) == ("0012", "007")
        assert (rows[0].index, rows[0].line, rows[0].label) == (0, 2, 0)

    def test_labels(self, tmp_path):
        text = f"{HEADER}\na,b,PASS,1\na,b,pass,1\na,b, PASS,1\na,b,,1\na,b,MISSING,1\n"
        assert [row.label for row in read_csv(csv_at(tmp_path, text))[1]] == [0, 1, 1, 1, 1]

    def test_byte_order_mark_and_windows_lines(self, tmp_path):
        _, rows = read_csv(csv_at(tmp_path, b"\xef\xbb\xbf" + f"{HEADER}\r\na,b,PASS,1\r\n".encode()))
        assert rows[0].input_path == "a"

    def test_quoted_commas_and_lines(self, tmp_path):
        _, rows = read_csv(csv_at(tmp_path, f'{HEADER},note\na,b,PASS,1,"one, two\nthree"\na,b,PASS,2,\n'))
        assert rows[0].fields["note"] == "one, two\nthree"
        assert rows[1].line == 4  # where it is in the file

    def test_blank_lines_are_no_rows(self, tmp_path):
        _, rows = read_csv(csv_at(tmp_path, f"{HEADER}\n\na,b,PASS,1\n,,,\n\na,b,PASS,2\n"))
        assert [(row.index, row.line) for row in rows] == [(0, 3), (1, 6)]

    def test_columns_in_any_order(self, tmp_path):
        _, rows = read_csv(csv_at(tmp_path, "object_name,label,golden_path,input_path\n1,PASS,g,i\n"))
        assert (rows[0].input_path, rows[0].golden_path) == ("i", "g")

    def test_missing_columns_show_the_header(self, tmp_path):
        with pytest.raises(DatasetError, match="no column golden_path, label; the header is input_path, object_name"):
            read_csv(csv_at(tmp_path, "input_path,object_name\na,b\n"))

    def test_semicolons(self, tmp_path):
        with pytest.raises(DatasetError, match="separate columns with commas, not ';'"):
            read_csv(csv_at(tmp_path, HEADER.replace(",", ";") + "\na;b;PASS;1\n"))

    def test_label_may_be_missing_at_inference(self, tmp_path):
        path = csv_at(tmp_path, "input_path,golden_path,object_name\na,b,1\n")
        assert read_csv(path, need_label=False)[1][0].label == -1
        with pytest.raises(DatasetError, match="no column label"):
            read_csv(path)

    def test_a_column_that_is_there_twice(self, tmp_path):
        with pytest.raises(DatasetError, match="column 'label' is there 2 times"):
            read_csv(csv_at(tmp_path, f"{HEADER},label\na,b,MISSING,1,PASS\n"))

    def test_short_and_long_lines_are_all_named(self, tmp_path):
        path = csv_at(tmp_path, f"{HEADER}\na,b,PASS\na,b,PASS,1\na,b,PASS,1,extra\n")
        with pytest.raises(DatasetError) as caught:
            read_csv(path)
        found = [(problem.where, problem.found) for problem in caught.value.problems]
        assert found == [(f"{path}:2", "3 values for 4 columns"), (f"{path}:4", "5 values for 4 columns")]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", "an empty file"),
            ("\n", "the header is empty"),
            (HEADER, "no rows"),
            (b"\xff\xfe\x00", "cannot be read as CSV"),
        ],
    )
    def test_nothing_to_read(self, tmp_path, text, found):
        with pytest.raises(DatasetError, match=found):
            read_csv(csv_at(tmp_path, text))

    def test_no_file(self, tmp_path):
        with pytest.raises(DatasetError, match="cannot be read as CSV"):
            read_csv(tmp_path / "absent.csv")


class TestLayout:
    def of(self, **changes) -> Layout:
        return Layout.of(ClassifyDataset.model_validate({"image_height": 10, "image_width": 20, **changes}))

    def test_single_image(self):
        layout = self.of()
        assert layout.composed == (10, 20)
        assert layout.files(Path("/d"), "a/b", "U1") == (Path("/d/a/b/U1.jpg"),)

    def test_lights_are_stacked_in_the_order_of_the_keys(self):
        layout = self.of(input_map={"White": 1, "Solder": 0}, image_ext=".png")
        assert layout.composed == (20, 20)
        assert [path.name for path in layout.files(Path(), "a", "U1")] == ["U1_White.png", "U1_Solder.png"]

    def test_grid_is_rows_by_columns(self):
        lights = {f"L{i}": i for i in range(6)}
        layout = self.of(input_map=lights, concat_type="grid", grid_map={"x": 3, "y": 2})
        assert layout.grid == (2, 3)
        assert layout.composed == (20, 60)

    def test_lights_beyond_the_grid_are_left_out(self):
        layout = self.of(input_map={f"L{i}": i for i in range(4)}, concat_type="grid", grid_map={"x": 2, "y": 1})
        assert layout.lights == ("L0", "L1")

    def test_odd_number_of_lights_is_never_a_grid(self):
        layout = self.of(input_map={f"L{i}": i for i in range(3)}, concat_type="grid", grid_map={"x": 3, "y": 1})
        assert layout.composed == (30, 20)

    def test_absolute_paths_replace_the_folder(self):
        assert self.of().files(Path("/data"), "/elsewhere", "U1") == (Path("/elsewhere/U1.jpg"),)


class TestReadPairs:
    def test_unset_keys_are_both_named(self):
        with pytest.raises(DatasetError) as caught:
            read_pairs(ClassifyDataset(), "val")
        assert [problem.where for problem in caught.value.problems] == [
            "dataset.classify.validation_dataset.csv_path",
            "dataset.classify.validation_dataset.images_dir",
        ]

    @pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
    def test_archives_with_an_inner_folder(self, tmp_path, make_image, monkeypatch, suffix):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
        for path in ("in", "gold"):
            make_image(tmp_path / "packed/images" / path / "U1.png", [[[1, 2, 3]]])
        kind = {"zip": "zip", "tar.gz": "gztar"}[suffix]
        shutil.make_archive(str(tmp_path / "images"), kind, tmp_path / "packed")
        shutil.rmtree(tmp_path / "packed")
        csv_at(tmp_path, f"{HEADER}\nin,gold,PASS,U1\n")
        files = {"csv_path": str(tmp_path / "pairs.csv"), "images_dir": str(tmp_path / f"images.{suffix}")}
        table = read_pairs(dataset(tmp_path, test_dataset=files, image_ext=".png"), "test")
        assert all(path.is_file() for path in (*table.test_files(table.rows[0]), *table.golden_files(table.rows[0])))

    def test_the_csv_in_an_archive(self, tmp_path, make_image, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
        make_image(tmp_path / "in/U1.png", [[[1, 2, 3]]])
        path = csv_at(tmp_path, f"{HEADER}\nin,in,PASS,U1\n")
        for kind, suffix in {"zip": "zip", "gztar": "tar.gz", "tar": "tar"}.items():
            (tmp_path / kind).mkdir()
            shutil.copy(path, tmp_path / kind / "rows.csv")
            packed = shutil.make_archive(str(tmp_path / f"pairs-{kind}"), kind, tmp_path / kind)
            assert packed.endswith(suffix)
            for name in (packed, f"{packed}/rows.csv"):
                files = {"csv_path": name, "images_dir": str(tmp_path)}
                table = read_pairs(dataset(tmp_path, test_dataset=files, image_ext=".png"), "test")
                assert table.test_files(table.rows[0]) == (tmp_path / "in/U1.png",)

    def test_a_folder_that_only_holds_the_archive_of_the_images(self, tmp_path, make_image, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
        make_image(tmp_path / "packed/images/in/U1.png", [[[1, 2, 3]]])
        (tmp_path / "data").mkdir()
        shutil.make_archive(str(tmp_path / "data/images"), "gztar", tmp_path / "packed")
        csv_at(tmp_path / "data", f"{HEADER}\nin,in,PASS,U1\n")
        table = read_pairs(dataset(tmp_path / "data", image_ext=".png"), "test")
        assert table.test_files(table.rows[0])[0].is_file()

    def test_one_missing_image_does_not_bring_the_others_from_elsewhere(self, tmp_path, make_image):
        for name in ("U2", "U3"):
            make_image(tmp_path / "in" / f"{name}.png", [[[1, 2, 3]]])
        for name in ("U1", "U2", "U3"):
            make_image(tmp_path / "old/in" / f"{name}.png", [[[9, 9, 9]]])
        csv_at(tmp_path, f"{HEADER}\n" + "".join(f"in,in,PASS,U{n}\n" for n in (1, 2, 3)))
        assert read_pairs(dataset(tmp_path, image_ext=".png"), "test").images_dir == tmp_path

    @pytest.mark.parametrize("column", ["csv_path", "images_dir"])
    def test_a_file_where_a_folder_is_meant_and_the_other_way(self, tmp_path, column):
        path = csv_at(tmp_path, f"{HEADER}\na,b,PASS,1\n")
        swapped = {"csv_path": str(path), "images_dir": str(tmp_path)}
        swapped[column] = swapped["images_dir" if column == "csv_path" else "csv_path"]
        with pytest.raises(UserError, match=f"dataset.classify.test_dataset.{column} · .* is a f"):
            read_pairs(dataset(tmp_path, test_dataset=swapped), "test")

    def test_folders_of_a_container_are_mapped_and_the_cells_stay(self, tmp_path):
        csv_at(tmp_path, f"{HEADER}\n/data/in,/data/gold,PASS,U1\n")
        try:
            use_path_map({"/data": str(tmp_path)})
            table = read_pairs(dataset(tmp_path), "test")
        finally:
            use_path_map({})
        assert table.test_files(table.rows[0]) == (tmp_path / "in/U1.jpg",)
        assert table.golden_files(table.rows[0]) == (tmp_path / "gold/U1.jpg",)
        assert table.rows[0].fields["input_path"] == "/data/in"

    def test_several_goldens_are_listed_once_and_sorted(self, tmp_path, make_image):
        for name in ("b_White", "b_Solder", "a_White", "a_Solder"):
            make_image(tmp_path / "gold" / f"{name}.png", [[[0, 0, 0]]])
        make_image(tmp_path / "gold" / "c_White.jpg", [[[0, 0, 0]]])
        csv_at(tmp_path, f"{HEADER}\nin,gold,PASS,U1\n")
        lights = {"input_map": {"White": 0, "Solder": 1}, "num_input": 2, "num_golden": 2, "image_ext": ".png"}
        table = read_pairs(dataset(tmp_path, **lights), "test")
        assert table.golden_names(table.rows[0]) == ("a", "b")
        named = named_images(table)
        assert list(named) == [(f"{tmp_path}/in", "U1"), (f"{tmp_path}/gold", "a"), (f"{tmp_path}/gold", "b")]
        paths = table.layout.paths(f"{tmp_path}/gold", "a")
        assert paths == [f"{tmp_path}/gold/a_White.png", f"{tmp_path}/gold/a_Solder.png"]

    def test_files_shared_by_rows_are_named_once(self, tmp_path):
        csv_at(tmp_path, f"{HEADER}\nx,gold,PASS,U1\ny,gold,PASS,U1\n")
        table = read_pairs(dataset(tmp_path), "test")
        named = [(row.line, *image) for image, row in named_images(table).items()]
        assert named == [(2, f"{tmp_path}/x", "U1"), (2, f"{tmp_path}/gold", "U1"), (3, f"{tmp_path}/y", "U1")]


class TestLabels:
    def test_blank_is_an_error_and_nearly_pass_a_warning(self, tmp_path):
        csv_at(tmp_path, f"{HEADER}\na,b,PASS,1\na,b, ,1\na,b,pass ,1\na,b,OPEN,1\n")
        found = list(check_labels(read_pairs(dataset(tmp_path), "test")))
        assert [(problem.where.rpartition(":")[2], problem.level) for problem in found] == [
            ("3", "error"),
            ("4", "warning"),
        ]
        assert "write PASS exactly" in found[1].fix
