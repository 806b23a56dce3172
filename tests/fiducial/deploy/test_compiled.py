"""Compiled networks give the network's outputs, are kept, and fall back to the network itself."""

from __future__ import annotations

import errno
import io
import logging
import re
import shutil
from zipfile import ZipFile, ZipInfo

import pytest
import torch
from torch import nn

from fiducial.data.cache import Cache
from fiducial.deploy import compiled
from fiducial.deploy.compiled import compile_calls


class Pair(nn.Module):
    """``forward`` is made of two methods that can be compiled, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, a, b):
        return self.compare(self.encode(a), self.encode(b))

    def encode(self, image):
        return (torch.relu(self.conv(image)), self.conv(image).mean((2, 3)))

    def compare(self, first, second):
        return self.head((first[0] - second[0]).abs().mean((2, 3)) + first[1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache folder for the module: a graph takes some seconds to compile."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Pair().eval().requires_grad_(False)


def images(count, side=8, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def graphs(cache):
    return sorted((cache / "fiducial" / "compiled" / "graphs").glob("*.pt2"))


def read_only(*given, **more):
    raise OSError(errno.EROFS, "Read-only file system")


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@needs_compiler
@pytest.mark.slow
class TestOnCpu:
    def test_any_batch_of_one_graph(self, network, cache, caplog):
        expected = {n: network(images(n), images(n, seed=2)) for n in (1, 2, 5)}
        names = list(network.state_dict())
        compile_calls(network, ("forward",))
        with caplog.at_level(logging.INFO, "fiducial"), torch.inference_mode():
            for count, wanted in expected.items():
                torch.testing.assert_close(network(images(count), images(count, seed=2)), wanted)
        assert len(graphs(cache)) == 1
        assert len([line for line in caplog.messages if line.startswith("forward compiled in")]) == 1
        assert list(network.state_dict()) == names

    def test_the_second_start_takes_what_is_kept(self, network, monkeypatch, caplog):
        monkeypatch.setattr(compiled, "_package", lambda *given: pytest.fail("compiled again"))
        monkeypatch.setattr(Cache, "publish", read_only)
        wanted = network(images(3), images(3, seed=2))
        compile_calls(network, ("forward",))
        with torch.no_grad(), caplog.at_level(logging.INFO, "fiducial"):
            torch.testing.assert_close(network(images(3), images(3, seed=2)), wanted)
        assert "keeps" in caplog.text

    def test_other_weights_are_another_graph(self, network, cache):
        before = graphs(cache)
        with torch.no_grad():
            network.head.bias.add_(1)
            wanted = network(images(2), images(2, seed=2))
            compile_calls(network, ("forward",))
            torch.testing.assert_close(network(images(2), images(2, seed=2)), wanted)
        assert len(graphs(cache)) == len(before) + 1

    def test_other_sizes_are_another_graph(self, network, cache, caplog):
        """Of a convolution the code is the same for all: a graph of another size would read beyond the pictures."""
        before, (a, b) = len(graphs(cache)), (images(2, side=6), images(2, side=6, seed=2))
        wanted = network(a, b)
        compile_calls(network, ("forward",))
        with torch.no_grad():
            torch.testing.assert_close(network(a, b), wanted)
        assert len(graphs(cache)) == before + 1
        assert "not compiled" not in caplog.text

    def test_parts_that_call_each_other_and_other_strides(self, network):
        a, b = images(2), images(2, seed=2)
        wanted = network(a, b)
        compile_calls(network, ("forward", "encode", "compare"))
        with torch.no_grad():
            first, second = network.encode(a), network.encode(b)
            torch.testing.assert_close(network.compare(first, second), wanted)
            strided = tuple(x.mT.contiguous().mT if x.ndim == 4 else x for x in first)
            torch.testing.assert_close(network.compare(strided, second), wanted)
            torch.testing.assert_close(network(a, b), wanted)

    def test_only_the_last_used_are_kept(self, cache, monkeypatch):
        monkeypatch.setattr(compiled, "KEPT", 1)
        folder = cache / "fiducial" / "compiled" / "graphs"
        newest = max(graphs(cache), key=lambda path: path.stat().st_mtime)
        compiled._forget(folder)
        assert graphs(cache) == [newest]

    def test_what_others_could_have_written_is_not_run(self, network, cache, caplog):
        compile_calls(network, ("forward",))
        folder = cache / "fiducial" / "compiled" / "graphs"
        folder.chmod(0o777)
        wanted = network.forward._eager(images(2), images(2, seed=2))
        with torch.no_grad():
            assert torch.equal(network(images(2), images(2, seed=2)), wanted)
        assert "not compiled: PermissionError" in caplog.text
        assert "chmod go-w" in caplog.text
        folder.chmod(0o755)


class TestWhatIsKept:
    """A zip file stands for what is compiled, and the network itself for what it computes."""

    @pytest.fixture
    def made(self, network, monkeypatch, tmp_path):
        """How often it was compiled: that many entries."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        eager, calls = network.forward, []

        def package(program):
            file = io.BytesIO()
            with ZipFile(file, "w") as archive:
                archive.writestr(ZipInfo("code"), bytes(1000))
            calls.append(program)
            return file.getvalue()

        monkeypatch.setattr(compiled, "_package", package)
        monkeypatch.setattr(compiled, "_loaded", lambda graph: eager)
        return calls

    def start(self, network):
        compile_calls(network, ("forward",))
        with torch.no_grad():
            network(images(2), images(2))
        del network.forward

    def test_it_is_said_before_the_minutes_that_it_takes(self, network, made, caplog):
        with caplog.at_level(logging.INFO, "fiducial"):
            self.start(network)
            self.start(network)
        assert [line.split(" for ")[0] for line in caplog.messages if "compiling" in line] == ["compiling forward"]
        assert len(made) == 1

    @pytest.mark.parametrize("damage", [(b".*", b""), (b".{500}$", b""), (b"\0{9}", b"123456789")])
    def test_what_is_damaged_is_made_again(self, network, made, caplog, tmp_path, damage):
        self.start(network)
        (graph,) = graphs(tmp_path)
        whole = graph.read_bytes()
        graph.write_bytes(re.sub(*damage, whole, flags=re.DOTALL))
        self.start(network)
        assert f"{graph}: damaged, and made again" in caplog.text
        assert graph.read_bytes() == whole

    def test_what_cannot_be_kept_is_compiled_all_the_same(self, network, made, monkeypatch, caplog):
        monkeypatch.setattr(Cache, "publish", read_only)
        compile_calls(network, ("forward",))
        with torch.no_grad():
            network(images(2), images(2))
        assert len(made) == 1
        assert "cannot keep what is compiled (Read-only file system)" in caplog.text
        assert "not compiled" not in caplog.text


class TestFallsBack:
    """A graph that is made up stands for the compiler's."""

    @pytest.fixture
    def made(self, monkeypatch):
        """Calls of what stands for the compiler, which gives what the list's first function makes of the outputs."""
        change, calls = [lambda output: output], []

        def on_cpu(self, arguments):
            calls.append(tuple(x.shape for x in arguments))
            return (lambda *given: change[0](self._eager(*given))), ""

        monkeypatch.setattr(compiled._Compiled, "_on_cpu", on_cpu)
        return change, calls

    def test_other_outputs_are_not_taken(self, network, made, caplog):
        made[0][0] = lambda output: output + 0.1
        wanted = network(images(2), images(2))
        compile_calls(network, ("forward",))
        with torch.no_grad():
            assert torch.equal(network(images(2), images(2)), wanted)
        assert "not compiled: its outputs would differ" in caplog.text

    def test_nor_are_those_that_are_no_numbers(self, network, made):
        made[0][0] = lambda output: output * torch.nan
        compile_calls(network, ("forward",))
        with torch.no_grad():
            assert network(images(2), images(2)).isfinite().all()

    def test_a_compiler_that_fails(self, network, monkeypatch, caplog):
        def fails(self, arguments):
            raise RuntimeError("no\ncompiler " + "x" * 1000)

        monkeypatch.setattr(compiled._Compiled, "_on_cpu", fails)
        compile_calls(network, ("forward",))
        with torch.no_grad():
            for _ in range(2):
                network(images(2), images(2))
        (line,) = caplog.messages
        assert line.startswith("forward is not compiled: RuntimeError: no compiler xxx")
        assert len(line) < 300

    def test_few_sizes_are_compiled(self, network, made, monkeypatch, caplog):
        monkeypatch.setattr(compiled, "MOST_SHAPES", 2)
        compile_calls(network, ("forward",))
        with torch.no_grad():
            for side in (4, 5, 4, 6, 6, 5):
                network(images(2, side), images(2, side))
        assert [shapes[0][2] for shapes in made[1]] == [4, 5]
        assert len(caplog.messages) == 1

    def test_with_gradients_the_network_itself_runs(self, network, made):
        compile_calls(network, ("forward",))
        network(images(2), images(2))
        assert not made[1]
