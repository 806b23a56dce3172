"""Fixtures of several folders."""

import logging
import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings

from fiducial import redact

# a busy machine is no fault of what is tested
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

os.environ.setdefault("FIDUCIAL_MEASURE", "off")  # what a processor is fast at must not decide a test


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch):
    """A secret is one for the rest of the process: what a test made known would be starred in all that follow."""
    for known in ("_whole", "_inside", "_longest_first"):
        monkeypatch.setattr(redact, known, type(getattr(redact, known))())


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    """``dump(page, hash, script)``: the page's HTML after headless Chromium ran it, and ``script`` after that."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium")

    def run(page, address="", script=""):
        folder = tmp_path_factory.mktemp("browser")
        html = page.read_text(encoding="utf-8")
        report_errors = """<script>for (const kind of ["error", "securitypolicyviolation"])
            addEventListener(kind, event => document.documentElement.setAttribute("data-failed", event.type), true)
            </script>"""
        html = html.replace("<style>", f"{report_errors}<style>", 1)
        html = html.replace("</body>", f"<script>{script}</script></body>")
        (folder / "page.html").write_text(html, encoding="utf-8")
        flags = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [browser, *flags, "--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/page.html{address}"]
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "data-failed" not in dumped.partition("<head>")[0]
        return dumped

    return run


@pytest.fixture(scope="session")
def _cache_of_the_tests(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(_cache_of_the_tests, monkeypatch):
    """What is kept between runs is kept between the tests of one process, not in the user's cache folder."""
    monkeypatch.setenv("FIDUCIAL_CACHE", str(_cache_of_the_tests))


@pytest.fixture(autouse=True)
def quiet_console():
    """The project's logger as before any command line ran: a test's own stderr is closed when the next one runs."""
    _reset_logger()
    yield
    _reset_logger()


def _reset_logger():
    logger = logging.getLogger("fiducial")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
