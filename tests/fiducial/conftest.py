"""Makes ``tiny_task``, a network of a few weights, importable: also for processes that a test starts."""

import signal
import sys
from pathlib import Path

import pytest

from fiducial import redact

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in (
        *("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NUM_GPU_PER_NODE"),
        *("TAO_VISIBLE_DEVICES", "TAO_LOGGING_LEVEL", "WANDB_API_KEY", "FIDUCIAL_MAP_PATH", "FIDUCIAL_NODES"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def interruptible():
    """Python's own handlers, also where the tests run in the background of a shell, which has SIGINT ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield handlers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def secret():
    """Makes a text known as a secret."""
    return redact.keep_secret
