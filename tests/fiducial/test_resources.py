"""The files that come with the package: in a checkout, and in a wheel built from it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fiducial.resources import resource_dir

ROOT = Path(__file__).parents[2]


def test_checkout():
    assert resource_dir("configs") == ROOT / "configs"
    assert (resource_dir("csrc") / "ms_deform_attn_cpu.cpp").is_file()


@pytest.mark.slow
def test_wheel(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("fiducial", "changenet", "configs", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").write_text("x")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for package in ("fiducial", "changenet"):
        assert (tmp_path / "site" / package / "py.typed").is_file()  # else its types count for nothing where it is used
    code = (
        "import fiducial; from fiducial.resources import resource_dir\n"
        "print(fiducial.__file__, *(sorted(p.name for p in resource_dir(n).rglob('*.*')) for n in ('configs', 'csrc')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    for folder, pattern in (("configs", "*.yaml"), ("csrc", "*.c*")):
        for path in (ROOT / folder).rglob(pattern):
            assert f"'{path.name}'" in done.stdout
