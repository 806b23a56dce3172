import errno
import json
import os

import pytest
import torch

from fiducial.data import feature_store
from fiducial.data.feature_store import DiskStore, NoStore, RamStore, make_room

KEYS = [bytes([i]) * 16 for i in range(6)]
MB = 2**20


def features(number):
    """Of three types, one of them of an odd size."""
    return (
        torch.full((2, 3), number + 0.5),
        torch.full((5,), number, dtype=torch.bfloat16),
        torch.tensor([number], dtype=torch.int64),
    )


def same(a, b):
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stores(tmp_path, max_bytes=MB):
    return {"ram": lambda: RamStore(max_bytes), "disk": lambda: DiskStore(tmp_path / "store", max_bytes)}


@pytest.fixture
def filled(tmp_path):
    """A closed store with three pictures; opening gives it again."""
    store = DiskStore(tmp_path / "store", MB)
    for number in range(3):
        assert store.put(KEYS[number], features(number))
    store.close()
    return lambda: DiskStore(tmp_path / "store", MB)


def held(store):
    return [number for number, key in enumerate(KEYS) if (found := store.get(key)) and same(found, features(number))]


class TestBoth:
    @pytest.mark.parametrize("kind", ["ram", "disk"])
    def test_gives_back_what_it_was_given(self, tmp_path, kind):
        store = stores(tmp_path)[kind]()
        assert store.get(KEYS[0]) is None
        for number in (0, 1, 2):
            assert store.put(KEYS[number], features(number))
        assert held(store) == [0, 1, 2]
        assert len(store) == 3

    @pytest.mark.parametrize("kind", ["ram", "disk"])
    def test_keeps_the_first_within_the_bound_and_says_so_once(self, tmp_path, kind, caplog):
        store = stores(tmp_path, 2 * 3 * 64)[kind]()  # three tensors of at most 64 bytes each
        assert [store.put(KEYS[number], features(number)) for number in range(4)] == [True, True, False, False]
        assert held(store) == [0, 1]
        assert caplog.text.count("train.feature_cache_mb") == 1

    def test_what_is_kept_does_not_hold_its_batch(self):
        store, batch = RamStore(MB), torch.randn(100, 1000)
        store.put(KEYS[0], (batch[0],))
        assert store.get(KEYS[0])[0].untyped_storage().nbytes() == 4000

    def test_nothing(self, caplog):
        assert not NoStore().put(KEYS[0], features(0))
        assert NoStore().get(KEYS[0]) is None
        assert not caplog.text


class TestDisk:
    def test_a_later_run_finds_and_adds(self, filled):
        store = filled()
        assert held(store) == [0, 1, 2]
        assert store.put(KEYS[3], features(3))
        store.close()
        assert held(filled()) == [0, 1, 2, 3]

    def test_the_bound_counts_what_is_there(self, filled, tmp_path):
        bound = filled().num_bytes
        assert not DiskStore(tmp_path / "store", bound).put(KEYS[3], features(3))

    def test_two_writers_at_once(self, filled):
        first, second = filled(), filled()
        assert first.put(KEYS[3], features(3))
        assert second.put(KEYS[4], features(4))
        assert held(first) == [0, 1, 2, 3]  # what the other adds meanwhile is not seen
        first.close()
        second.close()
        assert held(filled()) == [0, 1, 2, 3, 4]
        assert len(list(filled().folder.glob("part-*.data"))) == 2

    def test_rows_are_mapped(self, filled):
        store = filled()
        store.get(KEYS[0])
        assert type(store._parts[0]._map).__name__ == "memmap"


class TestInterrupted:
    @pytest.mark.parametrize("cut", [1, 4, 19])
    def test_half_a_key(self, filled, cut):
        keys = filled().folder / "part-0.keys"
        os.truncate(keys, keys.stat().st_size - cut)
        store = filled()
        assert held(store) == [0, 1]
        assert store.put(KEYS[2], features(2))  # in its place
        store.close()
        assert held(filled()) == [0, 1, 2]

    @pytest.mark.parametrize("cut", [1, 64])
    def test_half_a_row(self, filled, cut):
        data = filled().folder / "part-0.data"
        os.truncate(data, data.stat().st_size - cut)
        assert held(filled()) == [0, 1]

    def test_a_row_without_its_key(self, filled):
        with (filled().folder / "part-0.data").open("ab") as file:
            file.write(b"x" * 100)
        store = filled()
        assert store.put(KEYS[3], features(3))
        store.close()
        assert held(filled()) == [0, 1, 2, 3]

    def test_a_damaged_row_is_made_again(self, filled, caplog):
        with (filled().folder / "part-0.data").open("r+b") as file:
            file.seek(3)
            file.write(b"\xff")
        store = filled()
        assert held(store) == [1, 2]
        assert "damaged" in caplog.text
        assert store.put(KEYS[0], features(0))
        store.close()
        assert held(filled()) == [0, 1, 2]


class TestUnusable:
    def test_another_version(self, filled):
        about = filled().folder / "about.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 99}))
        with pytest.raises(OSError, match="another version"):
            filled()

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 1, "tensors": [["float99", [1]]]}', "\0"])
    def test_damaged(self, filled, text):
        (filled().folder / "about.json").write_text(text)
        with pytest.raises(OSError, match="damaged"):
            filled()

    def test_full_disk(self, filled, monkeypatch, caplog):
        store = filled()
        assert store.put(KEYS[3], features(3))
        write = os.write

        def full(file, content):  # the last bytes that there was room for, and no more
            if len(content) < 50:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, content[:50])

        monkeypatch.setattr(feature_store.os, "write", full)
        assert not store.put(KEYS[4], features(4))
        assert not store.put(KEYS[5], features(5))
        assert caplog.text.count("No space left on device") == 1
        assert held(store) == [0, 1, 2, 3]
        monkeypatch.undo()
        store.close()
        assert held(filled()) == [0, 1, 2, 3]

    def test_read_only_folder_is_read(self, filled, monkeypatch, caplog):
        def refuse(*arguments):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        store = filled()
        monkeypatch.setattr(feature_store.os, "open", refuse)
        assert not store.put(KEYS[3], features(3))
        assert held(store) == [0, 1, 2]
        assert "Permission denied" in caplog.text

    def test_a_file_in_its_place(self, tmp_path, caplog):
        (tmp_path / "store").write_text("x")
        store = DiskStore(tmp_path / "store", MB)
        assert not store.put(KEYS[0], features(0))
        assert "cannot be written to" in caplog.text

    def test_other_shapes(self, filled, caplog):
        assert not filled().put(KEYS[3], features(3)[:2])
        assert "it holds features of" in caplog.text


class TestRoom:
    def make(self, root, name, age, size=1000):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "part-0.data").write_bytes(bytes(size))
        (folder / "part-0.lock").touch()
        os.utime(folder, (1e9 - age, 1e9 - age))

    def test_what_was_used_longest_ago_goes_first(self, tmp_path):
        for name, age in (("new", 1), ("old", 3), ("middle", 2), ("mine", 9)):
            self.make(tmp_path, name, age)
        assert make_room(tmp_path, tmp_path / "mine", 4000) == 2000
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["middle", "mine", "new"]

    def test_what_another_process_writes_to_stays(self, tmp_path):
        self.make(tmp_path, "old", 3)
        held = DiskStore(tmp_path / "held", MB)
        held.put(KEYS[0], features(0))
        assert make_room(tmp_path, tmp_path / "mine", 0) == held.num_bytes + sum(
            file.stat().st_size for file in held.folder.iterdir() if file.suffix != ".data"
        )
        assert [folder.name for folder in tmp_path.iterdir()] == ["held"]

    def test_no_folder(self, tmp_path):
        assert make_room(tmp_path / "none", tmp_path / "none/mine", 1) == 0
