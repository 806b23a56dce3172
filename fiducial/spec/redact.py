"""Keeping secrets out of everything that is printed or written."""

from __future__ import annotations

import re
from typing import Any

STARS = "********"
SECRET_KEYS = frozenset({"encryption_key"})
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?P<name>[?&](?:[\w-]*(?:signature|token|secret|credential|password|apikey|api_key|access_key)[\w-]*|sig|key)=)[^&\s]+",
    re.IGNORECASE,
)


def redact_text(text: str) -> str:
    """The text without credentials in URLs (``user:password@`` and signing query parameters)."""
    return _SIGNATURE.sub(rf"\g<name>{STARS}", _USERINFO.sub(rf"\g<scheme>{STARS}@", text))


def redact(value: Any) -> Any:
    """A copy of a plain tree fit to be shown: secret keys starred out, credentials in URLs removed."""
    if isinstance(value, dict):
        return {k: STARS if k in SECRET_KEYS and v else redact(v) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(v) for v in value]
    return redact_text(value) if isinstance(value, str) else value
