"""The spec of ChangeNet: run-time defaults, what TAO specs may contain, and agreement with TAO's packaged schemas."""

import json
import subprocess
import sys
from functools import reduce
from math import inf

import pytest
import tao_schemas
from pydantic import ValidationError
from tao_schemas import number

from changenet.config import ExperimentSpec
from fiducial.spec.knob import Key, plain, walk

KEYS = {key.path: key for key in walk(ExperimentSpec)}
SHOWN_KEYS = KEYS | {item.path: item for key in KEYS.values() for item in key.items()}
PACKAGED = tao_schemas.PACKAGED / "tao-train-visual-changenet"
DIGEST, ACTIONS = tao_schemas.DIGESTS[PACKAGED.name]

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


def template_value(path: str) -> object:
    """What a template of TAO's shows for a key: unset is blank there."""
    value = shown(SHOWN_KEYS[path])
    return "" if value is None else value


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


class TestNumbers:
    FLOATS = sorted(key.path for key in walk(ExperimentSpec) if key.value_type == "float")
    LISTS = (
        *("dataset.classify.augmentation_config.rgb_input_mean", "dataset.segment.augmentation.std"),
        *("train.classify.cls_weight", "train.segment.weights", "train.segment.class_weights", "train.optim.betas"),
    )

    @staticmethod
    def spec(path, value):
        return reduce(lambda inner, part: {part: inner}, reversed(path.split(".")), value)

    @pytest.mark.parametrize("number", [float("nan"), inf, -inf, "nan", "-inf", "1e999"])
    def test_none_is_a_number_that_is_none(self, number):
        assert len(self.FLOATS) > 20
        cases = [(path, number) for path in self.FLOATS]
        cases += [(path, [number] * len(KEYS[path].default or [1, 1])) for path in self.LISTS]
        for path, value in cases:
            with pytest.raises(ValidationError):
                ExperimentSpec.model_validate(self.spec(path, value))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            *(("train.optim.betas", value) for value in ([0.9, 5], [0.9, 1], [-0.1, 0.9], [0.9])),
            *(
                ("train.seed", 2**32),
                ("train.seed", -(2**40)),
                ("train.num_gpus", 20_000_000),
                ("train.num_nodes", 10**9),
            ),
            *(("train.gpu_ids", value) for value in ([-1], [5000], [0, 0], list(range(2000)))),
            *(("export.gpu_id", 10**6), ("dataset.classify.workers", 10**6), ("dataset.segment.batch_size", 10**9)),
            *(
                ("dataset.classify.image_width", 10**9),
                ("dataset.segment.img_size", 10**9),
                ("train.num_epochs", 10**12),
            ),
            *(("dataset.classify.num_classes", 10**9), ("dataset.classify.num_golden", 10**9)),
            *(("dataset.segment.windows.per_image", 10**9), ("evaluate.bootstrap", 10**9)),
        ],
    )
    def test_refused(self, path, value):
        with pytest.raises(ValidationError, match=path):
            ExperimentSpec.model_validate(self.spec(path, value))

    @pytest.mark.parametrize(
        ("path", "value"), [("train.seed", 2**32 - 1), ("train.seed", -1), ("train.gpu_ids", [7, 3])]
    )
    def test_accepted(self, path, value):
        ExperimentSpec.model_validate(self.spec(path, value))


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
        assert spec.wandb.project == "TAO Toolkit"
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
# Where a packaged schema lists other choices than we document, and why.
OTHER_CHOICES = {
    "model.backbone.type": "without C-RADIO",
    "train.segment.loss": "ce alone; the other losses run in TAO, too",
    "train.precision": "none are listed",
}


def without_missing(values: object) -> object:
    """Spec values without those that are still to be filled in."""
    if not isinstance(values, dict):
        return values
    return {name: without_missing(value) for name, value in values.items() if value != "???"}


@pytest.fixture(scope="module", params=ACTIONS)
def fields(request):
    """What one packaged schema says of each key."""
    stored = json.loads(DIGEST.read_text())
    return stored["shared"] | stored[request.param]


@pytest.fixture(scope="module")
def leaves(fields):
    return {path: node for path, node in fields.items() if SHOWN_KEYS[path].section is None}


class TestPackagedSchemas:
    def test_every_property_is_a_key(self, fields):
        assert len(fields) > 170
        assert [path for path in fields if path not in SHOWN_KEYS] == []

    def test_defaults(self, leaves):
        wrong = {
            path: (node["default"], shown(SHOWN_KEYS[path]))
            for path, node in leaves.items()
            if "default" in node and path not in SHOWN_OTHERWISE and node["default"] != template_value(path)
        }
        assert wrong == {}

    def test_value_types(self, fields):
        assert {path: SHOWN_KEYS[path].value_type for path in fields} == {p: node["type"] for p, node in fields.items()}

    def test_choices(self, leaves):
        for path, node in leaves.items():
            for value in node.get("enum", ()):
                assert accepts(path, value) == value, path
        assert {path: set(node.get("enum", ())) for path, node in leaves.items() if path not in OTHER_CHOICES} == {
            path: set(SHOWN_KEYS[path].options) for path in leaves if path not in OTHER_CHOICES
        }

    def test_ranges(self, leaves):
        assert {p: tuple(number(node.get(end)) for end in ("minimum", "maximum")) for p, node in leaves.items()} == {
            p: SHOWN_KEYS[p].schema_range for p in leaves
        }

    @pytest.mark.parametrize("name", ["math_cond", "depends_on", "parent_param", "pattern"])
    def test_what_the_search_and_forms_need(self, fields, name):
        assert {path: node[name] for path, node in fields.items() if name in node} == {
            path: found for path in fields if (found := getattr(SHOWN_KEYS[path].meta, name))
        }

    def test_searched_and_popular(self, fields, leaves):
        assert {p: node.get("automl_enabled") for p, node in fields.items()} == {
            p: SHOWN_KEYS[p].automl for p in fields
        }
        assert {p for p, node in leaves.items() if node.get("popular")} == {
            p for p in leaves if SHOWN_KEYS[p].meta.popular
        }

    def test_the_default_tree_is_a_spec(self, leaves):
        tree = {}
        for path, node in leaves.items():
            if "default" in node and path in KEYS:
                *parents, name = path.split(".")
                reduce(lambda inner, part: inner.setdefault(part, {}), parents, tree)[name] = node["default"]
        assert {"model", "dataset", "train"} <= tree.keys()
        ExperimentSpec.model_validate(without_missing(tree))

    def test_items_are_not_searched_by_default(self):
        """TAO flags ``cls_weight[1]`` as searchable, and does not list it among what is searched by default."""
        assert len([path for path, key in KEYS.items() if key.automl]) == 33
        assert SHOWN_KEYS["train.classify.cls_weight[1]"].automl

    @pytest.mark.skipif(not PACKAGED.is_dir(), reason="TAO's packaged schemas are not beside this checkout")
    def test_the_digest_is_theirs(self):
        """``python tests/tao_schemas.py`` writes it anew."""
        assert json.loads(DIGEST.read_text()) == tao_schemas.digest(PACKAGED, ACTIONS)
