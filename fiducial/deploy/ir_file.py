"""A graph in OpenVINO's format, which may come from anywhere: what is in it, without running it."""

from __future__ import annotations

from pathlib import Path
from xml.parsers.expat import ExpatError, ParserCreate

from fiducial.deploy.onnx_file import AGAIN, RANDOM
from fiducial.errors import CheckpointError, one_line

__all__ = ["check_ir"]


def check_ir(path: Path) -> None:
    """Look whether a file is a whole graph of OpenVINO, whose readers of other formats print at what is none.

    Raises: CheckpointError for what is no graph, or draws random numbers.
    """
    root = ""
    drawn: set[str] = set()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal root
        root = root or tag
        if root != "net":
            raise ValueError(f"an XML document of {root!r}")
        if tag == "layer" and attributes.get("type") in RANDOM:
            drawn.add(attributes["type"])

    def refuse(*_: object) -> None:
        raise ValueError("a document type, which no graph has")

    parser = ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    try:
        with path.open("rb") as content:
            parser.ParseFile(content)
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror or error})", "check the file") from None
    except (ExpatError, ValueError, LookupError) as error:  # the last for a character set that there is not
        raise CheckpointError(str(path), f"not a graph of OpenVINO: {one_line(error)}", AGAIN) from None
    if drawn:
        found = f"draws random numbers ({', '.join(sorted(drawn))}): it has no one result"
        raise CheckpointError(str(path), found, AGAIN)
