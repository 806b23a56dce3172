"""Where tests of compiled kernels can run."""

import shutil

import pytest

from fiducial.ops.build import OLDEST_TORCH, torch_is_new_enough


def pytest_collection_modifyitems(items):
    missing = []
    if shutil.which("g++") is None:
        missing.append("g++")
    if not torch_is_new_enough():
        missing.append(f"torch {'.'.join(map(str, OLDEST_TORCH))}")
    for item in items:
        if missing and item.get_closest_marker("compiler"):
            item.add_marker(pytest.mark.skip(reason=f"needs {' and '.join(missing)}"))
