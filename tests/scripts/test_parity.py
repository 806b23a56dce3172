"""The parity program on stored cases, broken ones and ones of its own."""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import parity  # noqa: E402
from parity_cases import Case, CaseError, NotBuilt, check_output, load_case, recipe, run_case, runs  # noqa: E402

STORED = ROOT / "tests" / "stored"
EXACT = {"shape": [3], "stride": 1, "atol": 0.1, "rtol": 0.0}


@runs("test_double")
def double(case: Case):
    return {"y": 2 * case.inputs()["x"]}


@runs("test_crash")
def crash(case: Case):
    raise RuntimeError("first line\nsecond line")


@runs("test_absent", build="nothing")
def absent(case: Case):
    raise NotBuilt("no such thing")


def write_case(folder: Path, name: str, expected: dict | None = None, **changes) -> Path:
    manifest = {
        "case": name,
        "run": "test_double",
        "config": {},
        "inputs": {"x": {"value": [1, 2, 3]}},
        "outputs": {"y": EXACT},
        **changes,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(manifest))
    np.savez(path.with_suffix(".npz"), **({"y": np.array([2.0, 4.0, 6.0])} if expected is None else expected))
    return path


class TestProgram:
    @pytest.mark.parametrize("case", ["contrastive_loss", "lr_changenet", "oi_sampler", "aoi_metrics"])
    def test_stored(self, case, capsys):
        assert parity.main([str(STORED), "--only", case, "--strict"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("pass")
        assert "1 passed, 0 failed, 0 not built" in out

    def test_one_line_per_case_and_exit_code(self, tmp_path, capsys):
        write_case(tmp_path, "a_good")
        write_case(tmp_path, "b_off", {"y": np.array([2.0, 4.0, 6.2])})
        write_case(tmp_path, "c_absent", run="unheard_of")
        assert parity.main([str(tmp_path)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines[:2]] == [["pass", "a_good"], ["FAIL", "b_off"]]
        assert lines[2].startswith("not built  c_absent")
        assert "y 0.2 = 2 of the allowed" in lines[1]
        assert lines[3] == "1 passed, 1 failed, 1 not built"

    def test_strict_refuses_what_is_not_built(self, tmp_path):
        write_case(tmp_path, "absent", run="test_absent", build="nothing")
        assert parity.main([str(tmp_path)]) == 0
        assert parity.main([str(tmp_path), "--strict"]) == 1

    def test_only(self, tmp_path, capsys):
        write_case(tmp_path, "good")
        write_case(tmp_path, "broken", {})
        assert parity.main([str(tmp_path), "--only", "go*"]) == 0
        assert "1 passed" in capsys.readouterr().out

    def test_no_cases(self, tmp_path, capsys):
        assert parity.main([str(tmp_path)]) == 2
        assert "no case" in capsys.readouterr().err


class TestBrokenCases:
    def test_manifest_is_no_json(self, tmp_path):
        (tmp_path / "bad.json").write_text("{")
        outcome = run_case(tmp_path / "bad.json")
        assert (outcome.status, "unreadable manifest" in outcome.note) == ("FAIL", True)

    @pytest.mark.parametrize("content", ["[]", "{}", '{"outputs": 3}'])
    def test_json_is_no_manifest(self, tmp_path, content):
        (tmp_path / "bad.json").write_text(content)
        assert run_case(tmp_path / "bad.json").note == "no manifest: it has no table 'outputs'"

    def test_missing_outputs(self, tmp_path):
        path = write_case(tmp_path, "case")
        path.with_suffix(".npz").unlink()
        assert "unreadable case.npz" in run_case(path).note

    def test_damaged_outputs(self, tmp_path):
        path = write_case(tmp_path, "case")
        path.with_suffix(".npz").write_bytes(b"no archive")
        assert run_case(path).status == "FAIL"

    def test_pickles_are_not_read(self, tmp_path):
        path = write_case(tmp_path, "case", {"y": np.array([{}, {}, {}], dtype=object)})
        assert "allow_pickle" in run_case(path).note

    def test_output_not_stored_or_not_computed(self, tmp_path):
        outputs = {"y": EXACT, "z": EXACT}
        note = run_case(write_case(tmp_path, "case", {"z": np.zeros(3)}, outputs=outputs)).note
        assert note == "y: not stored; z: not computed"

    def test_crash_is_a_failure(self, tmp_path):
        outcome = run_case(write_case(tmp_path, "case", run="test_crash"))
        assert (outcome.status, outcome.note) == ("FAIL", "RuntimeError: first line second line")

    def test_missing_entry(self, tmp_path):
        path = write_case(tmp_path, "case", inputs={"w": {"value": [1]}})
        assert run_case(path).note == "KeyError: 'x'"


class TestCheckOutput:
    def test_tolerance_by_hand(self):
        info = {"shape": [2], "stride": 1, "atol": 0.5, "rtol": 0.1}  # allowed: 0.5 + 0.1 * 10
        assert check_output(torch.tensor([10.0, 11.4]), info, np.array([10.0, 10.0])) == (
            True,
            pytest.approx(1.4),
            pytest.approx(1.4 / 1.5),
        )
        assert not check_output(torch.tensor([10.0, 11.6]), info, np.array([10.0, 10.0]))[0]

    def test_samples_by_stride(self):
        info = {"shape": [2, 3], "stride": 4, "atol": 0.0, "rtol": 0.0}
        assert check_output(np.arange(6.0).reshape(2, 3), info, np.array([0.0, 4.0]))[0]

    def test_shapes(self):
        with pytest.raises(CaseError, match=r"shape \[2\] instead of \[3\]"):
            check_output(torch.zeros(2), EXACT, np.zeros(3))
        with pytest.raises(CaseError, match="2 stored values instead of 3"):
            check_output(torch.zeros(3), EXACT, np.zeros(2))

    def test_nan_only_where_expected(self):
        nan = float("nan")
        assert check_output(torch.tensor([1, nan, 3]), EXACT, np.array([1, nan, 3]))[0]
        assert not check_output(torch.tensor([1, nan, 3]), EXACT, np.array([1.0, 2, 3]))[0]
        assert not check_output(torch.tensor([1.0, 2, 3]), EXACT, np.array([1, nan, 3]))[0]

    def test_infinities_are_no_numbers_to_tolerate(self):
        inf = float("inf")
        assert check_output(torch.tensor([inf, 2, 3]), EXACT, np.array([inf, 2.0, 3]))[0]
        assert not check_output(torch.tensor([inf, 2, 3]), EXACT, np.array([1.0, 2, 3]))[0]
        assert not check_output(torch.tensor([1.0, 2, 3]), EXACT, np.array([inf, 2.0, 3]))[0]

    @pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.5, False)])
    def test_a_few_may_differ_more(self, value, passed):
        info = {**EXACT, "shape": [10], "accept": {"fraction": 0.1, "error": 1.0}}
        got = np.zeros(10)
        got[3] = value
        assert check_output(got, info, np.zeros(10))[0] is passed
        got[4] = value
        assert not check_output(got, info, np.zeros(10))[0]


class TestRecipe:
    def test_seed_of_an_entry(self):
        random = np.random.RandomState((zlib.crc32(b"a.proj") + 3) % 2**32)
        assert np.array_equal(recipe.entry("a.proj", (4,), 3), 0.05 * random.standard_normal(4))

    @pytest.mark.parametrize(
        ("key", "shape", "centre", "spread"),
        [
            ("bn.running_var", (4000,), 1 + 0.1 * (2 / np.pi) ** 0.5, 0.1 * (1 - 2 / np.pi) ** 0.5),
            ("bn.running_mean", (4000,), 0, 0.05),
            ("ls.gamma", (4000,), 0.5, 0.05),
            ("mlp.temperature", (4000, 1, 1), 0.5, 0.05),
            ("attn.sampling_offsets.bias", (4000,), 0, 2),
            ("conv.weight", (400, 10, 1, 1), 0, 10**-0.5),
            ("pos_embed", (1, 4000), 0, 0.2),
            ("norm.weight", (4000,), 1, 0.05),
            ("norm.bias", (4000,), 0, 0.05),
        ],
    )
    def test_rules(self, key, shape, centre, spread):
        values = recipe.entry(key, shape)
        assert values.mean() == pytest.approx(centre, abs=5 * spread / 4000**0.5)
        assert values.std() == pytest.approx(spread, rel=0.1)

    def test_state_dict(self):
        manifest = {
            "seed": 1,
            "state_dict": [
                ["a.weight", [2, 2], "float32"],
                ["s", [], "float32"],
                ["n.num_batches_tracked", [], "int64"],
            ],
            "fixed": {"s": 0.5},
            "aliases": {"b.weight": "a.weight"},
        }
        weights = recipe.state_dict(manifest)
        assert list(weights) == ["a.weight", "s", "n.num_batches_tracked", "b.weight"]
        assert weights["b.weight"] is weights["a.weight"]
        assert (weights["s"].item(), weights["n.num_batches_tracked"].dtype) == (0.5, torch.int64)
        with pytest.raises(ValueError, match="no value for s"):
            recipe.state_dict({**manifest, "fixed": {}})

    def test_images_by_hand(self):
        picture = recipe.uint8_image(5, 7, seed=2, block=4, channels=1)
        random = np.random.RandomState(2)
        coarse, fine = random.randint(0, 224, (2, 2, 1)), random.randint(0, 32, (5, 7, 1))
        assert picture.shape == (5, 7, 1)
        assert picture[4, 6] == coarse[1, 1] + fine[4, 6]
        batch = recipe.image((1, 2, 5, 7), seed=2, block=4, fine=0.25)
        random = np.random.RandomState(2)
        coarse, detail = random.uniform(-1.5, 1.5, (1, 2, 2, 2)), random.uniform(-0.25, 0.25, (1, 2, 5, 7))
        assert batch[0, 1, 3, 4] == np.float32(coarse[0, 1, 0, 1] + detail[0, 1, 3, 4])

    def test_inputs(self):
        assert recipe.make_input({"value": [[1], [0]]}).shape == (2, 1)
        assert recipe.make_input({"value": [1], "dtype": "int64"}).dtype == torch.int64
        drawn = recipe.make_input({"kind": "uniform", "shape": [100], "seed": 1, "low": 2, "high": 3, "note": "n"})
        assert 2 <= drawn.min() <= drawn.max() < 3
        assert set(recipe.make_input({"kind": "integers", "shape": [50], "seed": 1}).tolist()) == {0, 1}
        assert recipe.make_input({"kind": "normal", "shape": [2], "seed": 1, "scale": 0.0}).tolist() == [0, 0]
        with pytest.raises(ValueError, match="unknown kind"):
            recipe.make_input({"kind": "poem"})


def test_load_case_without_outputs_needs_no_arrays(tmp_path):
    (tmp_path / "keys.json").write_text('{"outputs": {}, "config": {"name": "x"}}')
    assert load_case(tmp_path / "keys.json").config == {"name": "x"}
