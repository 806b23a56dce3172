"""Keeping secrets out of everything that is printed or written.

What is a secret is known by its place (a key called so, user name and query of a URL) and, from then on, by its text:
:func:`keep_secret` remembers it for this process, and every console line, status record, spec that is written and
error text goes through :func:`redact_text` or :func:`redact`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

__all__ = [
    "STARS",
    "is_secret_name",
    "keep_env_secret",
    "keep_secret",
    "keep_secrets_of",
    "public_url",
    "redact",
    "redact_text",
]

STARS = "********"
_SECRET_NAME = re.compile(
    r"encryption_?key|passw(or)?d|passphrase|secret|credential|api_?key|access_?key|private_?key|(^|_)(token|auth)$",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"([^:]*:/+|)([^?#]*)\??([^#]*)", re.DOTALL)
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://?[^\s'\"<>]*")
_SHORTEST = 4
"""Characters of a secret that is looked for inside other text: shorter ones stand there by chance."""
_LONG = 8
"""Characters of a user name, or of a value of a query, that may be a secret by itself."""
_PLAIN_VALUE = re.compile(r"[-+.\d]{0,7}|true|false|yes|no|on|off|none|null", re.IGNORECASE)

_whole: set[str] = set()
_inside: dict[str, None] = {}
_longest_first: list[str] = []


def is_secret_name(name: str) -> bool:
    """Whether what stands under a key, or in an environment variable, of this name is a secret."""
    return bool(_SECRET_NAME.search(name.rpartition(".")[2]))


def keep_secret(text: str, *, shortest: int = _SHORTEST) -> None:
    """Star ``text`` out from now on: as a value of its own, and inside other text.

    There also as Python writes it in messages, and when it is shorter than ``shortest`` only so, between its quotes.
    """
    if text and text != STARS:
        _whole.add(text)
        _inside.update(dict.fromkeys([text, repr(text)[1:-1]] if len(text) >= shortest else [repr(text)]))


def keep_env_secret(name: str, value: str) -> bool:
    """Star out what a spec took from the environment, unless it is plainly none: a number, a path. Returns: whether."""
    if not is_secret_name(name) and (_PLAIN_VALUE.fullmatch(value) or value.startswith(("/", "./", "../", "~"))):
        return False
    keep_secret(value, shortest=_SHORTEST if is_secret_name(name) else 6)  # not `root` or `prod` in every line
    return True


def keep_secrets_of(tree: Any) -> None:
    """Star out what stands under secret keys of a plain tree, at any depth, and in its URLs."""
    for name, value in _leaves(tree):
        if name:
            keep_secret(str(value))
        elif isinstance(value, str) and "://" in value:
            for part in _secrets_of_url(value):
                keep_secret(part)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a tree with the secret key that they stand under; without one, ``""``."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, name or (str(key) if is_secret_name(str(key)) else ""))
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, name)
    elif isinstance(tree, str) or (name and tree is not None and not isinstance(tree, bool)):
        yield name, tree


def _secrets_of_url(text: str) -> Iterator[str]:
    for match in _URL.finditer(text):
        user, _, query = _parts(match.group())[1:]
        password = user.partition(":")[2]
        yield from filter(None, (password and user, password, unquote(password), query))
        values = [user, *(item.partition("=")[2] for item in re.split(r"[&;]", query))]
        yield from (value for value in values if len(value) >= _LONG)


def _parts(url: str) -> tuple[str, str, str, str]:
    """``(scheme://, user:password, host/path, query)``."""
    scheme, place, query = _SPLIT.match(url).groups()  # type: ignore[union-attr] # it matches anything
    host, slash, path = place.partition("/")
    if "@" in path and ":" in host and not host.rpartition(":")[2].isdigit():
        host, slash, path = place, "", ""  # a password with a slash
    user, _, host = host.rpartition("@")
    return scheme, user, f"{host}{slash}{path}", query


def public_url(url: str) -> str:
    """``url`` without user name, password, query and fragment: fit to be shown and logged. A path stays as it is."""
    if not _URL.match(url):
        return url
    scheme, _, place, query = _parts(url)
    return f"{scheme}{place}{'?…' if query else ''}"


def redact_text(text: str) -> str:
    """``text`` with every URL in it made public by :func:`public_url`, and known secrets starred out."""
    if text in _whole:
        return STARS
    if len(_longest_first) != len(_inside):
        _longest_first[:] = sorted(_inside, key=len, reverse=True)
    for secret in _longest_first:
        text = text.replace(secret, STARS)
    return _URL.sub(lambda match: public_url(match.group()), text)


def redact(value: Any) -> Any:
    """A copy of a plain tree fit to be shown: secrets starred out, URLs without theirs."""
    if isinstance(value, Mapping):
        return {redact(k): STARS if is_secret_name(str(k)) and _told(v) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v) for v in value]
    return redact_text(value) if isinstance(value, str) else value


def _told(value: Any) -> bool:
    return bool(value) and not isinstance(value, bool)
