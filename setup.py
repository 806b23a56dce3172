"""Everything is declared in pyproject.toml; this only puts ``configs/`` and ``csrc/`` inside the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies the folders that stand at the repository's root into ``fiducial/_data``."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in ("configs", "csrc"):
            source = Path(__file__).parent / name
            if source.is_dir():
                shutil.copytree(source, Path(self.build_lib) / "fiducial" / "_data" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithData})
