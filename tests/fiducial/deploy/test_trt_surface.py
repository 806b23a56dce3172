"""What is used of TensorRT's bindings is there: in TensorRT 10 and 11, TensorRT for RTX, and the fake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_trt
import pytest

sys.path.append(str(Path(__file__).parents[2] / "support"))

from reflect_tensorrt import reflected

from fiducial.deploy.tensorrt import flavour, surface
from fiducial.deploy.tensorrt.flavour import Said, load
from fiducial.errors import MissingDependencyError

STORED = json.loads(Path(__file__).with_name("tensorrt_surface.json").read_text())
CLASSES = {
    **{"Tensor": "ITensor", "Layer": "ILayer", "Network": "INetworkDefinition", "Profile": "IOptimizationProfile"},
    **{"TimingCache": "ITimingCache", "Config": "IBuilderConfig", "Builder": "Builder", "ParserError": "ParserError"},
    **{"Parser": "OnnxParser", "Inspector": "EngineInspector", "Context": "IExecutionContext", "Engine": "ICudaEngine"},
    **{"Runtime": "Runtime", "Bindings": ""},
}
"""Types of :mod:`fiducial.deploy.tensorrt.surface`, and the bindings' names of them."""


def names_of(protocol):
    declared = {**vars(protocol), **getattr(protocol, "__annotations__", {})}
    return {name for name in declared if not name.startswith("_")}


@pytest.fixture(scope="module")
def rtx():
    return load("rtx")


def test_every_type_is_looked_at():
    declared = {name for name, value in vars(surface).items() if getattr(value, "_is_protocol", False)}
    assert declared - {"Protocol"} == set(CLASSES)


@pytest.mark.parametrize("version", STORED)
@pytest.mark.parametrize("name", CLASSES)
def test_tensorrt(name, version):
    assert names_of(getattr(surface, name)) <= set(STORED[version][CLASSES[name]])


def test_rtx(rtx):
    here = reflected(rtx.trt)
    for name, theirs in CLASSES.items():
        assert names_of(getattr(surface, name)) <= set(here[theirs]), name
    assert {"SM86", "SM89", "SM120"} <= set(dir(rtx.trt.ComputeCapability))
    assert {"num_compute_capabilities", "set_compute_capability"} <= set(here["IBuilderConfig"])


@pytest.mark.parametrize("version", STORED)
def test_the_fake_offers_nothing_else(version):
    module, stored = fake_trt.bindings(version), STORED[version]
    assert set(vars(module)) - {"__name__", "__version__", "built", "refuses"} <= set(stored[""])
    assert vars(module)["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"] == stored["flags"]["STRONGLY_TYPED"]
    own = {
        "read",
        "content",
        "asked",
        "held",
        "said",
        "logger",
        "session",
        "fault",
        "shapes",
        "flags",
        "network",
        "text",
    }
    for name in set(stored) - {"", "flags"}:
        made = getattr(module, name, None) or getattr(fake_trt, name, None)
        if made is not None and name not in ("ILogger", "DataType", "LayerType"):
            assert {n for n in vars(made) if not n.startswith("_")} - own <= set(stored[name]), name


@pytest.mark.parametrize("version", STORED)
def test_networks_are_strongly_typed(version):
    found = flavour.Flavour("tensorrt", fake_trt.bindings(version))
    stored = STORED[version]["flags"]["STRONGLY_TYPED"]
    assert found.strongly_typed == (1 << stored if version.startswith("10") else 0)  # from 11 on there is nothing else
    assert found.major == int(version.split(".")[0])


class TestLoad:
    def test_rtx(self, rtx):
        assert rtx.title == "TensorRT for RTX"
        assert rtx.major >= 1

    def test_nothing_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingDependencyError, match=r"fiducial\[tensorrt\]"):
            load("tensorrt")
        monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
        with pytest.raises(MissingDependencyError, match=r"fiducial\[tensorrt-rtx\]"):
            load("rtx")

    def test_what_is_left_of_a_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="10.0"))
        with pytest.raises(MissingDependencyError, match="not installed whole"):
            load("tensorrt")

    def test_too_old(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_trt.bindings("8.6.1"))
        with pytest.raises(MissingDependencyError, match=r"TensorRT 8\.6\.1 has no strongly typed networks"):
            load("tensorrt")


def test_errors_are_kept_and_the_rest_is_not_shown(rtx, caplog):
    said, severity = Said(rtx.trt), rtx.trt.ILogger.Severity
    said.logger.log(severity.INFO, "a layer")
    said.logger.log(severity.ERROR, "first")
    said.logger.log(severity.INTERNAL_ERROR, "second\nline")
    assert caplog.text == ""
    assert said.last("nothing") == "second line"
    assert said.last("nothing") == "nothing"
    with caplog.at_level("INFO"):
        Said(rtx.trt, verbose=True).logger.log(severity.VERBOSE, "a layer")
    assert "a layer" in caplog.text
