"""The store of what was found about files: shared, and never in the way."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fiducial.data import kept
from fiducial.data.kept import Kept, key_of, stamp_of

RECORDS = [(key_of("look", f"/a/{number}"), b"stamp", f"[{number}]") for number in range(100)]
KEYS = [key for key, _, _ in RECORDS]


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "cache" / "looks.sqlite3"
    kept._given_up.clear()


def read(path):
    store = Kept(path)
    found = store.known(KEYS)
    store.close()
    return found


def fill(path):
    store = Kept(path)
    store.keep(RECORDS)
    store.close()


def test_records_come_back(path):
    fill(path)
    assert read(path) == {key: (stamp, text) for key, stamp, text in RECORDS}


def test_a_record_takes_the_place_of_an_older_one(path):
    fill(path)
    store = Kept(path)
    store.keep([(KEYS[0], b"later", "[]")])
    assert store.known(KEYS[:1]) == {KEYS[0]: (b"later", "[]")}


def test_after_its_end_it_knows_nothing(path):
    store = Kept(path)
    store.close()
    store.keep(RECORDS)
    assert store.known(KEYS) == {}


class TestKeys:
    def test_by_look_folder_and_name(self):
        names = [("a", "/x/y"), ("b", "/x/y"), ("a", "/x/z"), ("a", "/z/y"), ("a", "/x/y/y")]
        assert len({key_of(*name) for name in names}) == len(names)

    def test_one_file_has_one_key(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert key_of("a", "b/c") == key_of("a", str(tmp_path / "b" / "c")) == key_of("a", "b/../b/c")

    def test_names_that_are_no_text(self):
        assert key_of("a", os.fsdecode(b"/x/\xff")) != key_of("a", os.fsdecode(b"/x/\xfe"))


class TestStamps:
    def test_of_what_cannot_be_seen(self, tmp_path):
        assert stamp_of(tmp_path / "none") is stamp_of("a\0b") is None

    def test_settled(self, tmp_path, monkeypatch):
        (tmp_path / "a").write_bytes(b"x")
        assert not stamp_of(tmp_path / "a")[1]
        monkeypatch.setattr(kept, "SETTLED_NS", 0)
        assert stamp_of(tmp_path / "a")[1]


class TestWithoutIt:
    """Whatever is wrong, nothing is known, nothing raised, and one line says so."""

    def check(self, path, caplog, told):
        for _ in range(2):
            assert read(path) == {}
            fill(path)
        (message,) = caplog.messages
        assert str(path) in message
        assert told in message
        assert "looked at anew in every run" in message

    def test_a_damaged_file(self, path, caplog):
        path.parent.mkdir()
        path.write_bytes(b"no database" * 1000)
        self.check(path, caplog, "not a database")

    def test_half_a_file(self, path, caplog):
        fill(path)
        store = Kept(path)
        store.keep([(os.urandom(16), b"stamp", "x" * 2000) for _ in range(200)])
        store.close()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "not used" in self._told(path, caplog)

    def _told(self, path, caplog):
        fill(path)
        read(path)
        (message,) = caplog.messages
        return message

    def test_no_table_in_it(self, path, caplog):
        path.parent.mkdir()
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {kept.VERSION}")
        self.check(path, caplog, "no such table")

    def test_a_newer_version(self, path, caplog):
        fill(path)
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {kept.VERSION + 1}")
        self.check(path, caplog, "newer than this program")
        with sqlite3.connect(path) as connection:  # which may need what is in it
            assert connection.execute("SELECT count(*) FROM looks").fetchone() == (len(RECORDS),)

    def test_a_folder_that_cannot_be_made(self, tmp_path, path, caplog):
        (tmp_path / "cache").write_bytes(b"a file")
        self.check(path, caplog, "exists")

    def test_a_folder_in_its_place(self, path, caplog):
        path.mkdir(parents=True)
        self.check(path, caplog, "unable to open")

    def test_another_process_holds_it(self, path, caplog, monkeypatch):
        monkeypatch.setattr(kept, "_WAIT_S", 0.01)
        fill(path)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        self.check(path, caplog, "locked")
        holder.execute("ROLLBACK")


class TestWhatIsKnownIsUsed:
    """Where only writing fails, what is there is still read."""

    def opened(self, path, monkeypatch, how):
        fill(path)
        connect = kept._connect
        monkeypatch.setattr(kept, "_connect", lambda path: how(connect, path))
        return Kept(path)

    def check(self, store, caplog, told):
        assert store.known(KEYS[:1])
        store.keep([(os.urandom(16), b"stamp", "x" * 100_000)])
        (message,) = caplog.messages
        assert told in message

    def test_a_read_only_file(self, path, caplog, monkeypatch):
        def how(connect, path):
            return sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)

        self.check(self.opened(path, monkeypatch, how), caplog, "readonly")

    def test_a_full_disk(self, path, caplog, monkeypatch):
        def how(connect, path):
            connection = connect(path)
            connection.execute("PRAGMA max_page_count = 1")  # SQLite's own error of a full disk, at what is there
            return connection

        self.check(self.opened(path, monkeypatch, how), caplog, "full")
        kept._given_up.clear()
        assert len(read(path)) == len(RECORDS)


def test_an_older_version_is_emptied(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 0")
    assert read(path) == {}
    fill(path)
    assert len(read(path)) == len(RECORDS)


def test_too_large_a_store_is_emptied(path, monkeypatch):
    fill(path)
    monkeypatch.setattr(kept, "MAX_BYTES", 100)
    assert read(path) == {}


def test_several_processes_at_once(tmp_path, path):
    """Each writes its own records while the others read and write, and the store begins with all of them at once."""
    code = """
import os, sys
from pathlib import Path
from fiducial.data.kept import Kept, key_of
path, me = Path(sys.argv[1]), sys.argv[2]
store = Kept(path)
for lot in range(20):
    store.keep([(key_of(me, f"/{lot}/{n}"), b"stamp", me) for n in range(50)])
    known = store.known([key_of(me, f"/{lot}/{n}") for n in range(50)])
    assert set(known.values()) == {(b"stamp", me)} and len(known) == 50, known
store.close()
"""
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "abc"]
    for process in running:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM looks").fetchone() == (3000,)


def test_a_killed_writer_leaves_whole_lots(path):
    code = """
import os, sys, signal
from pathlib import Path
from fiducial.data.kept import Kept
store = Kept(Path(sys.argv[1]))
store.keep([(os.urandom(16), b"stamp", "[]") for _ in range(100)])
def records():
    for number in range(100_000):
        if number == 50_000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield os.urandom(16), b"stamp", "[]"
store.keep(records())
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    fill(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM looks").fetchone() == (200,)


def test_needs_no_torch():
    code = "import sys, fiducial.data.looks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Path(kept.__file__).exists()
