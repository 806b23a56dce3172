"""The Python of README passes a strict type check, and every name in it has a type."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def assigned(code: str) -> list[str]:
    targets = [node.targets[0] for node in ast.parse(code).body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def checked(folder: Path, snippets: list[str]) -> subprocess.CompletedProcess[str]:
    """What mypy says of every snippet, each a module of its own, with the type of each name that it assigns."""
    for number, code in enumerate(snippets):
        revealed = "".join(f"reveal_type({name})\n" for name in assigned(code))
        (folder / f"snippet_{number}.py").write_text(code + revealed, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    files = sorted(map(str, folder.glob("*.py")))
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_snippets(tmp_path):
    done = checked(tmp_path, SNIPPETS)
    assert done.returncode == 0, done.stdout
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(types) == sum(len(assigned(code)) for code in SNIPPETS) > 3
    assert "Any" not in types, done.stdout  # what a package does not declare may pass as that


@pytest.mark.slow
def test_a_mistake_is_found(tmp_path):
    code = "import changenet\n\nmodel = changenet.build_classifier(backbone=1)\n"
    assert 'Argument "backbone"' in checked(tmp_path, [code]).stdout
