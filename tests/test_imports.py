"""Who imports whom, read from the source: imports at the top, within functions and under TYPE_CHECKING all count."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")


def modules_of(root: Path, packages: list[str]) -> dict[str, Path]:
    """The file of every module."""
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    names = [path.relative_to(root).with_suffix("").parts for path in files]
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in zip(names, files, strict=True)}


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """What a file imports by full name; of ``from package import name``, the module ``package.name`` if it is one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in full}
    return found


def graph_of(root: Path, packages: list[str]) -> dict[str, set[str]]:
    """What every module imports, of these packages and of others."""
    modules = modules_of(root, packages)
    return {name: imports_of(path, modules) - {name} for name, path in modules.items()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of modules, the first again at its end; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def reached_from(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything that importing ``start`` may import in the end."""
    seen, waiting = set(), [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


GRAPH = graph_of(ROOT, PACKAGES)


def test_there_is_no_circle():
    assert " -> ".join(circle_in(GRAPH)) == ""


def test_fiducial_knows_no_model_package():
    others = [package for package in PACKAGES if package != "fiducial"]
    assert others
    found = [
        f"{name} imports {imported}"
        for name, imports in GRAPH.items()
        for imported in imports
        if is_of(name, "fiducial") and any(is_of(imported, package) for package in others)
    ]
    assert found == []


@pytest.mark.parametrize("name", sorted(name for name in GRAPH if name.endswith(".model")))
@pytest.mark.parametrize("heavy", ["pytorch_lightning", "lightning", "fiducial.spec"])
def test_a_model_is_plain_torch(name, heavy):
    assert [found for found in reached_from(name, GRAPH) if is_of(found, heavy)] == []


class TestTheGraph:
    """That the tests above would see what they look for."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(**files: str) -> dict[str, set[str]]:
            for name, text in {"__init__": "", **files}.items():
                path = tmp_path / "package" / f"{name}.py"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
            return graph_of(tmp_path, ["package"])

        return write

    def test_names_and_modules(self, write):
        graph = write(a="from package import b\nfrom package.b import thing\nimport numpy.linalg", b="")
        assert graph["package.a"] == {"package.b", "numpy.linalg"}

    @pytest.mark.parametrize(
        "how",
        [
            "from package import a",
            "import package.a",
            "def later():\n    from package.a import thing",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.a import Thing",
        ],
    )
    def test_every_kind_of_import_closes_a_circle(self, write, how):
        circle = circle_in(write(a="import package.b", b=how))
        assert len(circle) == 3
        assert set(circle) == {"package.a", "package.b"}

    def test_no_circle(self, write):
        assert circle_in(write(a="import package.b", b="import package.c", c="")) == []

    def test_reach(self, write):
        graph = write(a="import package.b", b="import package.c", c="import torch")
        assert reached_from("package.a", graph) == {"package.b", "package.c", "torch"}
