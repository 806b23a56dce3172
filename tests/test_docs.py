"""What README and docs say is so: their Python runs, their keys and files exist, their tables are the code's.

``python tests/test_docs.py`` writes the generated tables anew.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
USER_PAGES = [
    ROOT / "docs" / f"{name}.md" for name in ("classify", "segment", "deployment", "troubleshooting", "performance")
]
SIDE = 32


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def metrics_table(task: str) -> str:
    """The table of a task's metrics; rows of one meaning stand together."""
    import importlib

    table = importlib.import_module(f"changenet.{task}.metric_names").METRICS
    rows: dict[str, list] = {}
    for metric in table:
        rows.setdefault(metric.meaning, []).append(metric)
    lines = ["| Metric | Better | Unit | Meaning | In TAO |", "|---|---|---|---|---|"]
    for meaning, metrics in rows.items():
        names = dict.fromkeys(f"`{m.at(stage).replace('{class}', '<k>')}`" for m in metrics for stage in m.stages)
        first = metrics[0]
        cells = (", ".join(names), BETTER[first.direction], first.unit, meaning, "yes" if first.tao else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


BETTER = {"min": "lower", "max": "higher"}
TABLES = ("classify", "segment")
METRICS = re.compile(r"(<!-- metrics: .*? -->\n)(.*?)(<!-- end of metrics -->)", re.DOTALL)


def heading_id(heading: str) -> str:
    """The anchor that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- links, keys, tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(heading_id, headings), f"{page.name} links to {target}"


@pytest.mark.parametrize("task", TABLES)
def test_the_metrics_table_is_the_codes(task):
    found = METRICS.search((ROOT / "docs" / f"{task}.md").read_text("utf-8"))
    assert found is not None
    assert found[2] == metrics_table(task), "run: python tests/test_docs.py"


@pytest.mark.parametrize("page", [ROOT / "README.md", *USER_PAGES], ids=lambda page: page.name)
def test_keys_exist(page):
    import changenet.config
    import mal.config
    import mlrecog.config
    from fiducial.spec.knob import walk

    specs = changenet.config.ExperimentSpec, mal.config.ExperimentSpec, mlrecog.config.ExperimentSpec
    keys = {key.path for spec in specs for key in walk(spec)}
    keys |= {key.rpartition(".")[0] for key in keys}
    sections = "train|evaluate|inference|export|dataset|model"
    named = set(re.findall(rf"(?<![\w./`-])`?((?:{sections})\.[a-z_]+[a-z_.]*[a-z_])", page.read_text("utf-8")))
    files = {name for name in named if name.endswith((".csv", ".html", ".json", ".onnx", ".py", ".xml"))}
    assert named - files <= keys


def test_the_example_spec_is_valid():
    from changenet.classify.checks import check_spec
    from changenet.config import ExperimentSpec

    (text,) = blocks(ROOT / "docs" / "classify.md", "yaml")
    spec = ExperimentSpec.model_validate(yaml.safe_load(text))
    for action in ("train", "evaluate", "inference", "export"):
        assert list(check_spec(spec, action)) == []


def test_the_segment_specs_are_valid():
    from changenet.config import ExperimentSpec
    from changenet.segment.checks import check_spec

    whole, part = map(yaml.safe_load, blocks(ROOT / "docs" / "segment.md", "yaml"))
    data = {**whole["dataset"]["segment"], **part["dataset"]["segment"]}
    for tree in (whole, {**whole, "dataset": {"segment": data}}):
        spec = ExperimentSpec.model_validate(tree)
        for action in ("train", "evaluate", "inference", "export"):
            assert list(check_spec(spec, action)) == []


def test_commands_parse():
    """Every line of the pages that runs ``changenet`` is one that the command line takes."""
    import shlex

    from changenet.__main__ import TASKS
    from changenet.config import ExperimentSpec
    from fiducial import cli
    from fiducial.spec.compose import read_source

    found = 0
    for page in (ROOT / "README.md", *USER_PAGES):
        for line in "\n".join(blocks(page, "sh")).splitlines():
            _, program, arguments = line.partition("changenet ")
            if not program or line.startswith("#"):
                continue
            words = [word for word in shlex.split(arguments, comments=True) if word not in ("-e", "spec.yaml")]
            command = cli._parse(TASKS, [*words, "--config", "changenet/demo"], "changenet")
            source = read_source(ExperimentSpec, command.spec_file, command.overrides)
            assert source.problems == [], line
            found += 1
    assert found > 10


def test_the_onnx_example_is_short():
    for code in blocks(ROOT / "docs" / "deployment.md", "python"):
        assert len([line for line in code.splitlines() if line.strip()]) <= 25


# --- code that runs --------------------------------------------------------------------------------------------------


def spec_tree(folder: Path) -> dict:
    """A run on pictures without lights, as small as they go; paths are below ``folder``."""
    files = {"csv_path": str(folder / "rows.csv"), "images_dir": str(folder)}
    return {
        "task": "classify",
        "results_dir": str(folder / "results"),
        "wandb": {"enable": False},
        "model": {
            "backbone": {"type": "fan_tiny_8_p4_hybrid"},
            "decode_head": {"decoder_params": {"embed_dim": 16}},
            "classify": {"difference_module": "learnable", "embed_dec": 8, "eval_margin": 0.4},
        },
        "dataset": {
            "classify": {
                **{f"{split}_dataset": files for split in ("train", "validation", "test", "infer")},
                "image_ext": ".png",
                "num_input": 1,
                "image_width": SIDE,
                "image_height": SIDE,
                "batch_size": 4,
                "workers": 0,
            }
        },
        "train": {"num_epochs": 1, "classify": {"loss": "ce"}},
        "export": {
            "checkpoint": "latest",
            "onnx_file": str(folder / "model.onnx"),
            "input_height": SIDE,
            "input_width": SIDE,
        },
    }


def segment_tree(folder: Path) -> dict:
    """A spec of task segment without data, to export what :func:`save_untrained_run` leaves."""
    return {
        "task": "segment",
        "results_dir": str(folder),
        "wandb": {"enable": False},
        "model": {
            "backbone": {"type": "fan_tiny_8_p4_hybrid"},
            "decode_head": {"decoder_params": {"embed_dim": 8}},
        },
        "dataset": {"segment": {"img_size": SIDE}},
        "export": {"checkpoint": "latest", "onnx_file": str(folder.parent / "segment.onnx")},
    }


def save_untrained_run(task, tree: dict, folder: Path) -> None:
    """What a training leaves, without the training."""
    import torch

    from fiducial.spec.knob import plain

    spec = task.spec_model().model_validate(tree)
    weights = task.runtime(spec).module(pretrained=False).state_dict()
    (folder / "train").mkdir(parents=True)
    path = folder / "train" / f"{task.prefix}_latest.pth"
    torch.save({"state_dict": weights, "hyper_parameters": plain(spec), "fiducial": {}, "epoch": 0}, path)


def save_other_runs(folder: Path) -> None:
    """Runs of the other networks, pictures for them, and a gallery that is kept."""
    from changenet.segment.task import SEGMENT
    from fiducial import cli
    from mal.task import MAL
    from mlrecog.task import ML_RECOG

    save_untrained_run(SEGMENT, segment_tree(folder / "results-segment"), folder / "results-segment")
    heads = {"mask_head_hidden_channel": 8, "mask_head_out_channel": 8}
    mal = {"model": {"arch": "vit-deit-tiny/16", **heads}, "dataset": {"crop_size": SIDE}}
    save_untrained_run(MAL, mal, folder / "results-mal")
    sides = {"input_width": SIDE, "input_height": SIDE}
    recog = {"model": {"backbone": "fan_tiny", "feat_dim": 8, **sides}, "wandb": {"enable": False}}
    save_untrained_run(ML_RECOG, recog, folder / "results-mlrecog")
    for number, name in enumerate(("street", "a", "b")):
        save_picture(folder / f"{name}.jpg", 20 + number, side=240)
    for number in range(4):
        save_picture(folder / "shelf" / "xy"[number % 2] / f"{number}.png", 30 + number)
    (folder / "gallery.yaml").write_text(yaml.safe_dump({**recog, "results_dir": str(folder / "results-mlrecog")}))
    command = ["gallery", "build", "-e", str(folder / "gallery.yaml"), "gallery.checkpoint=latest"]
    kept = [f"gallery.source={folder / 'shelf'}", f"gallery.path={folder / 'shop'}"]
    assert cli.main((ML_RECOG,), [*command, *kept, "dataset.workers=0"], prog="mlrecog") == 0


def save_picture(path: Path, seed: int, side: int = 2 * SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages' code finds beside it: runs of both tasks, an exported model of each, pictures."""
    from changenet.__main__ import TASKS
    from fiducial import cli

    folder = tmp_path_factory.mktemp("docs")
    for name, seed in (("golden", 0), ("part", 1), ("before", 2), ("after", 3)):
        save_picture(folder / f"{name}.png", seed)
    save_other_runs(folder)
    rows = [("", "goldens", "PASS" if number % 2 else "MISSING", f"p{number}") for number in range(8)]
    for number in range(8):
        save_picture(folder / f"p{number}.png", number)
        save_picture(folder / "goldens" / f"p{number}.png", number)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("input_path", "golden_path", "label", "object_name"), *rows])
    trees = {"classify": spec_tree(folder), "segment": segment_tree(folder / "results-segment")}
    for task, action in (("classify", "train"), ("classify", "export"), ("segment", "export")):
        spec = folder / f"{task}.yaml"
        spec.write_text(yaml.safe_dump(trees[task]), encoding="utf-8")
        assert cli.main(TASKS, [action, "-e", str(spec)], prog="changenet") == 0
    return folder


def run(page: str, folder: Path, monkeypatch, which: slice = slice(None)) -> dict:
    """Run the Python of a page, ``which`` blocks of it, one after the other; returns its names."""
    monkeypatch.chdir(folder)
    names: dict = {}
    for number, code in enumerate(blocks(ROOT / page, "python")[which]):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.slow
class TestCodeOfThePages:
    def test_readme(self, folder, monkeypatch, capsys):
        again = {**spec_tree(folder), "results_dir": str(folder / "again")}
        (folder / "spec.yaml").write_text(yaml.safe_dump(again), encoding="utf-8")
        names = run("README.md", folder, monkeypatch)
        assert 0 <= names["result"].score <= 1
        assert [epoch for epoch, _ in names["trained"].history] == [0, 1, 2]
        assert names["trained"].history[-1][1]["val_auroc"] == names["trained"].kpis["val_auroc"]
        assert all(path.is_file() for path in names["trained"].files)
        assert capsys.readouterr().out.splitlines()[0].split()[-1] in ("PASS", "FAIL")
        assert names["change"].mask.shape == (2 * SIDE, 2 * SIDE)
        assert names["mask"].shape == (240, 240)
        assert names["mask"][:40].sum() == 0  # nothing outside of the box, but for a pixel of the crop
        assert 0 <= names["score"] <= 1
        assert names["embeddings"].shape == (2, 8)
        assert names["embeddings"].norm(dim=1).tolist() == pytest.approx([1, 1])
        assert names["label"] in ("x", "y")
        assert 0 <= names["distance"] <= 4

    def test_classify(self, folder, monkeypatch):
        names = run("docs/classify.md", folder, monkeypatch)
        assert [result.decision in ("PASS", "FAIL") for result in names["results"]] == [True, True]
        assert names["distance"].shape == (4,)

    def test_segment(self, folder, monkeypatch):
        names = run("docs/segment.md", folder, monkeypatch)
        assert 0 <= names["share"] <= 1
        assert (folder / "changes.geojson").is_file()
        with Image.open(folder / "mask.png") as mask:
            assert mask.size == (2 * SIDE, 2 * SIDE)
        assert names["logits"].shape == (4, 2, 64, 64)

    def test_onnxruntime_alone_gives_the_same_score(self, folder, monkeypatch, capsys):
        import changenet

        names = run("docs/deployment.md", folder, monkeypatch, slice(0, 1))
        expected = changenet.load(folder / "model.onnx").score(folder / "part.png", folder / "golden.png")
        assert names["score"] == pytest.approx(expected.score, abs=1e-5)
        assert capsys.readouterr().out.split()[0] == expected.decision

    def test_onnxruntime_alone_makes_the_same_mask(self, folder, monkeypatch):
        import changenet

        names = run("docs/deployment.md", folder, monkeypatch, slice(1, None))
        detector = changenet.load(folder / "segment.onnx")
        before, after = (Image.open(folder / f"{name}.png") for name in ("before", "after"))
        small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in (before, after)]
        change = detector.detect(*small)
        share = np.exp(names["logits"][0])
        np.testing.assert_allclose(share / share.sum(0), change.probability, atol=1e-5)
        assert change.probability[1].std() > 1e-4
        assert np.array_equal(names["mask"], change.mask)


class Session:
    """An onnxruntime session whose model says the distance of its inputs' sums."""

    about: dict = {}

    def __init__(self, *_, **__):
        self.custom_metadata_map = {"fiducial": json.dumps(self.about)}

    def get_modelmeta(self):
        return self

    def run(self, outputs, feeds):
        return [np.abs(feeds["input_1"] - feeds["input_2"]).sum(axis=(1, 2, 3))]


@pytest.mark.parametrize(("concat_type", "grid_map"), [("linear", None), ("grid", {"x": 2, "y": 2})])
def test_the_onnx_example_prepares_lights_as_training_does(tmp_path, monkeypatch, concat_type, grid_map):
    from changenet.classify.runtime import ClassifyRuntime
    from changenet.config import ExperimentSpec

    lights = {name: place for place, name in enumerate("ABCD")}
    tree = spec_tree(tmp_path)
    tree["dataset"]["classify"] |= {"input_map": lights, "num_input": 4, "concat_type": concat_type}
    tree["dataset"]["classify"] |= {"grid_map": grid_map, "image_width": 48}
    for seed, light in enumerate(lights):
        save_picture(tmp_path / f"part_{light}.png", seed)
        save_picture(tmp_path / f"golden_{light}.png", 10 + seed)
    (tmp_path / "goldens").mkdir()
    (tmp_path / "rows.csv").write_text("input_path,golden_path,label,object_name\n,,PASS,part\n,,PASS,golden\n")
    runtime = ClassifyRuntime(ExperimentSpec.model_validate(tree))
    part, golden = (runtime.dataset("test")[row]["test"].numpy() for row in range(2))

    Session.about = runtime.card().plain()
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    names = run("docs/deployment.md", tmp_path, monkeypatch, slice(0, 1))
    np.testing.assert_allclose(names["prepare"]("part")[0], part, atol=1e-5)
    assert names["score"] == pytest.approx(float(np.abs(part - golden).sum()), rel=1e-4)


def rewrite(page: Path, table: str) -> None:
    page.write_text(METRICS.sub(lambda found: found[1] + table + found[3], page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder, which has one named changenet
    for task in TABLES:
        rewrite(ROOT / "docs" / f"{task}.md", metrics_table(task))
