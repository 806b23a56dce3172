"""That the shared floor knows no network: none of their names, of their data's words and of their metrics."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fiducial"
FILES = sorted(PACKAGE.rglob("*.py"))
BACKBONES = PACKAGE / "backbones"
"""A backbone's own file may say which network it comes from."""
NETWORKS = r"change_?net|\bmal\b|mask.auto.?label|\b(ml|metric.learning).?recog|siamese|\bvisual_"
WORDS = r"\bcsv\b|\bgoldens?\b|\bpairs? of\b|image pair|\bsegment(er|ation)?s?\b|\bclassif(y|ier)\b|\blights\b"
METRICS = r"\b(val|test)_(?!mode)[a-z]\w*\b|\b(miou|auroc|fpr|fnr|mf1)\b"
ALLOWED = {
    "val_alias": "a part of the metric table",
    **dict.fromkeys(("val_dataloader", "test_step", "val_loop"), "Lightning's words"),
    "val_interval": "TAO 5's name of train.validation_interval",
    "val_loss": "TAO's template of train.checkpointer.monitor",
}


def found(pattern: str, path: Path) -> list[str]:
    hits = re.finditer(pattern, path.read_text("utf-8"), re.IGNORECASE)
    return [f"{path.name}: {hit.group()}" for hit in hits if hit.group().lower() not in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_word_of_a_network(path):
    words = [*found(WORDS, path), *found(METRICS, path)]
    names = [] if path.is_relative_to(BACKBONES) else found(NETWORKS, path)
    assert words + names == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (NETWORKS, "the ChangeNet checkpoint, MAL, ml_recog, a siamese network, visual_changenet"),
        (WORDS, "rows of a CSV, their golden, pairs of images, task segment, classify, the lights"),
        (METRICS, "val_far, test_acc, mIoU"),
    ],
)
def test_the_patterns_see_what_they_look_for(pattern, text):
    parts = text.split(", ")
    assert all(re.search(pattern, part, re.IGNORECASE) for part in parts)
