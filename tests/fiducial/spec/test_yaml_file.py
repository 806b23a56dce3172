"""A spec file becomes plain data, or one line that names the file and the line."""

import os

import pytest

from fiducial.errors import SpecError
from fiducial.spec.yaml_file import MAX_BYTES, MAX_VALUES, read_yaml


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        path = tmp_path / "spec.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(path)

    return from_text


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            *(("1e-4", 1e-4), ("-.5", -0.5), ("1_000.5", 1000.5), ("0x10", 16), ("010", 8), ("12", 12)),
            *(("2026-11-29", "2026-11-29"), ("yes", True), ("off", False), ("~", None), ("1.2.3", "1.2.3"), ("=", "=")),
            *(("!!int '3'", 3), ("!!str 3", "3"), ("[]", []), ("{}", {}), ("'${a}'", "${a}")),
        ],
    )
    def test_of_a_key(self, read, text, value):
        found = read(f"a: {text}")["a"]
        assert (found, type(found)) == (value, type(value))

    def test_keys_are_text_as_written(self, read):
        assert read("1: a\n0x1: b\nnull: c\ntrue: d\n1.0: e\non: f") == dict(
            zip(("1", "0x1", "null", "true", "1.0", "on"), "abcdef", strict=True)
        )

    def test_merge(self, read):
        text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], c: 5}\nw: {<<: *x}"
        found = read(text)
        assert (found["z"], found["w"]) == ({"a": 1, "b": 2, "c": 5}, {"a": 1, "b": 2})

    def test_empty(self, read):
        assert read("") is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            *((f"a: {tag} xyz", f"a value that is no {tag[2:]}") for tag in ("!!int", "!!float", "!!bool")),
            *((f"a: {number}", "a value that is no int") for number in ("0b_", "0x_", "9" * 5000)),
            *((f"a: {tag} [x]", f"the tag {tag} is not read") for tag in ("!!set", "!!omap", "!!python/tuple", "!x")),
            ("a: !!python/object/apply:os.system [echo]", "the tag !!python/object/apply:os.system is not read"),
            *(("a: !!timestamp xyz", "the tag !!timestamp"), ("a: !!binary eA==", "the tag !!binary")),
            *(("a: &a {b: *a}", "recursive"), ("a: &a [*a]", "recursive"), ("a: &a {<<: *a}", "without a mapping")),
            *(("a: 1\na: 2", "duplicate key 'a'"), ("a: {b: 1, c: 2, b: 3}", "duplicate key 'b'")),
            *(("? [a]\n: 1", "a key that is no text"), ("? {a: 1}\n: 1", "a key that is no text")),
            *(("a: {<<: 3}", "<< without a mapping"), ("<<: x", "<< without a mapping")),
            *(("[" * 3000, "nested more than"), ("- " * 3000, "nested more than"), ("{a: " * 300, "nested more than")),
            *(("a: 1\n---\nb: 2", "another document"), ("a: *b", "undefined alias"), ("a: [", "expected the node")),
            *((b"a: \xff", "not text in UTF-8"), (b"a: caf\xe9", "not text in UTF-8"), (b"a: x\0y", "U+0000")),
            ("[" + "1," * MAX_VALUES + "]", "more than 30000 values"),
            ("a: &a {" + ",".join(f"k{i}: 1" for i in range(2000)) + "}\nb: {<<: [" + "*a," * 99 + "]}", "more than"),
        ],
    )
    def test_in_one_line_with_its_place(self, read, text, found):
        with pytest.raises(SpecError, match=r"spec\.yaml.* · not readable as YAML: .* · mend the file") as caught:
            read(text)
        assert found in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_the_value_is_not_shown(self, read):
        with pytest.raises(SpecError) as caught:
            read("encryption_key: !!int hunter2")
        assert "hunter2" not in str(caught.value)

    def test_large_files_are_not_read(self, read):
        with pytest.raises(SpecError, match="too large for a spec"):
            read("a: " + "x" * MAX_BYTES)

    def test_no_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path, found in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
            with pytest.raises(SpecError, match=found):
                read_yaml(tmp_path / path)
        for name in ("none", "x" * 300, "a\0b"):
            with pytest.raises(SpecError, match="cannot be read"):
                read_yaml(tmp_path / name)
