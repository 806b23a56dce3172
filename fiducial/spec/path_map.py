"""Folders of a container as folders of this machine: ``--map-path /data=./data``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fiducial.errors import SpecError

__all__ = ["map_in_force", "map_path", "mapped", "parse_path_map", "use_path_map"]

_in_force: dict[str, str] = {}


def parse_path_map(entries: Sequence[str]) -> dict[str, str]:
    """``["/data=./data", …]`` as a mapping. Raises: SpecError for an entry that is not ``FROM=TO``."""
    mapped: dict[str, str] = {}
    for entry in entries:
        before, equals, after = entry.partition("=")
        if not (before and equals and after):
            raise SpecError("--map-path", repr(entry), "write FROM=TO, for example /data=./data")
        mapped[before.rstrip("/") or "/"] = after
    return mapped


def map_path(value: str, path_map: Mapping[str, str]) -> str:
    """``value`` with its leading folder replaced, where the map has it; the longest folder wins."""
    for before, after in sorted(path_map.items(), key=lambda item: -len(item[0])):
        if value == before:
            return after
        if value.startswith(before.rstrip("/") + "/"):
            return after.rstrip("/") + "/" + value[len(before.rstrip("/")) + 1 :]
    return value


def use_path_map(path_map: Mapping[str, str]) -> None:
    """Make ``path_map`` the one of :func:`mapped` in this process, in place of an earlier one."""
    _in_force.clear()
    _in_force.update(path_map)


def map_in_force() -> dict[str, str]:
    """What :func:`use_path_map` was given last, for a process on another machine."""
    return dict(_in_force)


def mapped(value: str) -> str:
    """A path that stands in a file of the data set, as the map of the spec in force has it.

    To be asked while the file is read: other processes that are given the rows have no map.
    """
    return map_path(value, _in_force)
