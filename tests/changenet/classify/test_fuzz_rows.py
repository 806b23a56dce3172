"""Whatever stands in a CSV of pairs: its rows are read and looked at, or a line says what is wrong with it."""

import csv
import io

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import write_image

from changenet.classify.config import ClassifyDataset
from changenet.classify.inspect import check_data
from changenet.classify.rows import COLUMNS, named_images, read_pairs
from changenet.classify.tables import read_table
from changenet.config import ExperimentSpec
from fiducial.errors import UserError

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CELLS = st.sampled_from(
    ["in", "in/U1.png", "./in", "../in", "/in", "", "PASS", "U1", ".\\in", "x" * 300, "~", "\u00fc"]
) | st.text(alphabet='ab/. ,"\n\r\t\\\u00fc', max_size=8)
ROWS = st.lists(st.lists(CELLS, min_size=3, max_size=5), max_size=5)


def spec_of(folder, **changes):
    files = {"csv_path": str(folder / "pairs.csv"), "images_dir": str(folder)}
    data = {
        "train_dataset": files,
        "test_dataset": files,
        "image_ext": ".png",
        "num_input": 1,
        "batch_size": 1,
        **changes,
    }
    return ExperimentSpec.model_validate({"task": "classify", "dataset": {"classify": data}})


def write(folder, rows, header=COLUMNS):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    (folder / "pairs.csv").write_text(text.getvalue(), encoding="utf-8")


@FUZZ
@given(rows=ROWS, goldens=st.sampled_from([1, 2]), thorough=st.booleans())
def test_rows(tmp_path, rows, goldens, thorough):
    write_image(tmp_path / "in" / "U1.png", [[[1, 2, 3]]])
    write(tmp_path, rows)
    report = check_data(spec_of(tmp_path, num_golden=goldens), ("train", "test"), thorough)
    assert all("\n" not in problem.fix for problem in report.problems)


@FUZZ
@given(
    data=st.binary(max_size=200)
    | st.text(alphabet='ab,"\n\r\0 ;\t\u2028\ufeff\u00fc', max_size=60).map(str.encode)
    | st.text(alphabet='12,"\n\r', max_size=40).map(lambda rows: b"a,b\r\n" + rows.encode("utf-8-sig"))
)
def test_tables(tmp_path, data):
    (tmp_path / "x.csv").write_bytes(data)
    told = []
    try:
        table = read_table(tmp_path / "x.csv", needed=("a", "b"), one_line=("a",))
        assert all(set(row.fields) == set(table.columns) for row in table.rows)
    except UserError as error:
        told = [str(problem) for problem in error.problems]
    assert not any("\n" in line for line in told)


@FUZZ
@given(text=st.text(alphabet='input_pathgoldenlabeljct,"\n\r\0;', max_size=80))
def test_texts(tmp_path, text):
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    data = ClassifyDataset.model_validate(
        {"test_dataset": {"csv_path": str(tmp_path / "pairs.csv"), "images_dir": str(tmp_path)}}
    )
    try:
        table = read_pairs(data, "test")
    except UserError:
        return
    assert list(named_images(table))
