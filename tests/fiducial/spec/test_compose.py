"""From YAML and overrides to a spec: what is accepted, what is refused, and in which words."""

import pytest
from tiny_task import Spec

from changenet.config import ExperimentSpec
from fiducial.errors import SpecError
from fiducial.spec.compose import compose, parse_path_map, read_source


@pytest.fixture
def composed(tmp_path):
    def build(text="", *overrides, kind=Spec, action="train", **options):
        path = tmp_path / "spec.yaml"
        path.write_text(text or "{}")
        return compose(kind, read_source(kind, path, overrides), action=action, **options)

    return build


def problems(composed, *arguments, **options):
    with pytest.raises(SpecError) as caught:
        composed(*arguments, **options)
    return [str(problem) for problem in caught.value.problems]


class TestLayers:
    def test_defaults_yaml_overrides(self, composed):
        spec = composed("train: {num_epochs: 7, seed: 3}", "train.seed=5", "results_dir=r").spec
        assert (spec.train.num_epochs, spec.train.seed, spec.train.validation_interval) == (7, 5, 1)

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            *(("train.num_epochs=3", 3), ("+train.num_epochs=3", 3), ("++train.num_epochs=3", 3)),
            *(("train.num_epochs='3'", 3), ("~train.num_epochs", 10), ("train={num_epochs: 3}", 3)),
        ],
    )
    def test_grammar(self, composed, text, value):
        assert composed("train: {num_epochs: 5}", text).spec.train.num_epochs == (value if "~" not in text else 10)

    def test_lists(self, composed):
        spec = composed("train: {gpu_ids: [0, 1, 2]}", "train.gpu_ids=[3,4]", "train.gpu_ids[1]=7").spec
        assert spec.train.gpu_ids == [3, 7]

    def test_dicts_merge(self, composed):
        spec = composed(
            "dataset: {segment: {}, classify: {input_map: {a: 0}}}",
            "dataset.classify.input_map.b=1",
            kind=ExperimentSpec,
        ).spec
        assert spec.dataset.classify.input_map == {"a": 0, "b": 1}

    @pytest.mark.parametrize("text", ["train:", "train: ''", "train: null"])
    def test_empty_section_is_its_defaults(self, composed, text):
        made = composed(text, "train.num_epochs=3", "results_dir=r")
        assert made.spec.train.num_epochs == 3
        assert made.spec.results_dir == "r/train"

    def test_blank_means_not_set(self, composed):
        spec = composed("wandb: {tags: '', name: ''}\ntrain: {num_epochs: '', checkpointer: {mode: ''}}").spec
        assert spec.wandb.tags == ["training", "tao-toolkit"]
        assert (spec.wandb.name, spec.train.num_epochs, spec.train.checkpointer.mode) == ("", 10, None)

    def test_missing_marks_count_as_not_set(self, composed):
        made = composed("evaluate:\n  checkpoint: ???")
        assert made.missing == ("evaluate.checkpoint",)
        assert made.spec.evaluate.checkpoint is None

    def test_coercion(self, composed):
        spec = composed("train: {num_epochs: '7', lr: 1, enable_lr_monitor: 'yes'}").spec
        assert (spec.train.num_epochs, spec.train.lr, spec.train.enable_lr_monitor) == (7, 1.0, True)


class TestAliases:
    def test_yaml(self, composed):
        made = composed("train: {learning_rate: 0.2}")
        assert made.spec.train.lr == 0.2
        assert made.notices == ("train.learning_rate: read as train.lr",)

    @pytest.mark.parametrize("text", ["train.learning_rate=0.3", "+train.learning_rate=0.3", "train.lr=0.3"])
    @pytest.mark.parametrize("key", ["lr", "learning_rate"])
    def test_override_wins_under_either_spelling(self, composed, text, key):
        assert composed(f"train: {{{key}: 0.2}}", text).spec.train.lr == 0.3

    def test_of_a_section_in_between(self, composed):
        made = composed(
            "model: {decode_head: {align_corners: false}}", "model.decode_head.align_corner=true", kind=ExperimentSpec
        )
        assert made.spec.model.decode_head.align_corners
        assert "model.decode_head.align_corners: has no effect: " in made.notices[0]

    def test_both_in_yaml(self, composed):
        made = composed("train: {learning_rate: 0.2, lr: 0.3}")
        assert made.spec.train.lr == 0.3
        assert made.notices == ("train.learning_rate: ignored, because train.lr is set too",)


class TestProblems:
    def test_all_at_once(self, composed):
        found = problems(
            composed,
            "train: {num_epochs: 0, gpu_ids: x, sed: 3}\nnum_epochs: 3",
            "train.seed=1.5",
            "a.b.c=[",
            "train.num_epochs.x=1",
        )
        assert len(found) == 7
        assert any(text.startswith("override 'a.b.c=[' · does not parse") for text in found)
        assert "override 'train.num_epochs.x=1' · train.num_epochs is 0, not a section · check the key" in found
        assert "train.num_epochs · found 0 · must be at least 1" in found
        assert "train.sed · unknown key · did you mean train.seed?" in found
        assert "num_epochs · unknown key · this key stands at train.num_epochs" in found

    def test_sweep(self, composed):
        assert "several values (a sweep)" in problems(composed, "", "train.num_epochs=1,2")[0]

    def test_unknown_with_plus(self, composed):
        assert problems(composed, "", "+train.foo=1")[0].startswith("train.foo · unknown key · remove it; train has")

    def test_item_of_a_list(self, composed):
        text = "quantize: {layers: [{module_name: a, wieghts: {dtype: int8}}, {weights: {dtipe: int8}}]}"
        assert problems(composed, text, kind=ExperimentSpec) == [
            "quantize.layers[0].wieghts · unknown key · did you mean quantize.layers[0].weights?",
            "quantize.layers[1].weights.dtipe · unknown key · did you mean quantize.layers[1].weights.dtype?",
        ]

    def test_choice(self, composed):
        (found,) = problems(composed, "train: {checkpoint_interval_unit: epochs}")
        assert found.endswith("use one of 'epoch' or 'step' (did you mean epoch?)")

    def test_a_key_of_several_types_is_one_problem(self, composed):
        (found,) = problems(composed, "train: {compile: fastest}", kind=ExperimentSpec)
        assert found.startswith("train.compile · found 'fastest' · write true or false, or use one of 'default'")

    def test_value_for_a_section(self, composed):
        assert "this is a section with the keys rows, batch_size" in problems(composed, "dataset: 3")[0]
        (found,) = problems(composed, "quantize: {layers: [fc]}", kind=ExperimentSpec)
        assert "quantize.layers[0] · found 'fc' · this is a section with the keys module_name" in found

    def test_fraction_for_a_count(self, composed):
        assert problems(composed, "train: {num_epochs: 5.5}")[0].startswith("train.num_epochs · found 5.5 · ")

    def test_unusual_is_a_warning(self, composed):
        (warning,) = composed("train: {lr: 2}").warnings
        assert str(warning) == "train.lr · found 2 · usual values are 1e-06 … 0.5"

    @pytest.mark.parametrize("text", ["a: [", "- a\n- b", "a: b: c", "'x"])
    def test_bad_yaml(self, composed, text):
        assert "spec.yaml" in problems(composed, text)[0]

    def test_no_file(self, tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            read_source(Spec, tmp_path / "none.yaml", ())


class TestPlaces:
    def test_rebase(self, composed):
        made = composed("results_dir: /r")
        assert (made.spec.results_dir, made.spec.train.results_dir, made.root_dir) == ("/r/train", "/r/train", "/r")

    def test_own_folder_wins(self, composed):
        assert composed("results_dir: /r\ntrain: {results_dir: /t}").spec.results_dir == "/t"

    def test_unset(self, composed):
        assert composed("").spec.results_dir == ""

    def test_interpolation_means_the_action(self, composed):
        made = composed("results_dir: /r\ndataset: {path: '${results_dir}/x'}", action="evaluate")
        assert made.spec.dataset.path == "/r/evaluate/x"

    def test_interpolation_of_what_lies_beside(self, composed, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "x.pth").touch()
        text = f"results_dir: {tmp_path}\nevaluate: {{checkpoint: '${{results_dir}}/train/x.pth'}}"
        made = composed(text, action="evaluate")
        assert made.spec.evaluate.checkpoint == str(tmp_path / "train" / "x.pth")
        assert "does not exist; using" in made.notices[0]

    def test_arithmetic(self, composed):
        assert composed("train: {num_epochs: \"${eval:'2 * (3 + 4)'}\"}").spec.train.num_epochs == 14

    def test_interpolation_of_nothing(self, composed):
        assert problems(composed, "dataset: {path: '${nothing}'}")[0].startswith(
            "dataset.path · interpolation does not"
        )

    def test_map(self, composed):
        mapped = parse_path_map(["/data=./d", "/data/deep/=/x", "/results=/r"])
        text = "results_dir: /results\ndataset: {path: /data/deep/a}"
        made = composed(text, path_map=mapped)
        assert (made.spec.dataset.path, made.spec.results_dir) == ("/x/a", "/r/train")
        assert composed("dataset: {path: /database/a}", path_map=mapped).spec.dataset.path == "/database/a"


class TestFolderOfTheAction:
    """``folder`` names it after the action's section: here, runs of an engine go to a folder of their own."""

    @staticmethod
    def folder(section):
        return "trt_evaluate" if str(section["checkpoint"]).endswith(".engine") else "evaluate"

    @pytest.mark.parametrize(
        ("checkpoint", "name"),
        [("m.pth", "evaluate"), ("m.engine", "trt_evaluate"), ("${dataset.path}.engine", "trt_evaluate")],
    )
    def test_name(self, composed, checkpoint, name):
        text = f"results_dir: /r\ndataset: {{path: x}}\nevaluate: {{checkpoint: '{checkpoint}'}}"
        made = composed(text, action="evaluate", folder=self.folder)
        assert (made.spec.results_dir, made.spec.evaluate.results_dir) == (f"/r/{name}", f"/r/{name}")

    def test_section_is_resolved_and_mapped(self, composed):
        seen = {}
        text = "results_dir: /r\nevaluate: {checkpoint: '${results_dir}/train/a', batch_size: '${dataset.batch_size}'}"
        composed(text, action="evaluate", path_map={"/r": "/here"}, folder=lambda section: str(seen.update(section)))
        assert (seen["checkpoint"], seen["batch_size"], seen["num_gpus"]) == ("/here/train/a", 4, 1)

    def test_own_folder_wins(self, composed):
        text = "results_dir: /r\nevaluate: {results_dir: /e, checkpoint: m.engine}"
        assert composed(text, action="evaluate", folder=self.folder).spec.results_dir == "/e"

    def test_what_does_not_resolve_is_one_problem(self, composed):
        text = "results_dir: /r\nevaluate: {checkpoint: '${nothing}.engine'}"
        (found,) = problems(composed, text, action="evaluate", folder=self.folder)
        assert found.startswith("evaluate.checkpoint · interpolation does not resolve")


def test_no_secret_in_the_echo(composed):
    made = composed("encryption_key: s3cret\ndataset: {path: 'https://me:pw@host/a?sig=123'}", "results_dir=r")
    assert "encryption_key: '********'" in made.yaml
    assert "https://host/a?…" in made.yaml
    assert not [secret for secret in ("s3cret", "pw", "123:") if secret in made.yaml.replace("1234", "")]
