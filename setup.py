"""Everything is declared in pyproject.toml; this only puts ``configs/`` and ``csrc/`` inside the wheel.

A wheel built where ``python -m fiducial.ops.build --output csrc/build`` has been run carries the compiled kernels too,
and is tagged for its platform; any other is pure Python and compiles them where it is installed, or uses the torch
kernel.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithData(build_py):
    """Copies the folders that stand at the repository's root into ``fiducial/_data``."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in ("configs", "csrc"):
            source, target = ROOT / name, Path(self.build_lib) / "fiducial" / "_data" / name
            shutil.rmtree(target, ignore_errors=True)  # an earlier wheel's kernels
            if source.is_dir():
                shutil.copytree(source, target)


class WheelForItsKernels(bdist_wheel):
    """The kernels use libtorch's stable ABI and no Python ABI: one wheel per platform, for every Python 3."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if any((ROOT / "csrc").rglob("*.so")):
            self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithData, "bdist_wheel": WheelForItsKernels})
