"""Where a search is kept: Optuna's storage, whose search it is, and trials whose process is gone."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fiducial.errors import Problem, SpecError, StorageError, UserError, one_line, optional
from fiducial.machine import storage_error
from fiducial.spec.bounded import brief

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = [
    "Workers",
    "check_identity",
    "check_storage",
    "open_study",
    "standing",
    "state",
    "storage_faults",
    "take_over",
]

JOURNAL = "journal.log"
_BEGINS = b'{"op_code"'
"""How a journal of Optuna's begins."""
BEAT_S = 60.0
"""Seconds between two signs of life of a trial."""
SILENT_S = 600.0
"""Seconds without one after which a trial of a machine whose folder is not seen here counts as gone."""
_CONNECT_S = 10


def state(name: str) -> Any:
    """Optuna's state of a trial: ``RUNNING``, ``COMPLETE``, ``PRUNED``, ``FAIL``, ``WAITING``."""
    return optional("optuna.trial", extra="automl").TrialState[name]


def open_study(
    storage: str | None, folder: Path, name: str, direction: str, *, sampler: BaseSampler, pruner: BasePruner
) -> Study:
    """The study of a name, made where it is not there. ``storage``: a database URL, or a journal file, or None.

    Raises: StorageError when the storage cannot be reached; SpecError when its study is of the other direction.
    """
    optuna = optional("optuna", extra="automl")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage_faults():
        where = _database(storage, optuna) if storage and "://" in storage else _journal(storage, folder, optuna)
        study: Study = optuna.create_study(
            storage=where, study_name=name, direction=direction, sampler=sampler, pruner=pruner, load_if_exists=True
        )
        found = study.direction.name.lower()
    if found != direction:
        raise SpecError("automl.storage", f"its study {name!r} is one to {found}", "set automl.study_name to another")
    return study


def check_storage(storage: str | None) -> Iterator[Problem]:
    """What is wrong with a storage that is named; nothing is made, and no table looked into."""
    try:
        with storage_faults():
            if storage and "://" in storage:
                _reach(*_connection(storage))
            elif storage:
                _check_journal(_journal_path(storage))
    except UserError as error:
        yield from error.problems


def _reach(url: str, options: Mapping[str, Any]) -> None:
    """Connect to a database. Of a file that is not there yet the folder must be."""
    sqlalchemy = optional("sqlalchemy", extra="automl")
    parsed = sqlalchemy.make_url(url)
    file = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
    if file is None or file.exists() or not file.parent.is_dir():  # else a connection would make it
        engine = sqlalchemy.create_engine(url, **options)
        sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()


def _database(url: str, optuna: Any) -> Any:
    url, options = _connection(url)
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _connection(url: str) -> tuple[str, dict[str, Any]]:
    """The URL with the driver that is there, and how to connect. Raises: StorageError."""
    try:
        optional("sqlalchemy", extra="automl").make_url(url)
    except ValueError:  # whose text may be a part of a password
        raise StorageError(
            "automl.storage", "its port is no number", "write postgresql://user@host:5432/name"
        ) from None
    if url in ("sqlite://", "sqlite:///:memory:"):
        raise StorageError("automl.storage", f"{url}, in memory, ends with its process", "name a file: sqlite:///FILE")
    if url.startswith(("postgresql://", "postgres://")) and importlib.util.find_spec("psycopg2") is None:
        url = f"postgresql+psycopg://{url.partition('://')[2]}"
    wait = {"connect_timeout": _CONNECT_S} if url.startswith(("postgresql", "mysql")) else {}
    return url, {"pool_pre_ping": True, "connect_args": wait}


def _journal_path(storage: str) -> Path:
    path = Path(storage).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise StorageError("automl.storage", f"{path} is no file that can be written", "name a file in a folder")
    return path


def _journal(storage: str | None, folder: Path, optuna: Any) -> Any:
    path = _journal_path(storage or str(folder / JOURNAL))
    lock = FileLock(f"{path}.lock")

    class OwnLock:
        """The operating system's, which ends with its process: Optuna's own outlives a killed one."""

        def acquire(self) -> bool:
            lock.acquire()
            return True

        def release(self) -> None:
            lock.release()

    with lock:
        _mend(path)
    backend = optuna.storages.journal.JournalFileBackend(str(path), OwnLock())
    return optuna.storages.JournalStorage(backend)


def _check_journal(path: Path) -> None:
    """Raises: StorageError for a file that is there and no journal."""
    if not path.exists():
        return
    with path.open("rb") as file:
        if not _BEGINS.startswith(file.read(len(_BEGINS))):
            fix = "name another file, or a database as sqlite:///FILE"
            raise StorageError("automl.storage", f"{path} is no journal of a search", fix)


def _mend(path: Path) -> None:
    """Take away a last line that was cut off, by a full disk or a lost machine: nothing could be read after it.

    Raises: StorageError for a file that is no journal, which stays as it is.
    """
    _check_journal(path)
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail = 1
        while end - tail >= 0 and end:
            file.seek(end - tail)
            if file.read(1) == b"\n":
                break
            tail += 1
        if tail > 1:
            file.truncate(max(end - tail + 1, 0))


@contextmanager
def storage_faults() -> Iterator[None]:
    """Raises: StorageError for what a database, its driver or a journal file cannot do."""
    fix = "check automl.storage, or leave it out for a journal file in the results folder"
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        found = f"the driver of its database is missing ({one_line(_cause(error), 120)})"
        raise StorageError("automl.storage", found, "pip install 'psycopg[binary]' for PostgreSQL, say") from error
    except OSError as error:
        raise storage_error(error, Path(".")) or StorageError("automl.storage", one_line(error), fix) from error
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        foreign = module in ("sqlalchemy", "psycopg", "psycopg2", "pymysql", "sqlite3", "alembic")
        if foreign or type(error).__name__ in ("StorageInternalError", "JSONDecodeError"):
            found = f"it cannot be used: {one_line(_cause(error), 200)}"
            raise StorageError("automl.storage", found, fix) from error
        raise


def _cause(error: BaseException) -> BaseException:
    """What an error was raised from in the end: Optuna's own lines guess, a driver's say what happened."""
    return _cause(error.__cause__) if error.__cause__ else error


def check_identity(study: Study, identity: Mapping[str, Any]) -> None:
    """Note whose study it is, or compare. Raises: SpecError naming what is different."""
    kept = study.user_attrs.get("identity")
    if kept is None:
        if study.get_trials(deepcopy=False):
            fix = "set automl.study_name, or automl.storage, to another"
            raise SpecError("automl.storage", f"its study {study.study_name!r} is not one of this program", fix)
        study.set_user_attr("identity", dict(identity))
        return
    differences = [
        Problem("automl.storage", f"its study {study.study_name!r} has {part}", f"here it is {here}; {_ANOTHER}")
        for part, here in _differences(kept, identity)
    ]
    if differences:
        raise SpecError.of(differences)


_ANOTHER = "give the same spec to go on, or set another results_dir (or automl.study_name)"


def _differences(kept: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys((*kept, *now)):
        before, after = kept.get(name), now.get(name)
        path = f"{prefix}{name}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{path}: " if not prefix else f"{path}.")
        elif before != after and not (_is_path(before) and _is_path(after)):
            yield f"{path} {_told(before)}", _told(after)


def _told(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 120) if isinstance(value, list | dict) else brief(value)


def _is_path(value: Any) -> bool:
    """Whether a value says where something is, which may be elsewhere on another machine."""
    return value in (None, "") or (isinstance(value, str) and ("/" in value or os.sep in value))


def standing(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: without those that another one continues."""
    continued = {t.user_attrs["continues"] for t in trials if "continues" in t.user_attrs}
    return [t for t in trials if t.number not in continued and not t.user_attrs.get("beyond")]


def place_of(number: int, trials: Sequence[FrozenTrial]) -> int:
    """The place of a trial among those that continue no other: its number for people, and its folder's."""
    return number - sum("continues" in t.user_attrs for t in trials if t.number < number)


def root_of(trial: FrozenTrial) -> int:
    """The number of a training for people, which names its folder; one that continues another has the other's."""
    return int(trial.user_attrs.get("root", trial.number))


class Workers:
    """The processes of a search that see one folder: each holds a lock file while it lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "workers"
        self.folder.mkdir(exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._lock = FileLock(self.folder / self.name)
        self._lock.acquire()

    def close(self) -> None:
        """Let go."""
        self._lock.release()
        (self.folder / self.name).unlink(missing_ok=True)

    def is_gone(self, trial: FrozenTrial) -> bool:
        """Whether nobody looks after a running trial any more."""
        name = trial.user_attrs.get("worker", "")
        if name == self.name:
            return False
        path = self.folder / name
        if name and path.is_file():
            return not _held(path)
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        beat = float(trial.user_attrs.get("beat", began))
        here = name.startswith(f"{socket.gethostname()}-") and not path.exists()
        return here or time.time() - beat > SILENT_S

    def others(self) -> int:
        """How many other processes are alive."""
        return sum(path.name != self.name and _held(path) for path in self.folder.iterdir())


def alive(folder: Path) -> int:
    """How many processes work on the search in a folder."""
    workers = folder / "workers"
    return sum(_held(path) for path in workers.iterdir()) if workers.is_dir() else 0


def _held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def take_over(study: Study, workers: Workers) -> list[int]:
    """End the trials whose process is gone, each to be continued by a new one; returns their folders' numbers."""
    taken = []
    for trial in study.get_trials(deepcopy=False, states=(state("RUNNING"),)):
        if not workers.is_gone(trial):
            continue
        try:
            study.tell(trial.number, state=state("FAIL"))
        except (ValueError, RuntimeError):  # another process was faster
            continue
        kept = {
            name: value
            for name, value in trial.user_attrs.items()
            if name in ("own", "values", "generation", "member", "parent")
        }
        study.enqueue_trial(trial.params, {**kept, "continues": trial.number, "root": root_of(trial)})
        taken.append(root_of(trial))
    return taken
