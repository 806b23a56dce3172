"""What README and docs say is so: their Python runs, their keys and files exist, their tables are the code's.

``python tests/test_docs.py`` writes the generated tables anew.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLASSIFY_PAGES = [ROOT / "docs" / f"{name}.md" for name in ("classify", "deployment", "troubleshooting", "performance")]
SIDE = 32


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def metrics_table() -> str:
    """The table of docs/classify.md."""
    from changenet.classify.metric_names import METRIC_NAMES

    better = {"min": "lower", "max": "higher"}
    lines = ["| Metric | Better | Unit | Meaning | In TAO |", "|---|---|---|---|---|"]
    for metric in METRIC_NAMES:
        names = ", ".join(dict.fromkeys(f"`{metric.at(stage)}`" for stage in metric.stages))
        cells = (names, better[metric.direction], metric.unit, metric.meaning, "yes" if metric.tao else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


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


def test_the_metrics_table_is_the_codes():
    found = METRICS.search((ROOT / "docs" / "classify.md").read_text("utf-8"))
    assert found is not None
    assert found[2] == metrics_table(), "run: python tests/test_docs.py"


@pytest.mark.parametrize("page", [ROOT / "README.md", *CLASSIFY_PAGES], ids=lambda page: page.name)
def test_keys_exist(page):
    from changenet.config import ExperimentSpec
    from fiducial.spec.knob import walk

    keys = {key.path for key in walk(ExperimentSpec)}
    keys |= {key.rpartition(".")[0] for key in keys}
    sections = "train|evaluate|inference|export|dataset|model"
    named = set(re.findall(rf"(?<![\w./`-])`?((?:{sections})\.[a-z_]+[a-z_.]*[a-z_])", page.read_text("utf-8")))
    files = {name for name in named if name.endswith((".csv", ".html", ".onnx", ".py"))}
    assert named - files <= keys


def test_the_example_spec_is_valid():
    from changenet.classify.checks import check_spec
    from changenet.config import ExperimentSpec

    (text,) = blocks(ROOT / "docs" / "classify.md", "yaml")
    spec = ExperimentSpec.model_validate(yaml.safe_load(text))
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
    for page in (ROOT / "README.md", *CLASSIFY_PAGES):
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
    (code,) = blocks(ROOT / "docs" / "deployment.md", "python")
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


def save_picture(path: Path, seed: int, side: int = 2 * SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages' code finds beside it: ``results/train``, ``model.onnx``, ``part.png`` and ``golden.png``."""
    from changenet.__main__ import TASKS
    from fiducial import cli

    folder = tmp_path_factory.mktemp("docs")
    for name, seed in (("golden", 0), ("part", 1)):
        save_picture(folder / f"{name}.png", seed)
    rows = [("", "goldens", "PASS" if number % 2 else "MISSING", f"p{number}") for number in range(8)]
    for number in range(8):
        save_picture(folder / f"p{number}.png", number)
        save_picture(folder / "goldens" / f"p{number}.png", number)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("input_path", "golden_path", "label", "object_name"), *rows])
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_tree(folder)), encoding="utf-8")
    for action in ("train", "export"):
        assert cli.main(TASKS, [action, "-e", str(spec)], prog="changenet") == 0
    return folder


def run(page: str, folder: Path, monkeypatch) -> dict:
    """Run all Python of a page, one block after the other; returns its names."""
    monkeypatch.chdir(folder)
    names: dict = {}
    for number, code in enumerate(blocks(ROOT / page, "python")):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.slow
class TestCodeOfThePages:
    def test_readme(self, folder, monkeypatch, capsys):
        names = run("README.md", folder, monkeypatch)
        assert 0 <= names["result"].score <= 1
        assert capsys.readouterr().out.split()[-1] in ("PASS", "FAIL")

    def test_classify(self, folder, monkeypatch):
        names = run("docs/classify.md", folder, monkeypatch)
        assert [result.decision in ("PASS", "FAIL") for result in names["results"]] == [True, True]
        assert names["distance"].shape == (4,)

    def test_onnxruntime_alone_gives_the_same_score(self, folder, monkeypatch, capsys):
        import changenet

        names = run("docs/deployment.md", folder, monkeypatch)
        expected = changenet.load(folder / "model.onnx").score(folder / "part.png", folder / "golden.png")
        assert names["score"] == pytest.approx(expected.score, abs=1e-5)
        assert capsys.readouterr().out.split()[0] == expected.decision


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

    Session.about = runtime.metadata()
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    names = run("docs/deployment.md", tmp_path, monkeypatch)
    np.testing.assert_allclose(names["prepare"]("part")[0], part, atol=1e-5)
    assert names["score"] == pytest.approx(float(np.abs(part - golden).sum()), rel=1e-4)


if __name__ == "__main__":
    page = ROOT / "docs" / "classify.md"
    page.write_text(METRICS.sub(lambda m: m[1] + metrics_table() + m[3], page.read_text("utf-8")), "utf-8")
