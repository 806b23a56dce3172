"""Where annotations, pictures and weights come from: archives, a web server, a hub."""

import functools
import http.server
import json
import os
import tarfile
import threading
import zipfile

import pytest
import torch

from fiducial import cli
from fiducial.backbones.mae import build_vit
from mal.__main__ import TASKS

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    """A folder with both splits in archives, in folders of various depth; and a backbone's weights."""
    folder = tmp_path_factory.mktemp("packed")
    with tarfile.open(folder / "train.tar.gz", "w:gz") as archive:
        archive.add(pictures / "train" / "img", "data/images")
    with zipfile.ZipFile(folder / "val.zip", "w") as archive:
        for path in (pictures / "val" / "img").iterdir():
            archive.write(path, path.name)
    with zipfile.ZipFile(folder / "annotations.zip", "w") as archive:
        archive.write(pictures / "train" / "ann.json", "annotations/instances_train.json")
    with tarfile.open(folder / "ann.tar.gz", "w:gz") as archive:
        archive.add(pictures / "val" / "ann.json", "ann.json")
    torch.save({"model": build_vit("vit-deit-tiny/16").state_dict()}, folder / "vit.pth")
    return folder


@pytest.fixture(scope="module")
def web(packed):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(packed)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def split_keys(place, **files):
    return {f"dataset__{key}": f"{place}/{file}" for key, file in files.items()}


ALL = {
    "train_ann_path": "annotations.zip",
    "train_img_dir": "train.tar.gz",
    "val_ann_path": "ann.tar.gz",
    "val_img_dir": "val.zip",
}


def run(action, spec, *overrides):
    return cli.main(TASKS, [*action.split(), "-e", str(spec), *overrides], prog="mal")


def test_archives(write_spec, packed, tmp_path, capsys):
    spec = write_spec(tmp_path, **split_keys(packed, **ALL))
    assert run("train", spec, "train.num_epochs=1") == 0
    said = capsys.readouterr().err
    assert "train: 15 boxes" in said
    assert "val: 6 boxes" in said


def test_a_file_within_an_archive(write_spec, packed, tmp_path):
    inside = {"train_ann_path": "annotations.zip/annotations/instances_train.json"}
    assert run("check train", write_spec(tmp_path, **split_keys(packed, **inside))) == 0


def test_an_archive_alone_in_a_folder(write_spec, packed, tmp_path):
    (tmp_path / "images").mkdir()
    os.link(packed / "train.tar.gz", tmp_path / "images" / "train.tar.gz")
    assert run("check train", write_spec(tmp_path, dataset__train_img_dir=str(tmp_path / "images"))) == 0


def test_an_archive_of_label_files(write_spec, pictures, packed, tmp_path, capsys):
    tree = json.loads((pictures / "train" / "ann.json").read_text())
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        for image in tree["images"]:
            boxes = [row["bbox"] for row in tree["annotations"] if row["image_id"] == image["id"]]
            lines = [f"0 {(x + w / 2) / 128} {(y + h / 2) / 96} {w / 128} {h / 96}\n" for x, y, w, h in boxes]
            archive.writestr(f"yolo/labels/{image['file_name'][:-4]}.txt", "".join(lines))
    spec = write_spec(
        tmp_path,
        dataset__train_ann_path=str(tmp_path / "labels.zip"),
        **split_keys(packed, train_img_dir="train.tar.gz"),
    )
    assert run("check train", spec) == 0
    assert "boxes: 15" in capsys.readouterr().out


def test_a_web_server(write_spec, web, tmp_path, capsys):
    spec = write_spec(tmp_path, train__pretrained_model_path=f"{web}/vit.pth", **split_keys(web, **ALL))
    assert run("train", spec, "train.num_epochs=1") == 0
    said = capsys.readouterr().err
    assert f"train.pretrained_model_path: {web}/vit.pth: fetching 1 file" in said
    assert "training fetches it, once" in said


def test_what_a_server_does_not_have_is_all_told(write_spec, web, tmp_path, capsys):
    gone = {"train_ann_path": "gone.json", "train_img_dir": "gone.zip", "val_img_dir": "gone.tar.gz"}
    assert run("check train", write_spec(tmp_path, **split_keys(web, **gone))) == 1
    said = capsys.readouterr().err
    for key in gone:
        assert f"dataset.{key} · nothing at {web}/gone" in said


def test_another_scheme(write_spec, tmp_path, capsys):
    assert run("check train", write_spec(tmp_path, dataset__train_img_dir="memory://images")) == 1
    assert "dataset.train_img_dir · no way to fetch memory://" in capsys.readouterr().err


def test_a_hub(write_spec, packed, tmp_path, capsys, monkeypatch):
    def download(repository, file):
        assert (repository, file) == ("owner/vit-tiny", "vit.pth")
        return str(packed / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    spec = write_spec(tmp_path, train__pretrained_model_path="owner/vit-tiny:vit.pth", train__num_epochs=1)
    assert run("train", spec) == 0
    said = capsys.readouterr().err
    assert "means file vit.pth of hub repository owner/vit-tiny, which is not on this machine" in said
    assert "vit.pth of hub repository owner/vit-tiny, revision" in said
    records = (tmp_path / "results" / "train" / "status.json").read_text()
    assert "Train finished successfully." in records
