"""Every action through the command line, on class folders that the tests draw."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from mlrecog_shelves import make_folders

import mlrecog
from fiducial.run.status import read_status
from mlrecog import folders
from mlrecog.lightning import RecogModule

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


def weights_of(tree):
    path = Path(tree["results_dir"]) / "train" / "ml_model_latest.pth"
    return torch.load(path, weights_only=True)


def rows_of(path, heading=True):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file) if heading else csv.reader(file))


@pytest.fixture(scope="module")
def folder(trained):
    return Path(trained["results_dir"])


@pytest.fixture(scope="module")
def evaluated(trained, act, folder):
    assert act(trained, "evaluate", "evaluate.checkpoint=latest") == 0
    return folder / "evaluate"


@pytest.fixture(scope="module")
def exported(trained, act, tmp_path_factory):
    target = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert act(trained, "export", "export.checkpoint=latest", f"export.onnx_file={target}", "export.verbose=false") == 0
    return target


class TestTrain:
    def test_files(self, folder):
        names = {path.name for path in (folder / "train").iterdir()}
        assert {"experiment.yaml", "status.json", "ml_model_latest.pth", "ml_model_best.pth"} <= names
        assert "model_epoch_001_step_00024.pth" in names  # 24 pictures: 6 batches an epoch, two optimizers

    def test_checkpoint_is_one_of_tao(self, trained):
        raw = weights_of(trained)
        assert raw["tao_model"] == "ml_recog"
        assert {key.split(".")[1] for key in raw["state_dict"]} == {"embedder", "trunk"}
        assert len(raw["optimizer_states"]) == 2

    def test_status(self, folder):
        records = read_status(folder / "train" / "status.json")
        assert records[0]["message"] == "Starting Metric Learning Recognition train."
        validations = [r["kpi"] for r in records if r["message"] == "Eval metrics generated."]
        assert len(validations) == 2
        names = ("Precision at Rank 1", "r-Precision", "Mean Average Precision", "Mean Reciprocal Rank")
        assert {*(f"val {name}" for name in names), "val_AMI", "val_NMI"} <= set(validations[0])
        rates = [r["kpi"]["trunk_base_lr"] for r in records if "trunk_base_lr" in r.get("kpi", {})]
        assert rates[0] == "1.0000e-05"  # the first epoch's share is warmup_factor
        assert rates[-1] == "1.0000e-03"
        assert records[-1]["status"] == "SUCCESS"

    def test_continued_equals_uninterrupted(self, make_tree, act, tmp_path):
        parts, whole = make_tree(tmp_path / "parts"), make_tree(tmp_path / "whole")
        assert act(parts, "train", "train.num_epochs=1") == 0
        assert act(parts, "train") == 0
        assert act(whole, "train") == 0
        continued, uninterrupted = (weights_of(tree)["state_dict"] for tree in (parts, whole))
        assert all(torch.equal(continued[key], uninterrupted[key]) for key in uninterrupted)

    def test_frozen_trunk(self, make_tree, act, tmp_path, trained, capsys):
        start = Path(trained["results_dir"]) / "train" / "ml_model_latest.pth"
        tree = make_tree(tmp_path, train__train_trunk=False, train__num_epochs=1)
        tree["model"]["pretrained_model_path"] = str(start.resolve())
        assert act(tree, "train") == 0
        before, after = weights_of(trained)["state_dict"], weights_of(tree)["state_dict"]
        moved = {key.split(".")[1] for key in after if not torch.equal(before[key], after[key])}
        assert "353 of 353 tensors loaded" in capsys.readouterr().err
        assert moved == {"embedder"}  # nor do statistics of batch norms in the trunk

    def test_without_validation(self, make_tree, act, tmp_path, capsys):
        tree = make_tree(tmp_path, dataset__val_dataset={}, train__num_epochs=1)
        assert act(tree, "train") == 0
        assert "training runs without validation" in capsys.readouterr().err

    def test_clipped_and_in_bf16(self, make_tree, act, tmp_path):
        tree = make_tree(tmp_path, train__clip_grad_norm=0.1, train__precision="bf16", train__num_epochs=1)
        assert act(tree, "train") == 0
        assert all(v.isfinite().all() for v in weights_of(tree)["state_dict"].values())

    def test_frozen_schedule_of_tao(self, make_tree, act, tmp_path):
        tree = make_tree(tmp_path, compat="tao")
        assert act(tree, "train") == 0
        records = read_status(tmp_path / "train" / "status.json")
        rates = {r["kpi"]["trunk_base_lr"] for r in records if "trunk_base_lr" in r.get("kpi", {})}
        assert rates == {"1.0000e-05"}
        assert mlrecog.load(tmp_path).embed([]).shape == (0, 0)


class TestEvaluate:
    def test_numbers(self, evaluated):
        told = json.loads((evaluated / "metrics.json").read_text())
        assert {"test Precision at Rank 1", "test_recall_at_10", "test_mAP", "test_NDCG_at_10"} <= set(told["kpis"])
        assert all(0 <= value <= 1 for name, value in told["kpis"].items() if "AMI" not in name)
        assert told["pictures"] == {"gallery": 12, "queries": 8}
        assert 0 <= told["open_set"]["threshold"] <= 4

    def test_classes(self, evaluated):
        rows = rows_of(evaluated / "accuracy_per_class.csv")
        assert next(iter(rows[0])) == ""  # the index, as pandas writes it
        assert [row[""] for row in rows] == ["blue", "green", "red", "white"]
        assert [(row["queries"], row["references"]) for row in rows] == [("2", "3")] * 4
        told = json.loads((evaluated / "metrics.json").read_text())["kpis"]["test Precision at Rank 1"]
        assert sum(float(row["top1_acc"]) for row in rows) / 4 == pytest.approx(told)

    def test_queries_wrong_ones_first(self, evaluated):
        right = [row["right"] for row in rows_of(evaluated / "queries.csv")]
        assert right == sorted(right)
        assert len(right) == 8

    def test_report(self, evaluated):
        text = (evaluated / "report.html").read_text()
        for heading in ("Queries, wrong ones first", "Is it in the gallery at all?", "Map of the queries"):
            assert heading in text

    def test_one_set_on_both_sides_finds_no_picture_itself(self, trained, act, shelves, tmp_path):
        both = f"dataset.val_dataset.query={shelves / 'reference'}"
        assert act(trained, "evaluate", "evaluate.checkpoint=latest", both, f"evaluate.results_dir={tmp_path}") == 0
        assert all(row["picture"] != row["reference"] for row in rows_of(tmp_path / "queries.csv"))

    def test_the_report_has_no_markup_as_text(self, evaluated):
        assert "&lt;div" not in (evaluated / "report.html").read_text()

    def test_faiss_finds_the_same(self, trained, act, evaluated, tmp_path):
        words = ["evaluate.checkpoint=latest", "evaluate.search=faiss", f"evaluate.results_dir={tmp_path}"]
        assert act(trained, "evaluate", *words) == 0
        ours, theirs = (json.loads((path / "metrics.json").read_text())["kpis"] for path in (evaluated, tmp_path))
        assert ours == pytest.approx(theirs, abs=1e-6)

    def test_exported_gives_the_same(self, trained, act, exported, evaluated, tmp_path):
        words = [f"evaluate.checkpoint={exported}", f"evaluate.results_dir={tmp_path}"]
        assert act(trained, "evaluate", *words) == 0
        ours, theirs = (json.loads((path / "metrics.json").read_text())["kpis"] for path in (evaluated, tmp_path))
        assert ours == pytest.approx(theirs, abs=1e-6)

    def test_in_openvino_s_format_with_pixels_as_inputs(self, trained, act, evaluated, tmp_path):
        more = ("export.preprocessing=true", "export.openvino=true", f"export.onnx_file={tmp_path / 'm.onnx'}")
        more += ("export.batch_size=3",)  # for which OpenVINO compiles kernels of its own
        assert act(trained, "export", "export.checkpoint=latest", "export.verbose=false", *more) == 0
        words = [f"evaluate.checkpoint={tmp_path / 'm.xml'}", f"evaluate.results_dir={tmp_path}"]
        assert act(trained, "evaluate", *words) == 0
        ours, theirs = (json.loads((path / "metrics.json").read_text())["kpis"] for path in (evaluated, tmp_path))
        assert ours == pytest.approx(theirs, abs=1e-6)
        words = ["quantize.backend=openvino", "quantize.mode=static_ptq", f"quantize.model_path={tmp_path / 'm.onnx'}"]
        assert act(trained, "quantize", *words, f"quantize.results_dir={tmp_path / 'quantize'}") == 0
        assert "FakeQuantize" in (tmp_path / "quantize" / "quantized_model.xml").read_text()


class TestInference:
    def test_class_folders(self, trained, act, folder, shelves):
        assert act(trained, "inference", "inference.checkpoint=latest") == 0
        rows = rows_of(folder / "inference" / "result.csv", heading=False)
        assert len(rows) == 8
        path, labels, distances = rows[0]
        assert path == str(shelves / "query" / "blue" / "0.png")
        labels, distances = ast.literal_eval(labels), ast.literal_eval(distances)
        assert len(labels) == len(distances) == 2
        assert set(labels) <= {"blue", "green", "red", "white"}
        assert distances == sorted(distances)
        listed = rows_of(folder / "inference" / "neighbours.csv")
        assert len(listed) == 16
        assert float(listed[0]["similarity"]) == pytest.approx(1 - distances[0] / 2, abs=1e-5)

    @pytest.mark.parametrize(("kind", "what", "count"), [("image", "red/0.png", 1), ("image_folder", "red", 2)])
    def test_other_inputs(self, trained, act, shelves, tmp_path, kind, what, count):
        words = [f"inference.inference_input_type={kind}", f"inference.input_path={shelves / 'query' / what}"]
        words += ["inference.checkpoint=latest", f"inference.results_dir={tmp_path}"]
        assert act(trained, "inference", *words) == 0
        assert len(rows_of(tmp_path / "result.csv", heading=False)) == count

    def test_pictures_of_archives_are_not_named_by_the_cache(self, trained, act, shelves, tmp_path, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
        archives = [shutil.make_archive(str(tmp_path / name), "zip", shelves, name) for name in ("query", "reference")]
        words = [f"inference.input_path={archives[0]}", f"dataset.val_dataset.reference={archives[1]}"]
        words += ["inference.checkpoint=latest", f"inference.results_dir={tmp_path / 'r'}"]
        assert act(trained, "inference", *words) == 0
        assert rows_of(tmp_path / "r" / "result.csv", heading=False)[0][0] == f"{archives[0]}/blue/0.png"
        row = rows_of(tmp_path / "r" / "neighbours.csv")[0]
        assert row["picture"] == f"{archives[0]}/blue/0.png"
        assert row["reference"].startswith(f"{archives[1]}/")
        words = [f"dataset.val_dataset.query={archives[0]}", *words[1:2], "evaluate.checkpoint=latest"]
        assert act(trained, "evaluate", *words, f"evaluate.results_dir={tmp_path / 'e'}") == 0
        assert all(row["picture"].startswith(archives[0]) for row in rows_of(tmp_path / "e" / "queries.csv"))

    def test_more_neighbours_than_there_are(self, trained, act, tmp_path, capsys):
        words = ["inference.topk=50", "inference.checkpoint=latest", f"inference.results_dir={tmp_path}"]
        assert act(trained, "inference", *words) == 0
        assert "the gallery has 12 pictures" in capsys.readouterr().err
        assert len(ast.literal_eval(rows_of(tmp_path / "result.csv", heading=False)[0][1])) == 12

    def test_unknown(self, trained, act, tmp_path):
        words = ["inference.margin=4", "inference.checkpoint=latest", f"inference.results_dir={tmp_path}"]
        assert act(trained, "inference", *words) == 0
        assert {row["decision"] for row in rows_of(tmp_path / "neighbours.csv")} == {"unknown"}


@pytest.fixture(scope="module")
def kept(trained, act, shelves, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "shop"
    words = [f"gallery.path={path}", f"gallery.source={shelves / 'reference'}", "gallery.checkpoint=latest"]
    assert act(trained, "gallery", "build", *words) == 0
    return path


def test_an_export_without_a_name_goes_where_tao_has_it(trained, act, folder):
    assert act(trained, "export", "export.checkpoint=latest", "export.verbose=false") == 0
    assert (folder / "export" / "model_epoch_001_step_00024.onnx").is_file()


class TestKeptGallery:
    def test_finds_what_the_folders_find(self, trained, act, kept, tmp_path):
        common = ["inference.checkpoint=latest", "dataset.val_dataset.reference="]
        assert act(trained, "inference", *common[:1], f"inference.results_dir={tmp_path / 'a'}") == 0
        words = [f"inference.gallery={kept}", f"inference.results_dir={tmp_path / 'b'}"]
        assert act(trained, "inference", *common, *words) == 0
        one, other = (rows_of(tmp_path / name / "result.csv", heading=False) for name in "ab")
        assert [row[1] for row in one] == [row[1] for row in other]

    def test_its_exported_model_may_search_it(self, trained, act, kept, exported, shelves, tmp_path):
        words = [f"gallery.path={kept}", f"gallery.query={shelves / 'query'}", f"gallery.checkpoint={exported}"]
        assert act(trained, "gallery", "search", *words, f"gallery.results_dir={tmp_path}") == 0
        assert len(rows_of(tmp_path / "search.csv")) == 8 * 5

    def test_a_graph_without_a_card_searches_what_it_built(self, trained, act, exported, shelves, tmp_path):
        graph, bare, shop = onnx.load(exported), tmp_path / "bare.onnx", tmp_path / "shop"
        del graph.metadata_props[:]
        onnx.save(graph, bare)
        words = [f"gallery.path={shop}", f"gallery.source={shelves / 'reference'}", f"gallery.checkpoint={bare}"]
        assert act(trained, "gallery", "build", *words, f"gallery.results_dir={tmp_path}") == 0
        words = [f"inference.checkpoint={bare}", "dataset.val_dataset.reference=", f"inference.gallery={shop}"]
        assert act(trained, "inference", *words, f"inference.results_dir={tmp_path / 'found'}") == 0
        assert len(rows_of(tmp_path / "found" / "result.csv", heading=False)) == 8

    def test_another_model_is_refused(self, make_tree, act, kept, tmp_path, capsys):
        other = make_tree(tmp_path, train__num_epochs=1, train__seed=7)
        assert act(other, "train") == 0
        capsys.readouterr()
        words = ["inference.checkpoint=latest", "dataset.val_dataset.reference=", f"inference.gallery={kept}"]
        assert act(other, "inference", *words) == 1
        assert "built with fan_tiny" in capsys.readouterr().err

    def test_library(self, trained, kept, exported, shelves):
        picture = shelves / "query" / "red" / "0.png"
        recognizer = mlrecog.load(Path(trained["results_dir"]) / "train" / "ml_model_latest.pth")
        found = recognizer.search(picture, kept, k=3)
        assert len(found[0].matches) == 3
        assert found[0].label == found[0].matches[0].label
        assert not recognizer.search(picture, kept, margin=4)[0].is_known
        exported_too = mlrecog.load(exported).search(picture, kept, k=3)
        assert [m.source for m in exported_too[0].matches] == [m.source for m in found[0].matches]
        pictures = {name: [shelves / "reference" / name / "0.png"] for name in ("red", "blue")}
        assert recognizer.search([], kept) == []
        (answer,) = recognizer.search(picture, recognizer.gallery(pictures), k=2)
        assert {match.label for match in answer.matches} == {"red", "blue"}


class TestBadInput:
    def check(self, make_tree, act, tmp_path, capsys, action="train", **changes):
        assert act(make_tree(tmp_path / "r", **changes), "check", action) == 1
        return capsys.readouterr().err

    def test_one_class_in_a_batch(self, make_tree, act, tmp_path, capsys):
        said = self.check(make_tree, act, tmp_path, capsys, dataset__num_instance=4)
        assert "4 / dataset.num_instance 4 = 1 class in a batch" in said

    def test_a_class_that_the_gallery_lacks(self, make_tree, act, tmp_path, capsys):
        query = make_folders(tmp_path / "query", classes=("red", "Green", "tea"))
        said = self.check(make_tree, act, tmp_path, capsys, "evaluate", dataset__val_dataset__query=str(query))
        assert "'Green'" in said
        assert "there is 'green'" in said
        assert "'tea'" in said

    def test_pictures_that_are_none_and_an_empty_class(self, make_tree, act, tmp_path, capsys):
        train = make_folders(tmp_path / "train")
        (train / "red" / "9.png").write_text("no picture")
        (train / "none").mkdir()
        (train / " RED").mkdir()
        said = self.check(make_tree, act, tmp_path, capsys, dataset__train_dataset=str(train))
        assert "9.png" in said
        assert "class folders without a picture:  RED, none" in said
        assert "differ in capitals or blanks alone" in said

    def test_class_map_of_other_classes(self, make_tree, act, tmp_path, capsys):
        path = tmp_path / "map.yaml"
        path.write_text(
            yaml.safe_dump({**{name: name.upper() for name in ("blue", "green", "red", "white")}, "tea": "T"})
        )
        tree = make_tree(tmp_path / "r", dataset__class_map=str(path))
        assert act(tree, "check", "train") == 0
        assert "names that are no class folder of these data sets: tea" in capsys.readouterr().err
        path.write_text("blue: B\n")
        said = self.check(make_tree, act, tmp_path, capsys, dataset__class_map=str(path))
        assert "lacks the folders 'green', 'red', 'white'" in said

    def test_all_problems_of_all_parts_at_once(self, make_tree, act, tmp_path, capsys, shelves):
        reference, query = (
            make_folders(tmp_path / "reference"),
            make_folders(tmp_path / "query", classes=("red", "tea")),
        )
        whole = (reference / "red" / "0.png").read_bytes()
        (reference / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
        (query / "red" / "1.png").write_text("no picture")
        changes = {"dataset__val_dataset__reference": str(reference), "dataset__val_dataset__query": str(query)}
        changes |= {"dataset__train_dataset": "", "train__batch_size": 5, "dataset__class_map": str(tmp_path / "none")}
        said = self.check(make_tree, act, tmp_path, capsys, **changes)
        assert said.count("dataset.train_dataset · not set") == 1
        assert "5 / dataset.num_instance 2 is no whole number of classes" in said
        assert "reference/red/0.png" in said
        assert "'tea': 1 of 2 class folders" in said
        assert "dataset.class_map · " in said
        missing = self.check(make_tree, act, tmp_path, capsys, "inference", inference__input_path="/nowhere", **changes)
        assert "inference.input_path · " in missing
        assert "reference/red/0.png" in missing

    def test_one_picture_of_each_class_on_both_sides(self, make_tree, act, tmp_path, capsys, trained):
        single = str(make_folders(tmp_path / "single", each=1))
        sides = {"dataset__val_dataset__reference": single, "dataset__val_dataset__query": single}
        assert act(make_tree(tmp_path / "r", **sides), "check", "evaluate", "evaluate.checkpoint=latest") == 0
        assert "4 of 4 classes of one picture, which does not find itself" in capsys.readouterr().err

    def test_a_picture_where_class_folders_are_expected(self, make_tree, act, tmp_path, capsys, shelves):
        path = str(shelves / "query" / "red" / "0.png")
        said = self.check(make_tree, act, tmp_path, capsys, "inference", inference__input_path=path)
        assert "set inference.inference_input_type=image" in said

    def test_a_kept_gallery_that_is_not_there(self, make_tree, act, tmp_path, capsys):
        said = self.check(make_tree, act, tmp_path, capsys, "inference", inference__gallery=str(tmp_path / "none"))
        assert "no gallery there" in said

    def test_every_file_to_begin_with_is_named(self, make_tree, act, tmp_path, capsys):
        changes = {f"model__pretrained_{part}_path": f"/nowhere/{part}.pth" for part in ("trunk", "model")}
        said = self.check(make_tree, act, tmp_path, capsys, **changes)
        assert "model.pretrained_trunk_path" in said
        assert "model.pretrained_model_path" in said

    def test_faiss_that_is_not_there(self, make_spec, tmp_path, monkeypatch):
        from mlrecog import checks

        monkeypatch.setattr(checks, "find_spec", lambda name: None)
        spec = make_spec(tmp_path, evaluate__search="faiss")
        assert [p.where for p in checks.check_spec(spec, "evaluate")] == ["evaluate.search"]
        assert list(checks.check_spec(spec, "inference")) == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"model__input_width": 40}, "40 is no multiple of 16"),
            ({"model__backbone": "resnet_18"}, "resnet_18"),
            ({"model__backbone": "nvdinov2_vit_large_legacy"}, "no multiple of 14"),
            ({"train__train_trunk": False, "train__train_embedder": False}, "nothing is trained"),
            ({"train__optim__steps": [9, 3]}, "not in order"),
            ({"dataset__gaussian_blur__kernel": [4, 4]}, "odd"),
            ({"dataset__train_dataset": "/nowhere"}, "/nowhere"),
            ({"train__optim__name": "Adamm"}, "Adamm"),
        ],
        ids=str,
    )
    def test_specs(self, make_tree, act, tmp_path, capsys, changes, said):
        assert said in self.check(make_tree, act, tmp_path, capsys, **changes)

    def test_pictures_that_are_not_square_are_told(self, make_tree, act, tmp_path, capsys):
        assert act(make_tree(tmp_path, model__input_width=48), "check", "train") == 0
        assert "48 wide and 32 high" in capsys.readouterr().err

    def test_grey_and_transparent_pictures_are_read(self, make_tree, act, tmp_path, shelves):
        from PIL import Image

        train = make_folders(tmp_path / "train")
        for number, mode in enumerate(("L", "RGBA", "P", "LA")):
            path = train / "red" / f"{number}.png"
            with Image.open(path) as image:
                image.convert(mode).save(path)
        tree = make_tree(tmp_path / "r", dataset__train_dataset=str(train), train__num_epochs=1)
        assert act(tree, "train") == 0


@pytest.mark.slow
class TestProcesses:
    def run(self, tree, *words):
        path = Path(tree["results_dir"]) / "spec.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(tree))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "mlrecog",
        ]
        done = subprocess.run(
            [*command, *words, "-e", str(path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def test_two(self, make_tree, act, tmp_path):
        tree = make_tree(tmp_path / "two")
        self.run(tree, "train")
        words = ["inference", "inference.checkpoint=latest"]
        self.run(tree, *words)
        assert act(tree, *words, f"inference.results_dir={tmp_path / 'one'}") == 0
        two, one = (rows_of(path / "result.csv", False) for path in (tmp_path / "two" / "inference", tmp_path / "one"))
        assert [(row[0], row[1]) for row in two] == [(row[0], row[1]) for row in one]


def test_the_loss_sees_what_other_ranks_embed(make_spec, tmp_path, monkeypatch):
    """Gathered by hand: with the embeddings of both halves a step is that of the whole batch."""
    module: RecogModule = mlrecog.RecogModule(mlrecog.build_recognizer("fan_tiny", feat_dim=4, image_size=(32, 32)))
    halves = torch.randn(2, 4, 4)

    class Trainer:
        world_size = 2

    monkeypatch.setattr(RecogModule, "trainer", Trainer())
    monkeypatch.setattr(
        module, "all_gather", lambda x, sync_grads=False: halves if x.is_floating_point() else x.expand(2, 4)
    )
    embeddings, labels = module._across_ranks(halves[0], torch.tensor([0, 0, 1, 1]))
    assert torch.equal(embeddings, halves.flatten(0, 1))
    assert labels.tolist() == [0, 0, 1, 1] * 2


def test_folders_are_listed_once(trained, act, tmp_path, monkeypatch):
    listed, read = [], folders._read_class_folders
    monkeypatch.setattr(folders, "_read_class_folders", lambda *given: listed.append(given[1]) or read(*given))
    assert act(trained, "evaluate", "evaluate.checkpoint=latest", f"evaluate.results_dir={tmp_path}") == 0
    assert sorted(listed) == ["dataset.val_dataset.query", "dataset.val_dataset.reference"]
