"""What the gallery's page says is so."""

import re
from pathlib import Path

import yaml

from fiducial.spec.knob import walk
from mlrecog.config import ExperimentSpec

PAGE = (Path(__file__).parents[2] / "docs" / "mlrecog-gallery.md").read_text("utf-8")


def test_its_python_runs(capsys):
    exec("".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), {})
    assert "['cola', 'lemonade']" in capsys.readouterr().out


def test_its_keys_and_its_spec_exist():
    keys = {key.path for key in walk(ExperimentSpec)}
    assert set(re.findall(r"gallery\.([a-z_]+)(?==)", PAGE)) <= {key.removeprefix("gallery.") for key in keys}
    assert set(re.findall(r"`((?:inference|dataset)\.[a-z_.]+)", PAGE)) <= keys
    for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        ExperimentSpec.model_validate(yaml.safe_load(text))
