"""CSVs as people and programs write them."""

import pytest

from changenet.classify import tables
from changenet.classify.tables import read_table
from fiducial.errors import DatasetError


@pytest.fixture
def read(tmp_path):
    def make(text: str | bytes, needed=("a", "b"), one_line=("a",)):
        (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(tmp_path / "t.csv", needed=needed, one_line=one_line)

    return make


def lines_of(table):
    return [row.line for row in table.rows]


class TestRows:
    def test_line_is_where_a_row_begins(self, read):
        table = read('a,b\n1,"one\ntwo"\n\n3,4\n')
        assert lines_of(table) == [2, 5]
        assert table.rows[0].fields == {"a": "1", "b": "one\ntwo"}

    def test_what_repeats_is_in_memory_once(self, read, monkeypatch):
        monkeypatch.setattr(tables, "_DIFFERENT", 2)
        cells = [row.fields["a"] for row in read("a,b\nbig board,1\nother,2\nthird,3\nthird,3\nbig board,4\n").rows]
        assert cells == ["big board", "other", "third", "third", "big board"]
        assert cells[0] is cells[4]
        assert cells[2] is not cells[3]  # more different ones are not remembered

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_ends_of_lines(self, read, end):
        assert lines_of(read(end.join(["a,b", "1,2", "3,4"]))) == [2, 3]

    def test_other_breaks_are_text(self, read):
        assert read("a,b\n1\u2028\x0b\x85,2\n").rows[0].fields["a"] == "1\u2028\x0b\x85"

    def test_columns_without_a_name(self, read):
        assert read("a,b,,\n1,2,,\n").columns == ("a", "b", "Unnamed: 2", "Unnamed: 3")

    def test_a_quote_within_a_cell_is_text(self, read):
        assert read('a,b\n5" pipe,2\n').rows[0].fields["a"] == '5" pipe'


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "where", "found"),
        [
            ("a,b,a\n1,2,3\n", 1, r"column 'a' is there 2 times \(columns 1, 3\)"),
            ("a, b ,b\n1,2,3\n", 1, r"column 'b' is there 2 times"),
            ('a,"b\n1,2\n', 1, "a quote that is opened in line 1 and not closed"),
            ('"a\nb",b\n1,2\n', 1, "a quote that is opened in line 1 and not closed"),
            ('a,b\n1,2\n3,"4\n5,6\n7,8\n', 3, "a quote that is opened in line 3 and not closed"),
            ('a,b\n"1,2\n3,4\n"5,6\n', 2, "a line break in a: a quote that is not closed"),
            ('a,b\n1,"' + "x" * 140_000, 2, "field larger than field limit .*opened in line 2"),
            (b"a,b\n1,\xfc\n", 2, "byte 0xfc is not UTF-8"),
            ("a,b\n1,2\n".encode("utf-16"), None, "UTF-16"),
            ("a,b\n1,2\n".encode("utf-16-le"), 1, "a NUL character"),
            ("a,b\n1,2\n3,\0\n", 3, "a NUL character"),
            ("a,b\n", None, "no rows"),
            ("\n\n", 1, "the header is empty"),
            ("", None, "an empty file"),
            ("a\tb\n1\t2\n", 1, r"no column a, b"),
        ],
    )
    def test_names_the_line(self, read, tmp_path, text, where, found):
        with pytest.raises(DatasetError, match=found) as caught:
            read(text)
        assert caught.value.problems[0].where == f"{tmp_path / 't.csv'}" + (f":{where}" if where else "")
        assert "\n" not in str(caught.value)

    def test_every_line_at_once(self, read):
        with pytest.raises(DatasetError) as caught:
            read('a,b\n1\n1,2,3\n1,2\n1,"2\n')
        assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == ["2", "3", "5"]

    def test_what_is_no_table_is_not_read(self, tmp_path, monkeypatch):
        for path, found in {
            "/dev/zero": "a device",
            str(tmp_path): "a folder",
            str(tmp_path / "no"): "no such file",
        }.items():
            with pytest.raises(DatasetError, match=f"cannot be read as CSV: {found}"):
                read_table(tables.Path(path), needed=())
        monkeypatch.setattr("fiducial.data.text.MAX_BYTES", 3)
        (tmp_path / "t.csv").write_text("a,b\n")
        with pytest.raises(DatasetError, match="split it"):
            read_table(tmp_path / "t.csv", needed=())
