import http.server
import os
import subprocess
import sys
import threading

import pytest

from fiducial.backbones.hub import hub_id, local_weights, resolve_weights
from fiducial.errors import SourceError

KEY = "model.backbone.pretrained_backbone_path"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"nvidia/C-RADIOv2-B": {"model.safetensors": b"weights", "other/part.bin": b"part"}}


class _Hub(http.server.BaseHTTPRequestHandler):
    """The two requests that a download makes: HEAD and GET of ``/<repository>/resolve/<revision>/<file>``."""

    seen: list[tuple[str, str | None]]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        if "/resolve/" in self.path:
            self.seen.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        content = FILES.get(repository, {}).get(rest.partition("/")[2])
        gated = repository.startswith("gated/")
        if content is None:
            self.send_response(403 if gated else 404)
            code = "GatedRepo" if gated else ("EntryNotFound" if repository in FILES else "RepoNotFound")
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}-{rest.replace("/", "-")}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    handler = type("Handler", (_Hub,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.seen
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import logging, sys
from fiducial.backbones.hub import resolve_weights
from fiducial.errors import SourceError
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
for value in sys.argv[1:]:
    try:
        print("FOUND", resolve_weights(value, key="the.key").read_bytes().decode())
    except SourceError as error:
        print("ERROR", error)
"""


def resolve(tmp_path, endpoint, *values, **extra):
    """In a process of its own: the hub's client reads its environment when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"} | extra
    command = [sys.executable, "-c", SCRIPT, *values]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


class TestHub:
    def test_fetched_once_with_the_token_and_found_offline(self, hub, tmp_path):
        endpoint, seen = hub
        values = ("nvidia/C-RADIOv2-B", "nvidia/C-RADIOv2-B:other/part.bin", "hf://nvidia/C-RADIOv2-B/other/part.bin")
        out = resolve(tmp_path, endpoint, *values, HF_TOKEN="hf_abc")
        assert [line for line in out.splitlines() if line.startswith("FOUND")] == ["FOUND weights", *["FOUND part"] * 2]
        assert f"revision {COMMIT}" in out
        assert {token for _, token in seen} == {"Bearer hf_abc"}
        assert sum(request.startswith("GET") for request, _ in seen) == 2
        before = len(seen)
        out = resolve(tmp_path, endpoint, "nvidia/C-RADIOv2-B", "nvidia/absent", HF_HUB_OFFLINE="1")
        assert "FOUND weights" in out
        assert "not in the local cache" in out
        assert len(seen) == before

    def test_what_went_wrong_is_said(self, hub, tmp_path):
        endpoint, _ = hub
        out = resolve(tmp_path, endpoint, "gated/model", "nobody/nothing", "nvidia/C-RADIOv2-B:no.bin")
        gated, nothing, no_file = [line for line in out.splitlines() if line.startswith("ERROR")]
        assert "access is restricted" in gated
        assert "HF_TOKEN" in gated
        assert "no such repository" in nothing
        assert "no file 'no.bin'" in no_file


class TestHubId:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("nvidia/C-RADIOv2-B", ("nvidia/C-RADIOv2-B", "model.safetensors")),
            ("nvidia/C-RADIOv2.5-B", ("nvidia/C-RADIOv2.5-B", "model.safetensors")),
            ("nvidia/x:a/b.pth", ("nvidia/x", "a/b.pth")),
            ("hf://nvidia/x", ("nvidia/x", "model.safetensors")),
            ("hf://nvidia/x.pth/file.pth", ("nvidia/x.pth", "file.pth")),
            ("weights/model.pth", None),
            ("/weights/model", None),
            ("a/b/c", None),
            ("model.pth", None),
            ("https://host/model", None),
        ],
    )
    def test_what_is_one(self, value, expected):
        assert hub_id(value) == expected

    def test_a_path_whose_folder_is_there_is_a_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "nvidia").mkdir()
        assert hub_id("nvidia/radio") is None
        assert hub_id("hf://nvidia/radio") == ("nvidia/radio", "model.safetensors")


class TestLocal:
    def test_a_file_is_itself(self, tmp_path):
        file = tmp_path / "weights.pth.tar"  # not an archive to unpack
        file.write_bytes(b"")
        assert resolve_weights(str(file), key=KEY) == file

    def test_a_folder_that_was_cloned(self, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert resolve_weights(tmp_path, key=KEY) == tmp_path / "model.safetensors"

    @pytest.mark.parametrize("name", ["absent.pth", "."])
    def test_nothing_there(self, tmp_path, name):
        with pytest.raises(SourceError, match=KEY):
            resolve_weights(tmp_path / name, key=KEY)

    def test_a_folder_says_what_it_lacks(self, tmp_path):
        with pytest.raises(SourceError, match=r"is a folder without model\.safetensors"):
            resolve_weights(tmp_path, key=KEY)
        index = '{"weight_map": {"w": "../../outside.safetensors"}}'  # is not followed
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(SourceError, match="holds its weights in several files · save them as one"):
            resolve_weights(tmp_path, key=KEY)

    @pytest.mark.parametrize(
        "value", ["x" * 5000, "a/" + "x" * 300, "a\0b", "~nobody-of-this-name/x", "/dev/zero", "a/b/c"]
    )
    def test_what_cannot_be_a_path(self, value):
        for ask in (resolve_weights, local_weights):
            with pytest.raises(SourceError, match=KEY) as caught:
                ask(value, key=KEY)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 7000

    @pytest.mark.parametrize("value", ["hf://a--b/c", "hf://a/b.git", "hf://a/b/../../../../etc/passwd"])
    def test_no_hub_repository(self, value):
        with pytest.raises(SourceError, match=KEY):
            local_weights(value, key=KEY)
