"""pyproject.toml declares every package that is imported, in the place where it is needed, and no other."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = ("fiducial", "changenet", "mal", "mlrecog")

DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "google": "protobuf",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "modelopt": "nvidia-modelopt",
    "pydantic_core": "pydantic-core",
    "pytorch_lightning": "pytorch-lightning",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    "tensorrt_rtx_libs": "tensorrt-rtx-cu13-libs",
    "yaml": "pyyaml",
}
"""Import names of distributions that are called otherwise."""

UNDER_THE_HOOD = {
    "aiobotocore": "bounds boto3, which pip would otherwise try in hundreds of versions beside s3fs",
    "onnxscript": "torch.onnx.export builds its graphs with it",
    "tensorboard": "Lightning's TensorBoardLogger writes with it",
    "mypy": "make lint",
    "psycopg": "SQLAlchemy reaches PostgreSQL with it, in the tests of searches",
    "ruff": "make lint",
    "pytest-xdist": "make test",
    "tritonclient": "tests take Triton's own schema out of it",
    "types-pyyaml": "make lint",
}
"""Declared although nothing of ours imports them."""

NOT_DECLARED = {
    "eff": "only in NVIDIA's containers",
    "triton": "comes with torch where it runs",
}
LOADED_ON_DEMAND = {ROOT / "fiducial" / "ops" / "triton_kernel.py"}


class Import(NamedTuple):
    name: str
    file: Path
    lazy: bool  # in a function, or for type checkers alone
    extra: str | None = None  # of ``optional("name", extra="...")``
    typing: bool = False  # for type checkers alone

    @property
    def distribution(self) -> str:
        return DISTRIBUTIONS.get(self.name, self.name).lower()


def imports(node: ast.AST, file: Path, *, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    """Imports of foreign packages below a node; relative ones are our own."""
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        checked = typing or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        inside = inside or checked
        match child:
            case ast.Import(names=names):
                yield from (Import(alias.name.partition(".")[0], file, lazy, None, typing) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield Import(module.partition(".")[0], file, lazy, None, typing)
            case ast.Call(
                func=ast.Name(id="optional"),
                args=[ast.Constant(value=str(module))],
                keywords=[ast.keyword(value=extra)],
            ):
                yield Import(module.partition(".")[0], file, lazy, ast.literal_eval(extra))
            case ast.Call(func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value=str(module))]):
                yield Import(module.partition(".")[0], file, lazy)
        yield from imports(child, file, lazy=inside, typing=checked)


def foreign(*folders: str) -> list[Import]:
    """Every import of those folders or files that is neither Python's nor this repository's."""
    files = [
        file for folder in folders for file in ((ROOT / folder).rglob("*.py") if "." not in folder else [ROOT / folder])
    ]
    local = {*OURS, *(path.stem for place in ("scripts", "tests") for path in (ROOT / place).rglob("*"))}
    found = [found for file in files for found in imports(ast.parse(file.read_text("utf-8")), file)]
    assert len(found) > len(files) / 2
    return [found for found in found if found.name not in sys.stdlib_module_names and found.name not in local]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements} - {"fiducial"}


REQUIRED = names(PROJECT["dependencies"])
EXTRAS = {extra: names(needed) for extra, needed in PROJECT["optional-dependencies"].items()}
DEV = EXTRAS.pop("dev")
OF_OTHERS = {
    "quantize": {
        *("cppimport", "lief", "ml_dtypes", "onnx-graphsurgeon", "onnxconverter-common", "onnxslim", "polygraphy"),
    },
}
"""Of an extra, what its packages import without declaring it (modelopt for graphs)."""


def test_what_the_packages_import_is_declared():
    for found in foreign(*OURS):
        if found.extra is not None:
            assert found.distribution in EXTRAS[found.extra], found
        elif found.name in NOT_DECLARED:
            assert found.lazy or found.file in LOADED_ON_DEMAND, found
        elif found.typing:
            assert found.distribution in REQUIRED.union(*EXTRAS.values()), found
        else:
            assert found.distribution in REQUIRED, found


def test_what_is_declared_is_imported():
    found = foreign(*OURS)
    assert {found.distribution for found in found if found.extra is None} >= REQUIRED - set(UNDER_THE_HOOD)
    for extra, needed in EXTRAS.items():
        assert {found.distribution for found in found if found.extra == extra} == needed - OF_OTHERS.get(
            extra, set()
        ), extra


def test_tests_and_scripts_import_what_dev_declares():
    used = {found.distribution for found in foreign("tests", "scripts", "setup.py")} - set(NOT_DECLARED)
    assert used <= REQUIRED | DEV | set().union(*EXTRAS.values())
    assert used >= DEV - set(UNDER_THE_HOOD)
    assert not DEV & REQUIRED


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import a.b, c", [("a", False, None), ("c", False, None)]),
        ("from a.b import c\nfrom . import d", [("a", False, None)]),
        ("class A:\n    def f(self):\n        import a", [("a", True, None)]),
        ("if TYPE_CHECKING:\n    import a", [("a", True, None)]),
        ("def f():\n    x = optional('a.b', extra='c')", [("a", True, "c")]),
    ],
)
def test_imports(code, expected):
    assert [(found.name, found.lazy, found.extra) for found in imports(ast.parse(code), ROOT)] == expected
