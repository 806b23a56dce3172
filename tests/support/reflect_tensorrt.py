"""What the Python bindings of TensorRT offer, where TensorRT itself cannot be installed.

    pip install --no-deps --target bindings tensorrt-cu13-bindings==11.4.0.106
    python tests/support/reflect_tensorrt.py bindings

Prints, as JSON, the names of every class that :mod:`fiducial.deploy.tensorrt.surface` uses. The bindings are imported
beside libraries with the same entry points that do nothing, which gcc makes in a folder that is thrown away. What
``tests/fiducial/deploy/tensorrt_surface.json`` holds was printed by this, for each version in it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = (
    *("Builder", "BuilderFlag", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine"),
    *("IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile"),
    *("ITensor", "ITimingCache", "LayerInformationFormat", "LayerType", "MemoryPoolType", "DataType", "OnnxParser"),
    *("NetworkDefinitionCreationFlag", "ParserError", "ProfilingVerbosity", "Runtime", "TensorIOMode"),
)
_ENTRIES = (
    *("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry"),
    *("getPluginRegistry", "getNvOnnxParserVersion", "getInferLibVersion", "initLibNvInferPlugins"),
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def reflected(module) -> dict[str, object]:
    """The names of each class, those of the module itself under an empty one, and the values of a network's flags."""
    names = {name: sorted(n for n in dir(getattr(module, name)) if not n.startswith("_")) for name in CLASSES}
    members = module.NetworkDefinitionCreationFlag.__members__
    flags = {name: int(value) for name, value in members.items()}
    return {"": sorted(name for name in dir(module) if not name.startswith("_")), "flags": flags, **names}


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    package = next(path.parent for path in Path(folder).glob("*/tensorrt*.so"))
    with tempfile.TemporaryDirectory() as work:
        code = Path(work, "entries.c")
        code.write_text("".join(f"void *{entry}(void) {{ return 0; }}\n" for entry in _ENTRIES))
        for name in _LIBRARIES:
            for major in (10, 11):
                target = Path(work, f"lib{name}.so.{major}")
                flags = ["-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", str(target)]
                subprocess.run(["gcc", str(code), *flags], check=True)
                ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
        module = importlib.import_module(package.name)
        print(json.dumps({module.__version__: reflected(module)}, separators=(",", ":")))


if __name__ == "__main__":
    main(sys.argv[1])
