"""The spec of MAL beside TAO's packaged schemas, and its two sets of defaults."""

import json

import pytest
import tao_schemas
from pydantic import ValidationError
from tao_schemas import number

from fiducial.spec.knob import walk
from mal.config import ExperimentSpec

KEYS = {key.path: key for key in walk(ExperimentSpec)}
PACKAGED = tao_schemas.PACKAGED / "tao-train-mask-auto-label"
DIGEST, ACTIONS = tao_schemas.DIGESTS[PACKAGED.name]

OTHER_CHOICES = {
    "dataset.type": "coco alone; YOLO and Pascal VOC are ours",
    "model.arch": "without vit-deit-tiny/16, which crashes in TAO",
}
"""Where a packaged schema lists other choices than we document, and why."""
OF_TRAINING = ("train.lr", "train.wd")
"""Keys that the schema of training says more of than the others: it is the one that a search reads."""


@pytest.fixture(scope="module", params=ACTIONS)
def fields(request):
    """What one packaged schema says of each key."""
    stored = json.loads(DIGEST.read_text())
    told = stored["shared"] | stored[request.param]
    return told if request.param == "train" else {path: told[path] for path in told if path not in OF_TRAINING}


@pytest.fixture(scope="module")
def leaves(fields):
    return {path: node for path, node in fields.items() if KEYS[path].section is None}


def shown(path):
    """The value in templates; what is not set is an empty text there."""
    key = KEYS[path]
    value = key.meta.template if key.meta.has_template else key.default
    return "" if value is None else value


class TestPackagedSchemas:
    def test_every_property_is_a_key(self, fields):
        assert len(fields) > 60
        assert [path for path in fields if path not in KEYS] == []

    def test_defaults(self, leaves):
        told = {path: node["default"] for path, node in leaves.items() if "default" in node}
        assert {path: "" if value is None else value for path, value in told.items()} == {p: shown(p) for p in told}

    def test_value_types(self, fields):
        assert {path: KEYS[path].value_type for path in fields} == {p: node["type"] for p, node in fields.items()}

    def test_choices(self, leaves):
        for path, node in leaves.items():
            listed = set(node.get("enum", ()))
            assert listed <= set(KEYS[path].options), path
            assert listed == set(KEYS[path].options) or path in OTHER_CHOICES, path

    def test_ranges(self, leaves):
        assert {p: tuple(number(node.get(end)) for end in ("minimum", "maximum")) for p, node in leaves.items()} == {
            p: KEYS[p].schema_range for p in leaves
        }

    def test_searched_and_popular(self, fields, leaves):
        assert {p: node.get("automl_enabled") for p, node in fields.items()} == {p: KEYS[p].automl for p in fields}
        assert {p for p, node in leaves.items() if node.get("popular")} == {p for p in leaves if KEYS[p].meta.popular}

    @pytest.mark.skipif(not PACKAGED.is_dir(), reason="TAO's packaged schemas are not beside this checkout")
    def test_the_digest_is_theirs(self):
        """``python tests/tao_schemas.py`` writes it anew."""
        assert json.loads(DIGEST.read_text()) == tao_schemas.digest(PACKAGED, ACTIONS)


def test_two_sets_of_defaults():
    """What TAO's code uses when a key is absent, and what its templates show."""
    found = {path: (KEYS[path].default, KEYS[path].meta.template) for path in ("train.batch_size", "train.min_lr_rate")}
    assert found == {"train.batch_size": (3, 1), "train.min_lr_rate": (0.2, 0.02)}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "optim_betas", [0.9, 1.0]),
        ("train", "margin_rate", [0.1]),
        ("train", "mask_thres", []),
        ("train", "mask_thres", [2.0]),
        ("train", "lr", float("nan")),
        ("model", "teacher_momentum", 1.5),
        ("dataset", "type", "csv"),
    ],
)
def test_values_that_cannot_be(section, name, value):
    with pytest.raises(ValidationError):
        ExperimentSpec.model_validate({section: {name: value}})
