"""Makes support/ importable, and gives both tasks' tests what they share."""

import os
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))

from makers import write_image  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def make_image():
    return write_image
