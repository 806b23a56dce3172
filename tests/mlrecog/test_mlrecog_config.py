"""The spec of ML Recog beside TAO's packaged schemas."""

import json

import pytest
import tao_schemas
from tao_schemas import number

from fiducial.spec.knob import walk
from mlrecog.config import ExperimentSpec

KEYS = {key.path: key for key in walk(ExperimentSpec)}
PACKAGED = tao_schemas.PACKAGED / "tao-train-metric-learning-recognition"
DIGEST, ACTIONS = tao_schemas.DIGESTS[PACKAGED.name]

OTHER_CHOICES = {
    "gen_trt_engine.tensorrt.data_type": "in capitals, and without bf16 and fp8; ours takes both spellings"
}
"""Where a packaged schema lists other choices than we document, and why."""


@pytest.fixture(scope="module", params=ACTIONS)
def fields(request):
    """What one packaged schema says of each key."""
    stored = json.loads(DIGEST.read_text())
    return stored["shared"] | stored[request.param]


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
        told |= {path: told[path].lower() for path in OTHER_CHOICES if path in told}
        assert {path: "" if value is None else value for path, value in told.items()} == {p: shown(p) for p in told}

    def test_value_types(self, fields):
        assert {path: KEYS[path].value_type for path in fields} == {p: node["type"] for p, node in fields.items()}

    def test_choices(self, leaves):
        for path, node in leaves.items():
            listed = {choice.lower() if path in OTHER_CHOICES else choice for choice in node.get("enum", ())}
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


def test_the_spelling_of_taos_documents(make_tree, act, tmp_path, capsys):
    tree = make_tree(tmp_path, model__input_channel=3)
    assert act(tree, "check", "train") == 0
    assert "input_channel" in capsys.readouterr().err


def test_an_export_needs_a_checkpoint(make_tree, act, tmp_path, capsys):
    assert act(make_tree(tmp_path), "export") == 1
    assert "export.checkpoint" in capsys.readouterr().err
