"""Whatever a spec file or an override holds, what comes out is a spec or a UserError, and soon."""

import os
import string
from contextlib import suppress

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_task import Spec

from changenet.classify.task import CLASSIFY
from changenet.config import ExperimentSpec
from fiducial.errors import UserError
from fiducial.spec.compose import compose, read_source
from fiducial.spec.knob import walk
from mal.task import MAL
from mlrecog.task import ML_RECOG

KEYS = sorted(key.path for key in walk(ExperimentSpec))
RECOG_KEYS = sorted(key.path for key in walk(ML_RECOG.spec_model()))
MAL_KEYS = ["gpus", "num_nodes", "strategy", "checkpoint", "mal", "autolabel_type", "num_workers", "batch_size"]
EXAMPLES = int(os.environ.get("FIDUCIAL_FUZZ_EXAMPLES", "60"))
"""Of each test; ``scripts/bench/fuzz_specs.py`` asks for thousands."""
BOUNDED = settings(
    max_examples=EXAMPLES, deadline=20_000, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES == 60
)

REFERENCES = [
    *("${", "${}", "${a}", "${.b}", "${..a}", "${a[0]}", "${a}${a}", "\\${a}", "${a:${b}}", "${${a}}", "${train}"),
    *("${oc.env:HOME}", "${oc.env:NONE}", "${oc.env:NONE,x}", "${oc.env:}", "${eval:'1/0'}", "${eval:1e999}"),
    *("${oc.decode:'{a:'}", "${oc.select:a,1}", "${none:1}", "${oc.create:{}}", "${oc.dict.keys:a}"),
    *("${results_dir}/x", "${clearml}", "${clearml.a}", "???", "~"),
]
references = st.sampled_from([*REFERENCES, "", "\0", "\ud800", "a" * 300])
numbers = st.integers() | st.floats() | st.sampled_from([2**64, -(2**64), 10**400])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | references
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b", "train", "seed", "compat"]) | st.text(max_size=4), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def outcome(kind, spec, overrides=(), unwrap=None):
    """Compose a spec; only a UserError may come out."""
    with suppress(UserError):
        compose(kind, read_source(kind, spec, overrides, unwrap=unwrap), action="train", path_map={"/data": "./d"})


def nested(pairs):
    """A tree with values at dotted keys, as far as they do not stand in each other's way."""
    spec = {}
    for path, value in pairs:
        *parents, last = path.split(".")
        node = spec
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node[last] = value
    return spec


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "spec.yaml"


class TestFiles:
    @BOUNDED
    @given(st.text(alphabet=string.printable + "ä\u2028\x85", max_size=80))
    def test_text(self, file, text):
        file.write_text(text, encoding="utf-8")
        outcome(Spec, file)

    @BOUNDED
    @given(st.binary(max_size=60))
    def test_bytes(self, file, content):
        file.write_bytes(content)
        outcome(Spec, file)

    marks = "{}[]&*!|>'\"%@`?:-,# \n"
    pieces = [*marks, "- ", ": ", "a", "&a ", "*a", "<<: ", "!!int ", "!!python/object:os.system ", "1", ".nan", "'x'"]

    @BOUNDED
    @given(st.lists(st.sampled_from([*pieces, "train: ", "\n  ", "~", "0x", "!!binary ", "---\n"]), max_size=20))
    def test_pieces_of_yaml(self, file, pieces):
        file.write_text("".join(pieces), encoding="utf-8")
        outcome(Spec, file)


class TestValues:
    @BOUNDED
    @given(st.lists(st.tuples(st.sampled_from(KEYS), trees), max_size=4))
    def test_any_value_at_any_key(self, pairs):
        outcome(ExperimentSpec, nested(pairs), unwrap=CLASSIFY.unwrap)

    @BOUNDED
    @given(st.lists(st.tuples(st.sampled_from(RECOG_KEYS), trees), max_size=4))
    def test_any_value_at_any_key_of_ml_recog(self, pairs):
        outcome(ML_RECOG.spec_model(), nested(pairs), unwrap=ML_RECOG.unwrap)

    @BOUNDED
    @given(st.dictionaries(st.sampled_from([*MAL_KEYS, "model", "train", "inference", "dataset"]), trees, max_size=4))
    def test_wrapped_specs(self, spec):
        outcome(MAL.spec_model(), spec, unwrap=MAL.unwrap)

    @BOUNDED
    @given(trees)
    def test_written_and_read_again(self, file, tree):
        try:
            file.write_text(yaml.safe_dump({"clearml": tree}), encoding="utf-8")
        except (ValueError, UnicodeError):  # numbers of too many digits, lone surrogates
            return
        outcome(Spec, file)


class TestOverrides:
    @BOUNDED
    @given(st.text(alphabet=string.printable + "ä", max_size=30))
    def test_text(self, text):
        outcome(Spec, {}, [text])

    tokens = [
        "train",
        ".",
        "seed",
        "=",
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        ",",
        ":",
        "$",
        "${a}",
        "~",
        "+",
        "++",
        "1",
        "null",
    ]

    @BOUNDED
    @given(
        st.lists(st.sampled_from([*tokens, "choice(", ")", "nan", "-inf", "9" * 500, "\\", " ", "@", "/"]), max_size=10)
    )
    def test_tokens(self, tokens):
        outcome(Spec, {"train": {"seed": 3}}, ["".join(tokens)])

    @BOUNDED
    @given(st.sampled_from(KEYS), st.sampled_from(["", "[0]", "[99999]", ".x"]), st.text(max_size=6) | references)
    def test_any_key(self, key, item, value):
        outcome(ExperimentSpec, {}, [f"{key}{item}={value}", f"{key}{item}='{value}'", f"~{key}"])
