"""Finding the files that come with the package but are no Python: curated specs and kernel sources."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource_dir(name: str) -> Path:
    """The folder ``configs`` or ``csrc``: beside the packages in a checkout, inside ``fiducial`` in a wheel."""
    checkout = _PACKAGE.parent / name
    return checkout if (_PACKAGE.parent / "pyproject.toml").exists() else _PACKAGE / "_data" / name
