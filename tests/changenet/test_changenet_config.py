"""The spec of ChangeNet: run-time defaults, what TAO specs may contain, and agreement with TAO's packaged schemas."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from changenet.config import ExperimentSpec
from fiducial.spec.knob import Key, plain, walk

KEYS = {key.path: key for key in walk(ExperimentSpec)}
PACKAGED = Path(__file__).parents[2].parent / "shared" / "tao" / "tao-train-visual-changenet"
ACTIONS = ("train", "evaluate", "inference", "segment_train", "segment_evaluate", "segment_inference")

RUN_TIME_DEFAULTS = {
    "task": "segment",
    "results_dir": "",
    "wandb.name": "TAO Toolkit training experiment",
    "wandb.tags": ["training", "tao-toolkit"],
    "model.backbone.type": "fan_small_12_p4_hybrid",
    "model.backbone.pretrained_backbone_path": None,
    "model.decode_head.feature_strides": [4, 8, 16, 16],
    "model.decode_head.decoder_params.embed_dim": 256,
    "model.decode_head.use_summary_token": False,
    "model.classify.eval_margin": 2.0,
    "model.classify.embed_dec": 5,
    "model.classify.difference_module": "euclidean",
    "dataset.classify.image_ext": ".jpg",
    "dataset.classify.num_input": 8,
    "dataset.classify.input_map": None,
    "dataset.classify.concat_type": None,
    "dataset.classify.grid_map": None,
    "dataset.classify.workers": 8,
    "dataset.classify.augmentation_config.rgb_input_std": [0.229, 0.224, 0.225],
    "dataset.classify.augmentation_config.augment": False,
    "dataset.segment.workers": 8,
    "dataset.segment.img_size": 224,
    "dataset.segment.label_transform": "norm",
    "dataset.segment.predict_split": "test",
    "dataset.segment.augmentation.std": [0.5, 0.5, 0.5],
    "train.seed": 1234,
    "train.num_epochs": 10,
    "train.checkpointer.monitor": None,
    "train.checkpointer.save_top_k": 1,
    "train.classify.loss": "contrastive",
    "train.segment.weights": [0.5, 0.5, 0.5, 0.8, 1.0],
    "train.optim.lr": 1e-4,
    "train.optim.weight_decay": 0.01,
    "train.precision": "32-true",
    "train.tensorboard.infrequent_logging_frequency": 2,
    "evaluate.batch_size": -1,
    "evaluate.vis_after_n_batches": 16,
    "inference.vis_after_n_batches": 16,
    "export.input_width": 224,
    "export.opset_version": 17,
    "export.batch_size": -1,
    "quantize.backend": "torchao",
    "quantize.mode": "weight_only_ptq",
    "gen_trt_engine.tensorrt.data_type": "fp32",
    "gen_trt_engine.tensorrt.max_batch_size": 8,
    "compat": "off",
}

TEMPLATES = {
    "wandb.name": "TAO Toolkit Training",
    "dataset.classify.augmentation_config.rgb_input_std": [0.226, 0.226, 0.226],
    "dataset.classify.concat_type": "linear",
    "dataset.classify.grid_map": {"x": 2, "y": 2},
    "dataset.classify.input_map": {"LowAngleLight": 0, "SolderLight": 1, "UniformLight": 2, "WhiteLight": 3},
    "dataset.classify.num_input": 4,
    "dataset.classify.workers": 1,
    "dataset.segment.workers": 1,
    "evaluate.batch_size": 8,
    "evaluate.vis_after_n_batches": 1,
    "evaluate.checkpoint": "???",
    "train.checkpointer.mode": "min",
}


def value_at(spec: object, path: str) -> object:
    for name in path.split("."):
        spec = getattr(spec, name)
    return plain(spec)


def nested(path: str, value: object) -> dict:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def accepts(path: str, value: object) -> object:
    """The value that the spec holds after it was given ``value`` at ``path``."""
    return value_at(ExperimentSpec.model_validate(nested(path, value)), path)


def shown(key: Key) -> object:
    """What a template shows for a key."""
    return key.meta.template if key.meta.has_template else plain(key.default)


def bounds(key: Key) -> tuple[set, set]:
    """Every lower and upper limit that is declared for a key, hard or usual."""
    usual = key.meta.usual or (None, None)
    hard = key.info.metadata
    low = {getattr(item, name) for item in hard for name in ("ge", "gt") if hasattr(item, name)} | {usual[0]}
    high = {getattr(item, name) for item in hard for name in ("le", "lt") if hasattr(item, name)} | {usual[1]}
    return low - {None}, high - {None}


class TestDefaults:
    @pytest.mark.parametrize(("path", "value"), RUN_TIME_DEFAULTS.items())
    def test_run_time(self, path, value):
        assert value_at(ExperimentSpec(), path) == value

    @pytest.mark.parametrize(("path", "value"), TEMPLATES.items())
    def test_template(self, path, value):
        assert KEYS[path].meta.template == value

    def test_every_default_is_valid(self):
        spec = ExperimentSpec()
        assert ExperimentSpec.model_validate(plain(spec)) == spec

    @pytest.mark.parametrize("key", [key for key in KEYS.values() if key.meta.has_template], ids=lambda key: key.path)
    def test_every_template_is_valid(self, key):
        if key.meta.template != "???":
            accepts(key.path, key.meta.template)

    def test_specs_share_no_mutable_default(self):
        first, second = ExperimentSpec(), ExperimentSpec()
        first.train.gpu_ids.append(1)
        assert second.train.gpu_ids == [0]

    def test_every_key_has_help(self):
        assert [path for path, key in KEYS.items() if len(key.meta.help) < 8 or not key.meta.help.endswith(".")] == []

    def test_aliases_are_no_keys(self):
        taken = [
            f"{path}: {alias}"
            for path, key in KEYS.items()
            for alias in key.meta.aliases
            if f"{path.rpartition('.')[0]}.{alias}" in KEYS
        ]
        assert taken == []


class TestValues:
    @pytest.mark.parametrize(
        ("path", "given", "held"),
        [
            ("results_dir", None, ""),
            ("train.results_dir", "", None),
            ("evaluate.checkpoint", "", None),
            ("evaluate.checkpoint", "a.pth", "a.pth"),
            ("dataset.classify.image_ext", None, ".jpg"),
            ("dataset.classify.concat_type", "", None),
            ("dataset.classify.input_map", {"SolderLight": "0"}, {"SolderLight": 0}),
            ("dataset.segment.label_transform", None, "None"),
            ("dataset.segment.label_transform", "raw", "raw"),
            ("dataset.segment.data_name", "LEVIR-CD", "LEVIR-CD"),
            ("dataset.segment.color_map", {0: [0, 0, 0], "1": [255, 255, 255]}, {"0": [0, 0, 0], "1": [255, 255, 255]}),
            ("dataset.segment.color_map", {}, None),
            ("model.backbone.type", "c_radio_v2_vit_base_patch16_224", "c_radio_v2_vit_base_patch16_224"),
            ("train.precision", 32, "32"),
            ("train.num_epochs", "7", 7),
            ("train.optim.betas", [0.9, 0.99], [0.9, 0.99]),
            ("train.seed", -5, -5),
            ("train.checkpointer.mode", "", None),
            ("quantize.backend", "modelopt", "modelopt.pytorch"),
            ("quantize.device", "cuda:1", "cuda:1"),
            ("gen_trt_engine.tensorrt.data_type", "FP16", "fp16"),
            ("gen_trt_engine.tensorrt.calibration.cal_image_dir", "images", ["images"]),
            ("compat", False, "off"),
            ("clearml", {"project": "x"}, {"project": "x"}),
        ],
    )
    def test_accepted(self, path, given, held):
        assert accepts(path, given) == held

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("task", "detect"),
            ("train.num_epochs", 0),
            ("train.num_epochs", 5.5),
            ("train.optim.lr", -1.0),
            ("train.optim.optim", "lion"),
            ("train.unknown", 1),
            ("model.classify.learnable_difference_modules", 5),
            ("dataset.classify.augmentation_config.rgb_input_mean", [0.5, 0.5]),
            ("dataset.classify.augmentation_config.random_color.hue", 0.6),
            ("dataset.classify.augmentation_config.rgb_input_std", [0.2, 0.2, 0.0]),
            ("dataset.classify.augmentation_config.random_rotate.angle_list", []),
            ("dataset.segment.augmentation.with_scale_random_crop.scale_range", [1.2]),
            ("dataset.segment.color_map", {"0": [0, 0, 256]}),
            ("train.segment.weights", [1.0]),
            ("quantize.device", "cuda:x"),
        ],
    )
    def test_refused(self, path, value):
        with pytest.raises(ValidationError, match=path.rpartition(".")[2]):
            accepts(path, value)

    @pytest.mark.parametrize("empty", [None, ""])
    def test_an_empty_section_means_its_defaults(self, empty):
        spec = ExperimentSpec.model_validate({"wandb": empty, "train": {"optim": empty, "num_epochs": 3}})
        assert spec.wandb.enable
        assert spec.train.optim.lr == 1e-4
        assert spec.train.num_epochs == 3

    def test_quantize_layers(self):
        entry = {"module_name": "Linear", "weights": {"dtype": "float8_e4m3fn", "quant_axis": 0}}
        (layer,) = accepts("quantize.layers", [entry])
        assert layer["weights"]["dtype"] == "fp8_e4m3fn"
        assert layer["activations"] is None

    def test_importing_needs_no_torch(self):
        code = "import sys, changenet.config; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestOwnKeys:
    @pytest.mark.parametrize(
        ("path", "default"),
        [
            ("dataset.classify.align", "none"),
            ("dataset.classify.augmentation_config.radio_normalization", "auto"),
            ("dataset.classify.group_by", None),
            ("dataset.classify.golden_cache_mb", 256),
            ("model.backbone.activation_checkpointing", False),
            ("model.precise_msda", False),
            ("train.keep_checkpoints", None),
            ("train.enable_lr_monitor", False),
            ("evaluate.bootstrap", 1000),
            ("evaluate.random_goldens", False),
            ("evaluate.golden_cache_mb", 1024),
            ("evaluate.is_quantized", False),
            ("inference.is_quantized", False),
            ("export.is_quantized", False),
            ("export.overwrite", False),
            ("export.deformable_attention", "gather"),
        ],
    )
    def test_default_and_absence_from_generated_schemas(self, path, default):
        assert KEYS[path].default == default
        assert not KEYS[path].meta.schema

    @pytest.mark.parametrize(
        ("path", "alias"),
        [
            ("model.decode_head.align_corners", "align_corner"),
            ("model.decode_head.decoder_params.embed_dim", "embed_dims"),
            ("model.classify.difference_module", "diff_module"),
            ("train.classify.cls_weight", "cls_weights"),
            ("dataset.classify.image_width", "input_width"),
            ("dataset.classify.image_height", "input_height"),
            ("dataset.classify.augmentation_config.random_color.enable", "enabled"),
            ("dataset.segment.augmentation.random_color.enable", "enabled"),
        ],
    )
    def test_spellings_of_the_documents(self, path, alias):
        assert alias in KEYS[path].meta.aliases

    @pytest.mark.parametrize(
        "path",
        [
            "model.decode_head.in_channels",
            "model.decode_head.align_corners",
            "dataset.classify.augmentation_config.with_scale_random_crop.enable",
            "dataset.segment.shuffle",
            "clearml",
        ],
    )
    def test_keys_without_effect_say_why(self, path):
        assert KEYS[path].meta.ignored


# Where a packaged schema shows another value than our templates, and why.
SHOWN_OTHERWISE = {
    "task": "the evaluate and inference schemas show classify; the action's name decides in a template",
}
# Properties of a packaged schema that are no keys of a spec, and why.
NOT_A_KEY = {
    "train.classify.cls_weight[1]": "an element of train.classify.cls_weight, named so that a search can vary it alone",
}
# Limits of a packaged schema that TAO's own defaults break, and why.
OTHER_LIMITS = {
    "evaluate.batch_size": "-1, the run-time default, is below the packaged minimum of 1",
    "inference.batch_size": "-1, the run-time default, is below the packaged minimum of 1",
}


def properties(schema: dict, prefix: str = "") -> dict[str, dict]:
    found = {}
    for name, node in schema.get("properties", {}).items():
        if isinstance(node, dict):
            found[prefix + name] = node
            found |= properties(node, f"{prefix}{name}.")
    return found


def without_missing(values: object) -> object:
    """Spec values without those that are still to be filled in."""
    if not isinstance(values, dict):
        return values
    return {name: without_missing(value) for name, value in values.items() if value != "???"}


@pytest.fixture(scope="module", params=ACTIONS)
def schema(request):
    return json.loads((PACKAGED / f"{request.param}.schema.json").read_text())


@pytest.fixture(scope="module")
def fields(schema):
    return {path: node for path, node in properties(schema).items() if path not in NOT_A_KEY}


@pytest.mark.skipif(not PACKAGED.is_dir(), reason="TAO's packaged schemas are not beside this checkout")
class TestPackagedSchemas:
    def test_every_property_is_a_key(self, fields):
        assert len(fields) > 170
        assert [path for path in fields if path not in KEYS] == []

    def test_defaults(self, fields):
        wrong = {
            path: (node["default"], shown(KEYS[path]))
            for path, node in fields.items()
            if "default" in node
            and "properties" not in node
            and path not in SHOWN_OTHERWISE
            and node["default"] != ("" if shown(KEYS[path]) is None else shown(KEYS[path]))
        }
        assert wrong == {}

    def test_enums(self, fields):
        for path, node in fields.items():
            for value in node.get("enum", ()):
                assert accepts(path, value) == value, path

    def test_bounds(self, fields):
        wrong = {}
        for path, node in fields.items():
            low, high = bounds(KEYS[path])
            for name, declared in (("minimum", low), ("maximum", high)):
                limit = node.get(name, float("inf"))
                if limit != float("inf") and limit not in declared and path not in OTHER_LIMITS:
                    wrong[path] = (name, limit, declared)
        assert wrong == {}

    def test_conditions_of_the_search(self, fields):
        assert {path: node["math_cond"] for path, node in fields.items() if "math_cond" in node} == {
            path: KEYS[path].meta.math_cond for path in fields if KEYS[path].meta.math_cond
        }

    def test_searched_and_popular(self, fields):
        leaves = {path: node for path, node in fields.items() if node["type"] != "collection"}
        assert {p for p, node in leaves.items() if node.get("automl_enabled")} == {
            p for p in leaves if KEYS[p].meta.automl
        }
        assert {p for p, node in leaves.items() if node.get("popular")} == {p for p in leaves if KEYS[p].meta.popular}

    def test_the_default_tree_is_a_spec(self, schema):
        ExperimentSpec.model_validate(without_missing(schema["default"]))
