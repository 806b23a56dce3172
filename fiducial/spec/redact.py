"""Keeping secrets out of everything that is printed or written."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

STARS = "********"
SECRET_KEYS = frozenset({"encryption_key"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*")


def public_url(url: str) -> str:
    """``url`` without user name, password, query and fragment: fit to be shown and logged."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?…' if parts.query else ''}"


def redact_text(text: str) -> str:
    """``text`` with every URL in it made public by :func:`public_url`."""
    return _URL.sub(lambda match: public_url(match.group()), text)


def redact(value: Any) -> Any:
    """A copy of a plain tree fit to be shown: secret keys starred out, URLs without their secrets."""
    if isinstance(value, dict):
        return {k: STARS if k in SECRET_KEYS and v else redact(v) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(v) for v in value]
    return redact_text(value) if isinstance(value, str) else value
