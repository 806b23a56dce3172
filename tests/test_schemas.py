"""What is generated from the knobs: schemas in TAO's layout, the strict one, templates, cards, the reference of keys.

``python -m changenet schema results_dir=configs/changenet`` writes the committed files of a network anew.
"""

import json
import math
import subprocess
import sys
from functools import cache, reduce
from importlib import import_module
from pathlib import Path

import jsonschema
import pytest
import tao_schemas
import yaml

from fiducial.actions.perform import read_spec
from fiducial.actions.preflight import check_rules
from fiducial.actions.registry import actions_of
from fiducial.schemas.artefacts import REFERENCE, STRICT, artefacts
from fiducial.spec.compose import compose
from fiducial.spec.knob import plain, walk

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
NETWORKS = ("changenet", "mal", "mlrecog")
PACKAGED = {path.parent.name: (path, names) for path, names in tao_schemas.DIGESTS.values()}
CHECKPOINTER = "train.checkpointer"

OTHERWISE = {
    "changenet": {
        "model.backbone.type": "enum",  # C-RADIO, too
        "model.decode_head.decoder_params": "default",  # a section here
        "quantize.backend": "enum",
        "train.precision": "enum",
        "train.segment.loss": "enum",
        "task": "default",  # of train.schema.json: the schema's own task
    },
    "mal": {"dataset.type": "enum", "model.arch": "enum"},
    "mlrecog": {"gen_trt_engine.tensorrt.data_type": "default, enum"},
}
"""Where a schema says something else than TAO's, by what differs; docs/tao-compat.md says why."""


@cache
def tasks_of(network):
    if network == "changenet":
        return import_module("changenet.classify.task").CLASSIFY, import_module("changenet.segment.task").SEGMENT
    return (getattr(import_module(f"{network}.task"), {"mal": "MAL", "mlrecog": "ML_RECOG"}[network]),)


@cache
def files_of(network):
    return artefacts(tasks_of(network))


def kind_of(network):
    return tasks_of(network)[0].spec_model()


def schemas_of(network):
    found = files_of(network).items()
    return {
        name.removeprefix("schemas/").removesuffix(".schema.json"): json.loads(text)
        for name, text in found
        if name.endswith(".schema.json") and name != STRICT
    }


def at(tree, path):
    return reduce(lambda inner, part: inner[part], path.split("."), tree)


@pytest.mark.parametrize("network", NETWORKS)
class TestCommitted:
    def test_no_file_has_drifted(self, network):
        told = {name: (CONFIGS / network / name).read_text("utf-8") for name in files_of(network)}
        assert [name for name, text in files_of(network).items() if told[name] != text] == []

    def test_no_file_is_left_over(self, network):
        there = {
            str(path.relative_to(CONFIGS / network))
            for folder in ("schemas", "references")
            for path in (CONFIGS / network / folder).rglob("*")
        }
        assert there == set(files_of(network))


@pytest.mark.parametrize("network", NETWORKS)
class TestTaoLayout:
    def test_agrees_with_taos_packaged_schemas(self, network):
        path, names = PACKAGED[network]
        stored = json.loads(path.read_text())
        for name in names:
            theirs = stored["shared"] | stored[name]
            ours = {
                key: tao_schemas.facts(node) for key, node in tao_schemas.properties(schemas_of(network)[name]).items()
            }
            assert [key for key in theirs if key not in ours] == []
            differences = {
                key: {
                    part: (node.get(part), ours[key].get(part))
                    for part in node
                    if node.get(part) != ours[key].get(part)
                }
                for key, node in theirs.items()
            }
            allowed = OTHERWISE[network]
            wrong = {
                key: found
                for key, parts in differences.items()
                if (found := {k: v for k, v in parts.items() if k not in allowed.get(key, "") and not same(*v)})
            }
            assert wrong == {}

    def test_every_difference_is_told(self, network):
        page = (ROOT / "docs" / "tao-compat.md").read_text("utf-8")
        assert [key for key in OTHERWISE[network] if f"`{key}`" not in page] == []

    def test_searched_and_required(self, network):
        path, names = PACKAGED[network]
        stored = json.loads(path.read_text())
        for name in names:
            schema = schemas_of(network)[name]
            theirs = stored["shared"] | stored[name]
            flagged = {key for key, node in theirs.items() if node.get("automl_enabled") and not key.endswith("]")}
            assert set(schema["automl_default_parameters"]) == flagged
            assert not flagged & set(schema["automl_disabled_parameters"])
            assert set(schema["automl_disabled_parameters"]) <= {key.path for key in walk(kind_of(network))}
            action = schema["x_tao_schema"]["schema_action"]
            assert set(schema.get("required", [])) <= {action}
            wanted = [key.path.split(".")[-1] for key in walk(kind_of(network))
                      if key.meta.required and key.path.rpartition(".")[0] == action and key.meta.schema]  # fmt: skip
            assert schema["properties"][action].get("required", []) == wanted

    def test_sections_of_other_actions_stay_out(self, network):
        actions = {schema["x_tao_schema"]["schema_action"] for schema in schemas_of(network).values()}
        for schema in schemas_of(network).values():
            own = schema["x_tao_schema"]["schema_action"]
            assert set(schema["properties"]) & actions <= {own, "train", "quantize"}
            assert set(schema["default"]) == set(schema["properties"])

    def test_keys_of_ours_stay_out(self, network):
        hidden = {key.path for key in walk(kind_of(network)) if not key.meta.schema}
        assert hidden
        for schema in schemas_of(network).values():
            assert not hidden & set(tao_schemas.properties(schema))

    def test_manifest(self, network):
        manifest = json.loads(files_of(network)["schemas/manifest.json"])
        assert set(manifest["actions"]) == set(schemas_of(network))
        for name, row in manifest["actions"].items():
            assert row["path"] in files_of(network)
            assert row["spec_template"] in files_of(network)
            assert row["automl_default_parameters"] == schemas_of(network)[name]["automl_default_parameters"]


def same(theirs, ours):
    """Whether two facts are the same: options in any order."""
    if isinstance(theirs, list) and isinstance(ours, list):
        return sorted(map(str, theirs)) == sorted(map(str, ours))
    return theirs == ours


def test_where_the_search_of_a_rate_is_open_elsewhere():
    """MAL's schemas bound ``train.lr`` and search it in ``train`` alone."""
    schemas = schemas_of("mal")
    rate = at(schemas["train"]["properties"], "train.properties.lr")
    assert (rate["minimum"], rate["maximum"], rate["automl_enabled"]) == (1e-7, 1e-5, True)
    rate = at(schemas["evaluate"]["properties"], "train.properties.lr")
    assert (rate["minimum"], rate["maximum"]) == (0, math.inf)
    assert "automl_enabled" not in rate
    assert schemas["evaluate"]["automl_default_parameters"] == []


@pytest.mark.parametrize("network", NETWORKS)
class TestTemplates:
    def test_compose_and_hold(self, network, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", object())  # whether it is installed is another question
        for name, schema in schemas_of(network).items():
            path = CONFIGS / network / "references" / f"spec_template_{name}.yaml"
            action = schema["x_tao_schema"]["schema_action"]
            composed = compose(kind_of(network), read_spec(tasks_of(network), path, ()), action=action)
            assert composed.warnings == ()
            task = next(t for t in tasks_of(network) if len(tasks_of(network)) == 1 or t.name == composed.spec.task)
            errors = [
                p for p in check_rules(task, composed.spec, actions_of(tasks_of(network))[action]) if p.level == "error"
            ]
            assert [str(p) for p in errors if "not set" not in str(p)] == []

    def test_hold_what_the_schema_says(self, network):
        tuned = {key for task in tasks_of(network) for values in task.template.values() for key in values}
        for name, schema in schemas_of(network).items():
            tree = yaml.safe_load(files_of(network)[f"references/spec_template_{name}.yaml"])
            assert list(tree) == [key for key in kind_of(network).model_fields if key in schema["default"]]
            for key in walk(kind_of(network)):
                if key.section is None and key.meta.schema and key.path.split(".")[0] in tree and key.path not in tuned:
                    try:
                        default = at(schema["default"], key.path)
                    except KeyError:  # without a default, or below a section of our own
                        continue
                    assert at(tree, key.path) == default, key.path

    def test_fit_the_strict_schema(self, network):
        checker = jsonschema.Draft202012Validator(json.loads(files_of(network)[STRICT]))
        for name, text in files_of(network).items():
            if name.startswith("references/spec_template"):
                assert [error.json_path for error in checker.iter_errors(yaml.safe_load(text))] == [], name


@pytest.mark.parametrize("network", NETWORKS)
class TestStrict:
    def test_is_a_schema_without_infinity(self, network):
        text = files_of(network)[STRICT]
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        jsonschema.Draft202012Validator.check_schema(json.loads(text))

    def test_takes_the_defaults_and_every_curated_spec(self, network):
        checker = jsonschema.Draft202012Validator(json.loads(files_of(network)[STRICT]))
        trees = [plain(kind_of(network)())]
        trees += [yaml.safe_load(path.read_text("utf-8")) for path in (CONFIGS / network).glob("*.yaml")]
        assert len(trees) > 1
        for tree in trees:
            assert [f"{error.json_path}: {error.message}" for error in checker.iter_errors(tree)] == []

    @pytest.mark.parametrize(
        "wrong",
        [
            {"trian": {}},
            {"train": {"num_epoch": 3}},
            {"train": {"num_epochs": 0}},
            {"train": {"num_epochs": "many"}},
            {"train": {"num_epochs": 2.5}},
            {"train": {"gpu_ids": 0}},
            {"train": {"checkpoint_interval_unit": "hour"}},
            {"export": {"batch_size": -2}},
            {"compat": "no"},
        ],
    )
    def test_refuses(self, network, wrong):
        checker = jsonschema.Draft202012Validator(json.loads(files_of(network)[STRICT]))
        assert list(checker.iter_errors(wrong))

    def test_explains_every_key(self, network):
        schema = json.loads(files_of(network)[STRICT])
        sections = [schema, *schema["$defs"].values()]
        named = {name: node for section in sections for name, node in section.get("properties", {}).items()}
        assert {key.path.rpartition(".")[2] for key in walk(kind_of(network))} <= set(named)
        assert [name for name, node in named.items() if len(node.get("description", "")) < 8] == []


@pytest.mark.parametrize("network", NETWORKS)
class TestReference:
    def test_has_every_key_with_its_meaning(self, network):
        page, kind = files_of(network)[REFERENCE], kind_of(network)
        rows = dict(sections(page))
        for key in walk(kind):
            if key.section is not None:
                continue
            section, _, name = key.path.rpartition(".")
            row = rows[section][name]
            assert " ".join(key.meta.help.split()).replace("|", "\\|") in row
            assert all(str(option).lower() in row.lower() for option in key.options)
            if type(key.default) in (int, float, str) and key.default != "" and not key.meta.has_template:
                assert f"`{key.default}`" in row

    def test_marks_our_own(self, network):
        rows = dict(sections(files_of(network)[REFERENCE]))
        assert "`compile`°" in rows["train"]["compile"]
        assert "°" not in rows["train"]["num_epochs"]

    def test_says_in_which_action_a_key_counts(self, network):
        rows = dict(sections(files_of(network)[REFERENCE]))
        assert "| train |" in rows["train"]["num_epochs"]
        assert "| evaluate |" in rows["evaluate"]["checkpoint"]


def sections(page):
    """The rows of each section's table, by the key's name."""
    for part in ("\n" + page).split("\n## "):
        title, _, text = part.partition("\n")
        rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
        yield ("" if title.startswith("#") or not title else title), rows


@pytest.mark.parametrize("network", NETWORKS)
class TestShorthands:
    def test_name_keys_that_are_there(self, network):
        known = {key.path for key in walk(kind_of(network))}
        for task in tasks_of(network):
            assert len(task.shorthands) >= 28
            assert [path for paths in task.shorthands.values() for path in paths if path not in known] == []
            assert not set(task.shorthands) & set(kind_of(network).model_fields)

    def test_set_their_keys(self, network):
        for task in tasks_of(network):
            start = [f"task={task.name}"] if len(tasks_of(network)) > 1 else []
            source = read_spec(tasks_of(network), None, [*start, "num_epochs=7", "learning_rate=0.25", "batch_size=8"])
            spec = plain(compose(kind_of(network), source).spec)
            for path in (*task.shorthands["learning_rate"], *task.shorthands["batch_size"]):
                assert at(spec, path) == (0.25 if path in task.shorthands["learning_rate"] else 8)
            assert spec["train"]["num_epochs"] == 7
            assert "num_epochs: read as train.num_epochs" in source.notices


def test_a_short_name_follows_the_task_of_the_spec(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("task: classify\n")
    tasks = tasks_of("changenet")
    classify = compose(kind_of("changenet"), read_spec(tasks, spec, ["batch_size=3"])).spec
    assert classify.dataset.classify.batch_size == 3
    segment = compose(kind_of("changenet"), read_spec(tasks, spec, ["batch_size=3", "task=segment"])).spec
    assert (segment.dataset.segment.batch_size, segment.dataset.classify.batch_size) == (3, 8)
    nothing = compose(kind_of("changenet"), read_spec(tasks, None, ["batch_size=3"])).spec  # the default is segment
    assert nothing.dataset.segment.batch_size == 3


class TestAction:
    PROGRAM = (
        "import resource, sys\n"
        "from {package}.__main__ import main\n"
        "sys.argv = ['x', *{arguments!r}]\n"
        "code = 0\n"
        "try: code = main()\n"
        "except SystemExit as end: code = end.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('SECONDS', used.ru_utime + used.ru_stime, 'torch' in sys.modules, code, file=sys.stderr)\n"
    )

    @pytest.mark.parametrize("network", NETWORKS)
    def test_is_quick_and_needs_no_torch(self, network, tmp_path):
        program = self.PROGRAM.format(package=network, arguments=["schema", f"results_dir={tmp_path / 's'}"])
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        line = next(line for line in done.stderr.splitlines() if line.startswith("SECONDS"))
        seconds, torch, code = line.split()[1:]
        assert float(seconds) < 2
        assert (torch, code) in (("False", "0"), ("False", "None"))
        assert (tmp_path / "s" / STRICT).read_text("utf-8") == files_of(network)[STRICT]

    def test_prints_the_strict_schema(self, capsys):
        from fiducial import cli

        assert cli.main(tasks_of("mal"), ["schema"], prog="mal") == 0
        assert capsys.readouterr().out == files_of("mal")[STRICT]

    def test_default_specs_say_what_keys_mean(self, capsys):
        from fiducial import cli

        assert cli.main(tasks_of("mal"), ["default_specs"], prog="mal") == 0
        out = capsys.readouterr().out
        assert yaml.safe_load(out) == plain(kind_of("mal")())
        assert "  # Passes over the training data.\n  num_epochs: 10\n" in out

    def test_every_action_of_a_network_with_keys_has_a_schema(self):
        for network in NETWORKS:
            actions = {schema["x_tao_schema"]["schema_action"] for schema in schemas_of(network).values()}
            runs = {name for name, action in actions_of(tasks_of(network)).items() if action.run is not None} - {
                "automl"
            }
            assert actions == runs & set(kind_of(network).model_fields)
