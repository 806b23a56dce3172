"""Everything the model packages have in common; it knows none of them."""

import os

__version__ = "0.1.0"

__all__ = ["__version__"]

# What libraries report of their use is sent only if the user's environment says so: before any of them is imported.
for _variable in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")
