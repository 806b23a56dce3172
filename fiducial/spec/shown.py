"""The keys that ``--help`` of an action shows: what people set there, of the thousand that there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fiducial.spec.knob import Key, Section, meta_of, section_of

__all__ = ["help_lines", "shown_keys"]


def shown_keys(kind: type[Section], action: str, *, hidden: Collection[str], path: str = "") -> Iterator[Key]:
    """The keys of a spec that are marked as ``shown`` and that an action uses, in the order of declaration.

    ``hidden`` are names of sections that do not matter: of other actions, of other tasks.
    """
    for name, info in kind.model_fields.items():
        meta, nested = meta_of(info), section_of(info)
        if name in hidden or (meta.actions and action not in meta.actions):
            continue
        if nested is not None:
            yield from shown_keys(nested, action, hidden=hidden, path=f"{path}{name}.")
        elif meta.shown:
            yield Key(f"{path}{name}", info, meta)


def help_lines(kind: type[Section], action: str, *, hidden: Collection[str]) -> str:
    """The keys of :func:`shown_keys` with default and first sentence."""
    lines = ["", "spec keys set most often (all of them: default_specs):"]
    for key in shown_keys(kind, action, hidden=hidden):
        default = "" if key.default in (None, "", []) else f" [{key.default}]"
        lines += [f"  {key.path}{default}", f"      {key.meta.help.split('. ')[0].rstrip('.')}"]
    return "\n".join(lines) + "\n"
