"""The builder: where it looks, what it calls things, what it says when something is missing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fiducial.ops import build
from fiducial.ops.kernel import UnavailableError
from fiducial.resources import resource_dir


def has_nvcc():
    try:
        return bool(build.find_nvcc())
    except UnavailableError:
        return False


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a torch that kernels are built for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if not build.torch_is_new_enough():
        monkeypatch.setattr(torch, "__version__", "2.10.0")
    return tmp_path / "fiducial" / "kernels"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A C++ compiler that writes its arguments instead of a library."""
    path = tmp_path / "bin" / "g++"
    executable(path, 'for last; do :; done; echo "$@" > "$last"')
    monkeypatch.setenv("CXX", str(path))
    return path


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class TestCache:
    def test_builds_once(self, compiler, cache):
        path = build.library("cpu")
        assert path.parent == cache
        executable(compiler, "exit 1")
        assert build.library("cpu") == path

    def test_another_torch_is_another_library(self, compiler, monkeypatch):
        first = build.library("cpu")
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        assert build.library("cpu") != first

    @pytest.mark.parametrize("source", ["ms_deform_attn_cpu.cpp", "message_passing_cpu.cpp"])
    def test_another_source_is_another_library(self, compiler, tmp_path, monkeypatch, source):
        first = build.library("cpu")
        shutil.copytree(resource_dir("csrc"), tmp_path / "csrc")
        (tmp_path / "csrc" / source).write_text("// changed")
        monkeypatch.setattr(build, "resource_dir", lambda name: tmp_path / name)
        assert build.library("cpu").name != first.name

    def test_a_library_from_a_wheel_comes_first_and_serves_any_torch(self, compiler, tmp_path, monkeypatch):
        shutil.copytree(resource_dir("csrc"), tmp_path / "csrc", ignore=shutil.ignore_patterns("build"))
        monkeypatch.setattr(build, "resource_dir", lambda name: tmp_path / name)
        packaged = build.build("cpu", output=tmp_path / "csrc" / "build")
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert build.library("cpu") == packaged

    def test_nothing_half_built_is_left(self, compiler, cache):
        executable(compiler, 'for last; do :; done; echo half > "$last"; echo "kernel.cpp:1: wrong" >&2; exit 1')
        with pytest.raises(UnavailableError, match=r"failed: kernel.cpp:1: wrong"):
            build.library("cpu")
        assert [path.suffix for path in cache.iterdir()] == [".lock"]

    def test_a_cache_that_cannot_be_written(self, compiler, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(UnavailableError, match=r"Not a directory.*; XDG_CACHE_HOME names another folder"):
            build.library("cpu")

    def test_built_for_the_oldest_torch_that_is_served(self, compiler):
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in build.library("cpu").read_text()

    def test_older_torch_is_told_so(self, monkeypatch):
        monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
        with pytest.raises(UnavailableError, match=r"needs torch 2\.10, this is 2\.9\.1"):
            build.library("cpu")


class TestCompilers:
    def test_no_cpp_compiler(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(UnavailableError, match=r"no C\+\+ compiler \(g\+\+, c\+\+, clang\+\+\): install g\+\+"):
            build.library("cpu")

    def test_cxx_may_have_options(self, compiler, monkeypatch):
        monkeypatch.setenv("CXX", f"{compiler} -march=armv9 'two words'")
        assert build.library("cpu").read_text().startswith("-march=armv9 two words -std=c++20")

    def test_torch_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(UnavailableError, match="built without CUDA"):
            build.find_nvcc()

    def nvcc(self, folder, release):
        executable(folder / "bin" / "nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.1"')
        return folder / "bin" / "nvcc"

    def test_cuda_home_comes_before_path_before_pip(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        in_pip, on_path, in_home = (self.nvcc(tmp_path / name, "13.0") for name in ("pip", "path", "home"))
        monkeypatch.setattr(build, "_pip_cuda", lambda: [in_pip.parents[1]])
        monkeypatch.delenv("CUDA_PATH", raising=False)
        monkeypatch.setenv("PATH", f"/usr/bin:/bin:{on_path.parent}")
        monkeypatch.setenv("CUDA_HOME", str(in_home.parents[1]))
        assert build.find_nvcc() == in_home
        monkeypatch.delenv("CUDA_HOME")
        assert build.find_nvcc() == on_path
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        assert build.find_nvcc() == in_pip

    @pytest.mark.parametrize("mode", [0o644, 0o755])
    def test_nvcc_that_does_not_run_is_passed_over(self, mode, tmp_path, monkeypatch):
        nvcc = self.nvcc(tmp_path, "13.0")
        nvcc.write_text("no program")
        nvcc.chmod(mode)
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(build, "_nvcc_candidates", lambda: iter([nvcc]))
        with pytest.raises(UnavailableError, match=r"no nvcc of CUDA 13 .*nvcc is of CUDA \?"):
            build.find_nvcc()

    def test_nvcc_of_another_cuda_is_passed_over_and_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(build, "_nvcc_candidates", lambda: iter([self.nvcc(tmp_path, "12.8")]))
        with pytest.raises(
            UnavailableError, match=r"no nvcc of CUDA 13 .*is of CUDA 12; pip install 'nvidia-cuda-nvcc==13"
        ):
            build.find_nvcc()


class TestArchitectures:
    @pytest.mark.parametrize(
        ("built", "arch", "serves"),
        [
            ("sm80", (8, 0), True),
            ("sm80", (8, 6), True),  # a later minor of the same generation
            ("sm86", (8, 0), False),
            ("sm80", (9, 0), False),
            ("sm80.ptx90", (10, 0), True),  # PTX is compiled on the spot
            ("sm75.sm120.ptx120", (12, 1), True),
            ("ptx120", (9, 0), False),
        ],
    )
    def test_serves(self, built, arch, serves):
        assert build._serves_gpu(built.split("."), arch) is serves

    def test_one_library_for_all_gpus_of_a_machine(self, cache, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6), (9, 0)][index])
        asked = []
        monkeypatch.setattr(build, "build", lambda target, architectures: asked.append(architectures))
        cache.mkdir(parents=True)
        for names in ("sm86", "sm90"):
            (cache / f"{build._stem('cuda', packaged=False)}-{names}.so").touch()
        assert build.library("cuda") is None
        assert asked == [[(8, 6), (9, 0)]]
        both = cache / f"{build._stem('cuda', packaged=False)}-sm80.sm90.so"
        both.touch()
        assert build.library("cuda") == both


class TestCommandLine:
    def test_reports_what_was_built_and_what_was_not(self, compiler, capsys, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        assert build.main([]) == 1
        out, err = capsys.readouterr()
        assert out.startswith("cpu: ")
        assert err == "cuda: not built: this torch is built without CUDA\n"

    @pytest.mark.parametrize(
        ("argument", "message"), [("gpu", "'gpu' is neither cpu nor cuda"), ("--arch=8", "such as 8.6")]
    )
    def test_says_what_it_does_not_understand(self, argument, message, capsys):
        with pytest.raises(SystemExit):
            build.main([argument])
        assert message in capsys.readouterr().err

    def test_output_folder_for_a_wheel(self, compiler, tmp_path, capsys):
        assert build.main(["cpu", "--output", str(tmp_path / "wheel")]) == 0
        assert [path.name for path in (tmp_path / "wheel").glob("*.so")] == [Path(capsys.readouterr().out.strip()).name]


class TestSources:
    def test_need_no_more_than_the_cuda_runtime(self):
        for source in resource_dir("csrc").glob("ms_deform_attn*"):
            included = re.findall(r"#include <(.*?)>", source.read_text())
            assert not [name for name in included if name.startswith(("ATen", "c10", "thrust", "cub/"))]
            assert {name for name in included if name.startswith("cu")} <= {
                "cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h"
            }  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.compiler
    def test_portable_cpu_library_computes(self, tmp_path):
        path = build.build("cpu", output=tmp_path)
        program = (
            f"import torch, fiducial.ops.compiled as c; torch.ops.load_library({str(path)!r})\n"
            "out = torch.zeros(1, 1, 1)\n"
            "torch.ops.fiducial.ms_deform_attn_into(torch.ones(1, 1, 1, 1), torch.tensor([[1, 1]]), torch.tensor([0]),"
            " torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.full((1, 1, 1, 1, 1), 7.0), out)\n"
            "print(out.item())"
        )
        assert run_python(program) == "7.0"

    @pytest.mark.slow
    @pytest.mark.compiler
    @pytest.mark.skipif(not has_nvcc(), reason="needs nvcc of torch's CUDA")
    def test_cuda_library_builds_and_loads(self):
        path = build.build("cuda", architectures=[(8, 0)])
        program = f"import torch, fiducial.ops.compiled; torch.ops.load_library({str(path)!r})\n" + (
            "print(torch._C._dispatch_has_kernel_for_dispatch_key('fiducial::ms_deform_attn_backward_into', 'CUDA'))"
        )
        assert run_python(program) == "True"


def test_import_builds_nothing_and_prints_nothing(cache):
    assert run_python("import fiducial.ops, fiducial.backbones.deformable") == ""
    assert not cache.exists()


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(build.__file__).parents[2])},
    ).stdout.strip()
