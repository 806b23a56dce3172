"""Class folders and class maps."""

import tarfile

import pytest
from mlrecog_shelves import make_folders

from fiducial.errors import DatasetError, SourceError
from mlrecog.folders import alike, read_class_folders, read_class_map, read_flat


def test_order_of_classes_and_pictures(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "a/sub/3.PNG", "a/0.webp", "a/notes.txt", "c/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = read_class_folders(str(tmp_path), key="k")
    assert found.classes == ("a", "b", "c")
    assert [(str(s.path.relative_to(tmp_path)), s.label) for s in found.samples] == [
        ("a/0.webp", 0),
        ("a/sub/3.PNG", 0),
        ("b/1.jpg", 1),
        ("b/2.png", 1),
    ]
    assert found.empty == ["c"]


def test_queries_are_numbered_as_the_gallery(tmp_path):
    make_folders(tmp_path, classes=("blue", "red"), each=1)
    found = read_class_folders(str(tmp_path), key="k", classes=("blue", "green", "red"))
    assert [sample.label for sample in found.samples] == [0, 2]


def test_classes_that_the_gallery_lacks_are_named_with_those_that_nearly_fit(tmp_path):
    make_folders(tmp_path, classes=("Red ", "blue", "pink"), each=1)
    with pytest.raises(DatasetError) as error:
        read_class_folders(str(tmp_path), key="dataset.val_dataset.query", classes=("blue", "red"))
    text = str(error.value)
    assert "'Red '" in text
    assert "there is 'red'" in text
    assert "'pink'" in text
    assert "2 of 3 class folders" in text


@pytest.mark.parametrize("content", ["nothing", "pictures", "empty"])
def test_what_is_no_set_of_class_folders(tmp_path, content):
    if content == "pictures":
        make_folders(tmp_path, classes=(".",), each=1)
    if content == "empty":
        (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match="no class folder" if content != "empty" else "no picture"):
        read_class_folders(str(tmp_path), key="k")


def test_an_archive_of_a_folder_of_them(tmp_path):
    make_folders(tmp_path / "data" / "reference", classes=("blue", "red"), each=2)
    with tarfile.open(tmp_path / "reference.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "data", "data")
    found = read_class_folders(str(tmp_path / "reference.tar.gz"), key="k")
    assert found.classes == ("blue", "red")
    assert len(found.samples) == 4


def test_one_class_alone_is_not_taken_for_a_wrapper(tmp_path):
    make_folders(tmp_path, classes=("red",), each=2)
    assert read_class_folders(str(tmp_path), key="k").classes == ("red",)


def test_flat(tmp_path):
    make_folders(tmp_path, classes=("red",), each=2)
    assert [path.name for path in read_flat(str(tmp_path / "red"), key="k")] == ["0.png", "1.png"]
    assert [path.name for path in read_flat(str(tmp_path / "red" / "1.png"), key="k")] == ["1.png"]
    with pytest.raises(DatasetError, match="no picture"):
        read_flat(str(tmp_path), key="k")
    with pytest.raises(SourceError):
        read_flat(str(tmp_path / "none"), key="k")


@pytest.mark.parametrize("text", ["a: Apple\nb: Berry\nc: other", "- Apple\n- Berry", "Apple\nBerry\n"])
def test_class_maps(tmp_path, text):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    names = read_class_map(str(path), key="k", classes=("a", "b"))
    assert {folder: names[folder] for folder in "ab"} == {"a": "Apple", "b": "Berry"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: Apple", "lacks the folders 'b'"),
        ("a: Apple\nB: Berry", "there is 'B'"),
        ("- one", "1 names for 2 class folders"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_class_maps_that_do_not_fit(tmp_path, text, said):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_class_map(str(path), key="k", classes=("a", "b"))


def test_alike():
    assert alike(["cola", "Cola", "tea", "c ola"]) == [("cola", "Cola"), ("cola", "c ola")]
