"""From what a user writes for a model file to the file: a path, a folder, ``latest``, ``best``, ``epoch:NN``.

Imports no torch, so that it also serves checks that run before anything heavy.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fiducial.errors import CheckpointError

CHECKPOINT_SUFFIXES = (".pth", ".tlt", ".ckpt", ".safetensors", ".pt")
"""Names that hold weights. Which format a file has is told by its content, not by these."""
DEPLOYED_FOLDERS = ("export", "gen_trt_engine", "quantize")
"""Action folders of a results root that hold model files other than checkpoints."""

WINNER = "best.json"
"""File in the folder of a search that names the folder of its best training."""

_PERIODIC = re.compile(r"model_epoch_(\d+)_step_(\d+)\.(?:pth|tlt|ckpt)")
_BEST = re.compile(r"model_best_(?:epoch_)?(\d+)(?:-v\d+)?\.(?:pth|tlt|ckpt)")
_POINTER_BYTES = 4096
_SHOWN = 5


@dataclass(frozen=True)
class ResolvedFile:
    """The absolute path of a model file, and in words how it was chosen (for one line of the log)."""

    path: Path
    how: str


def resolve_model_file(
    value: str | Path | None,
    *,
    results_dir: str | Path | None,
    prefix: str,
    key: str,
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES,
    of_folder: Literal["best", "latest"] = "best",
    deployed: tuple[str, ...] = DEPLOYED_FOLDERS,
) -> ResolvedFile:
    """The file that ``value``, the spec's ``key``, means.

    A file is taken as it is. A folder (a results root or an action's folder) gives its best, else its latest
    checkpoint; with ``of_folder="latest"`` the latest. ``latest``, ``best`` and ``epoch:NN`` (counted from 0, as in
    the file names) look into the run's own ``<results_dir>/train``; nothing (None, an empty string, ``???``) means
    ``latest``. *Best* is ``model_best_*.pth``, else ``<prefix>_best.pth``, else the epoch with the best ``monitor``
    (lowest or highest, by ``mode``) in ``status.json``, else the latest. *Latest* is ``<prefix>_latest.pth``, else the
    highest epoch and step. Where ``suffixes`` has no checkpoint kind (``.onnx``, ``.engine``), or a folder has no
    checkpoint, the newest file with one of them is taken, there or in the action folders ``deployed``.

    Raises: CheckpointError when there is no such file, naming what the folder does hold.
    """
    word = "" if value is None or str(value).strip() == "???" else str(value).strip()
    if word and word not in ("latest", "best") and not word.startswith("epoch:"):
        path = _local(word, key)
        if not path.exists() and (close := difflib.get_close_matches(word, ("latest", "best"), 1)):
            raise CheckpointError(key, f"no file {path.absolute()}", f"did you mean {close[0]}?")
        if not path.is_dir():
            return ResolvedFile(real_file(path, where=key, suffixes=suffixes), "given")
        folder = _Folder(path, prefix, key, suffixes, deployed)
        return folder.best(monitor, mode) if of_folder == "best" else folder.latest()
    if results_dir is None:
        raise CheckpointError(
            key, f"{word or 'nothing'} given, and no results_dir to look into", f"set {key} to a model file"
        )
    folder = _Folder(Path(results_dir).expanduser(), prefix, key, suffixes, deployed)
    if word.startswith("epoch:"):
        return folder.epoch(word.removeprefix("epoch:").strip())
    found = folder.best(monitor, mode) if word == "best" else folder.latest()
    return found if word else ResolvedFile(found.path, f"{key} is not set: {found.how}")


def _local(text: str, key: str) -> Path:
    if re.match(r"[a-z0-9]+://", text):
        raise CheckpointError(key, f"{text} is not on this machine", "download it first and give the local path")
    return Path(text).expanduser()


def newest_first(folder: str | Path, *, prefix: str, key: str) -> list[Path]:
    """The checkpoints that a training can be continued from, in a results root or an action's folder.

    ``<prefix>_latest.pth`` comes first, then the others by epoch and step, and the one that ``<prefix>_best.pth`` means
    at the end. Links and text pointers are followed; those that lead nowhere are left out.

    Raises: CheckpointError when there is no such folder.
    """
    path = _Folder(Path(folder).expanduser(), prefix, key, CHECKPOINT_SUFFIXES).path
    periodic = [(place, file) for place, file in _numbered(path, _PERIODIC).items()]
    best = [((epoch, -1), file) for (epoch,), file in _numbered(path, _BEST).items()]
    numbered = [file for _, file in sorted([*periodic, *best], reverse=True)]
    found: dict[Path, None] = {}
    for file in (path / f"{prefix}_latest.pth", *numbered, path / f"{prefix}_best.pth"):
        try:
            found[real_file(file).resolve()] = None
        except CheckpointError:
            continue
    return list(found)


def real_file(path: str | Path, *, where: str = "", suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES) -> Path:
    """The absolute path of an existing file; a text pointer (what a symlink becomes where there are none) is followed.

    ``suffixes``: of the files that are offered instead of one that is not there.

    Raises: CheckpointError (at ``where``, else at the path) for a missing file, a folder, a link to nothing or to
    itself.
    """
    given = Path(path).expanduser()
    found = Path(os.path.abspath(given))
    for _ in range(8):
        problem = _problem(found, suffixes)
        if problem:
            raise CheckpointError(where or str(given), *problem)
        target = _pointer(found)
        if target is None:
            return found
        found = target
    raise CheckpointError(where or str(given), f"{given} points to itself", _suggestion(given, suffixes))


def _problem(path: Path, suffixes: tuple[str, ...]) -> tuple[str, str] | None:
    try:
        if path.stat() and path.is_dir():
            return f"{path} is a folder", _suggestion(path / path.name, suffixes)
        return None if path.is_file() else (f"{path} is a device or a pipe, not a file", _suggestion(path, suffixes))
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{path} is a link to itself", f"delete it; {_suggestion(path, suffixes)}"
        if path.is_symlink():
            return f"{path} links to {os.readlink(path)}, which is not there", _suggestion(path, suffixes)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return f"no file {path}", _suggestion(path, suffixes)
        return f"{path} cannot be read ({error.strerror})", "check the file's permissions"


def _suggestion(path: Path, suffixes: tuple[str, ...]) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"check the path: there is no folder {folder}"
    names = [entry.name for entry in _files(folder, suffixes) if entry.name != path.name]
    if not names:
        return f"check the path: {folder} holds no {' or '.join(suffixes)} file"
    close = difflib.get_close_matches(path.name, names, n=_SHOWN, cutoff=0.5) or names[-_SHOWN:]
    return f"{folder} holds {', '.join(close)}" + (
        f" and {len(names) - len(close)} more" if len(names) > len(close) else ""
    )


def _pointer(path: Path) -> Path | None:
    """What a regular file that only holds a path points to."""
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:  # reading a pipe would wait for ever
        return None
    try:
        text = path.read_text("utf-8").strip()
    except (UnicodeDecodeError, OSError):
        return None
    if not text.endswith(CHECKPOINT_SUFFIXES) or len(text.splitlines()) != 1 or "\0" in text:
        return None
    return Path(os.path.abspath(path.parent / text))


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The folder's files with these suffixes, by name; links to nothing or to themselves are left out."""
    wanted = tuple(suffixes)
    return sorted(path for path in folder.iterdir() if path.name.endswith(wanted) and _readable(path))


def _readable(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a link to itself, before Python 3.13
        return False


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int, ...], Path]:
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir() if _readable(path))
    return {tuple(map(int, match.groups())): path for match, path in matches if match}


class _Folder:
    """A results root (its ``train`` holds the checkpoints) or the folder of one action."""

    def __init__(
        self,
        root: Path,
        prefix: str,
        key: str,
        suffixes: tuple[str, ...],
        deployed: tuple[str, ...] = DEPLOYED_FOLDERS,
    ) -> None:
        self.root, self.prefix, self.key, self.suffixes = Path(os.path.abspath(root)), prefix, key, suffixes
        self.deployed = deployed
        if not root.is_dir():
            raise CheckpointError(
                key, f"no folder {root}", f"set {key} to a model file, or results_dir to a finished run"
            )
        self.given = self.root
        self.root, self.counted = _winner(self.root) or (self.root, None)
        train = self.root / "train"
        in_train = train.is_dir() and (_files(train, CHECKPOINT_SUFFIXES) or not _files(self.root, CHECKPOINT_SUFFIXES))
        self.path = train if in_train else self.root
        self.wants_checkpoint = any(suffix in CHECKPOINT_SUFFIXES for suffix in suffixes)

    def best(self, monitor: str | None, mode: Literal["min", "max"]) -> ResolvedFile:
        if not self.wants_checkpoint:
            return self.newest()
        scores = _scores(self.path / "status.json", monitor) if monitor else {}
        ranked = sorted(scores, key=lambda epoch: (scores[epoch] if mode == "min" else -scores[epoch], epoch))
        kept = {epoch: path for (epoch,), path in sorted(_numbered(self.path, _BEST).items())}
        periodic = {epoch: path for (epoch, _), path in sorted(_numbered(self.path, _PERIODIC).items())}
        if counted := {**periodic, **kept}.get(self.counted if self.counted is not None else -1):
            return ResolvedFile(counted, f"epoch {self.counted} in {self.path}, which a search found best")
        if kept:
            path = next((kept[epoch] for epoch in ranked if epoch in kept), kept[max(kept)])
            return ResolvedFile(path, f"best checkpoint in {self.path}")
        named = self.path / f"{self.prefix}_best.pth"
        if _readable(named):
            return ResolvedFile(real_file(named.resolve()), f"best checkpoint in {self.path}")
        for epoch in ranked:
            if epoch in periodic:
                how = f"epoch {epoch} in {self.path}, with the best {monitor} among the saved ({scores[epoch]:g})"
                return ResolvedFile(periodic[epoch], how)
        return self.latest()

    def latest(self) -> ResolvedFile:
        if not self.wants_checkpoint:
            return self.newest()
        link, broken = self.path / f"{self.prefix}_latest.pth", ""
        if os.path.lexists(link):
            try:
                return ResolvedFile(real_file(link).resolve(), f"{link.name} in {self.path}")
            except CheckpointError as error:
                broken = f"; {error.problems[0].found}"
        periodic = _numbered(self.path, _PERIODIC)
        if periodic:
            return ResolvedFile(periodic[max(periodic)], f"highest epoch and step in {self.path}{broken}")
        if broken:
            raise CheckpointError(self.key, broken.removeprefix("; "), f"delete it and train again in {self.path}")
        return self.newest()

    def epoch(self, number: str) -> ResolvedFile:
        periodic = _numbered(self.path, _PERIODIC)
        epochs = sorted({epoch for epoch, _ in periodic})
        if not number.isdecimal():
            raise CheckpointError(self.key, f"epoch:{number}", "write epoch:NN with a whole number, counted from 0")
        steps = [position for position in periodic if position[0] == int(number)]
        if not steps:
            known = f"saved epochs: {', '.join(map(str, epochs))}" if epochs else "no epoch is saved there"
            raise CheckpointError(self.key, f"no checkpoint of epoch {int(number)} in {self.path}", known)
        return ResolvedFile(periodic[max(steps)], f"epoch {int(number)} in {self.path}")

    def newest(self) -> ResolvedFile:
        """The newest file with a wanted suffix, of whatever name, here or in the folder of a later action."""
        later = (root / name for root in (self.root, self.given) for name in self.deployed)
        folders = dict.fromkeys((self.path, self.root, *later))
        files = [path for folder in folders if folder.is_dir() for path in _files(folder, self.suffixes)]
        own = [path for path in files if not path.stem.endswith("_latest")]
        if not own:
            raise CheckpointError(
                self.key, f"{self.root} holds no {' or '.join(self.suffixes)} file", f"set {self.key} to a model file"
            )
        path = max(own, key=lambda path: (path.stat().st_mtime_ns, path.name))
        return ResolvedFile(path, f"newest {path.suffix} file in {path.parent}")


def _winner(root: Path) -> tuple[Path, int | None] | None:
    """The folder of the best training of a search, and the epoch, from 0, that it counts by.

    ``root`` is the folder of the search, or holds it beside no training.
    """
    searched = root if (root / WINNER).is_file() else root / "automl"
    if searched != root and (root / "train").is_dir():
        return None
    try:
        found = json.loads((searched / WINNER).read_text("utf-8"))
        folder, epoch = searched / str(found["folder"]), found.get("epoch")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (folder, epoch - 1 if isinstance(epoch, int) else None) if folder.is_dir() else None


def _scores(status: Path, monitor: str) -> dict[int, float]:
    """The metric of each epoch in a status file.

    TAO-compat: its records repeat the last KPIs until new ones come, and only the record of the training loop names the
    epoch. It stands after the validation of the same epoch, or before it where the record of the training metrics is
    still to come. Records that name their epoch themselves are preferred.
    """
    scores: dict[int, float] = {}
    pending: float | None = None
    epoch: int | None = None
    in_epoch = False  # between the record of the training loop and that of the training metrics
    for record in _records(status):
        value, message = _number(record.get("kpi"), monitor), record.get("message")
        if isinstance(record.get("epoch"), int):
            epoch = record["epoch"]
        if message == "Training loop in progress":
            in_epoch = True
            if epoch is not None and pending is not None:
                scores[epoch], pending = pending, None
        elif message in ("Eval metrics generated.", "Train metrics generated.") and value is not None:
            named = record.get("epoch", epoch if in_epoch or message.startswith("Train") else None)
            if isinstance(named, int):
                scores[named] = value
            else:
                pending = value
        if message == "Train metrics generated.":
            in_epoch = False
    return scores


def _records(status: Path) -> Iterator[dict[str, Any]]:
    if not status.is_file():
        return
    for line in status.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line cut off by a crash
        if isinstance(record, dict):
            yield record


def _number(kpi: Any, monitor: str) -> float | None:
    try:
        value = float(kpi[monitor])
    except (TypeError, KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None
