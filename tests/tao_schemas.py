"""What TAO's packaged schemas say, as digests that tests keep: the schemas themselves are not ours to copy.

``python tests/tao_schemas.py`` writes the digests anew from the schemas beside this checkout.
"""

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path

PACKAGED = Path(__file__).parents[1].parent / "shared" / "tao"
"""Where the schemas are, beside a checkout that has them."""


def number(limit: float | str | None) -> float | None:
    return inf if limit == "inf" else limit


def properties(schema: dict, prefix: str = "") -> dict[str, dict]:
    found = {}
    for name, node in schema.get("properties", {}).items():
        if isinstance(node, dict):
            found[prefix + name] = node
            found |= properties(node, f"{prefix}{name}.")
    return found


def facts(node: dict) -> dict:
    """What a packaged schema says of a key, without its descriptions; infinity as TAO writes it, ``inf``."""
    names = ("type", "default", "minimum", "maximum", "enum", "math_cond", "automl_enabled", "popular")
    kept = {name: node[name] for name in (*names, "depends_on", "parent_param", "pattern") if name in node}
    if "properties" in node:  # of a section: what its keys say
        kept = {name: value for name, value in kept.items() if name not in ("default", "popular")}
    return {name: "inf" if value == inf else value for name, value in kept.items()}


def digest(folder: Path, actions: Sequence[str]) -> dict[str, dict[str, dict]]:
    """The facts of each packaged schema; those that all schemas agree on stand once, under ``shared``."""
    told = {}
    for name in actions:
        schema = json.loads((folder / f"{name}.schema.json").read_text())
        told[name] = {path: facts(node) for path, node in properties(schema).items()}
    first, *others = told.values()
    shared = {path: node for path, node in first.items() if all(other.get(path) == node for other in others)}
    own = {name: {path: node for path, node in keys.items() if path not in shared} for name, keys in told.items()}
    return {"shared": shared, **own}


def write_digest(path: Path, told: dict[str, dict[str, dict]]) -> None:
    """Store a digest, one key on each line."""
    blocks = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(path)}: {json.dumps(node)}" for path, node in sorted(keys.items()))
        + "\n  }"
        for name, keys in told.items()
    ]
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


TESTS = Path(__file__).parent
DIGESTS = {
    "tao-train-visual-changenet": (
        TESTS / "changenet" / "tao_schema_digest.json",
        ("train", "evaluate", "inference", "segment_train", "segment_evaluate", "segment_inference"),
    ),
    "tao-train-mask-auto-label": (TESTS / "mal" / "tao_schema_digest.json", ("train", "evaluate", "inference")),
    "tao-train-metric-learning-recognition": (
        TESTS / "mlrecog" / "tao_schema_digest.json",
        ("train", "evaluate", "inference", "export", "gen_trt_engine"),
    ),
}
"""Of each network's folder of schemas, where its digest is kept, and the actions."""

if __name__ == "__main__":
    for network, (kept, actions) in DIGESTS.items():
        write_digest(kept, digest(PACKAGED / network, actions))
