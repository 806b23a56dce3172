"""The faster way is taken, whatever the processor: with a timer made up for the test."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F

from fiducial.ops import fastest, linear
from fiducial.ops.fastest import GAIN, VARIABLE, Fastest, processor

WAYS = ("plain", "other")


@pytest.fixture(autouse=True)
def measuring(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


class Clock:
    """A clock that runs only while a way runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.now

    def make(self, plain, other):
        """The two ways, which take these seconds: numbers, or the next of a list."""

        def run(name, seconds):
            def takes():
                self.runs.append(name)
                self.now += seconds if isinstance(seconds, float) else seconds.pop(0)

            return takes

        return lambda: [run("plain", plain), run("other", other)]


@pytest.fixture
def clock():
    return Clock()


def chooser(clock, folder) -> Fastest:
    return Fastest("layers", WAYS, timer=clock, folder=folder)


class TestChoice:
    @pytest.mark.parametrize(
        ("plain", "other", "wanted"),
        [
            (0.002, 0.001, "other"),
            (0.001, 0.002, "plain"),
            (0.001, 0.001, "plain"),
            (0.001, 0.001 * GAIN * 1.01, "plain"),  # too little to be worth it
            (0.001, 0.001 * GAIN * 0.99, "other"),
        ],
    )
    def test_the_faster_one_is_taken(self, clock, tmp_path, plain, other, wanted):
        assert chooser(clock, tmp_path).way("training", (4, 3, 2), clock.make(plain, other)) == wanted

    def test_one_lucky_turn_is_not_enough(self, clock, tmp_path):
        other = [0.1, 0.001, *[0.1] * 8]
        assert chooser(clock, tmp_path).way("training", (4,), clock.make(0.1, other)) == "plain"

    def test_turns_alternate_after_a_first_call_that_is_not_counted(self, clock, tmp_path):
        plain, other = [9.0, *[0.02] * 8], [9.0, *[0.01] * 8]
        assert chooser(clock, tmp_path).way("training", (4,), clock.make(plain, other)) == "other"
        assert clock.runs == ["plain", "other"] * 4

    def test_it_is_asked_once(self, clock, tmp_path):
        chosen = chooser(clock, tmp_path)
        for _ in range(3):
            assert chosen.way("training", (4,), clock.make(0.02, 0.01)) == "other"
        assert len(clock.runs) == 8

    def test_modes_and_shapes_are_questions_of_their_own(self, clock, tmp_path):
        chosen = chooser(clock, tmp_path)
        assert chosen.way("training", (4,), clock.make(0.01, 0.02)) == "plain"
        assert chosen.way("inference", (4,), clock.make(0.02, 0.01)) == "other"
        assert chosen.way("training", (8,), clock.make(0.02, 0.01)) == "other"
        assert chosen.describe() == (
            f"layers by what is fastest on {processor()}, shapes in inference: other 1; training: plain 1, other 1"
        )

    def test_no_more_than_half_a_second_is_spent_and_the_nearest_answers(self, clock, tmp_path):
        chosen = chooser(clock, tmp_path)
        assert chosen.way("training", (4, 4), clock.make(0.002, 0.001)) == "other"
        assert chosen.way("training", (1024, 4), clock.make(0.05, 0.1)) == "plain"  # 4 turns: the time is used up
        before = len(clock.runs)
        assert chosen.way("training", (8, 4), clock.make(0.01, 0.02)) == "other"
        assert chosen.way("training", (512, 4), clock.make(0.02, 0.01)) == "plain"
        assert len(clock.runs) == before
        assert chosen.way("inference", (8, 4), clock.make(0.02, 0.01)) == "other", "another mode has time of its own"

    def test_off_takes_the_plain_way(self, clock, tmp_path, monkeypatch):
        monkeypatch.setenv(VARIABLE, "off")
        chosen = chooser(clock, tmp_path)
        assert chosen.way("training", (4,), clock.make(0.02, 0.01)) == "plain"
        assert chosen.describe().endswith("the plain way: FIDUCIAL_MEASURE=off")
        assert not clock.runs
        assert not list(tmp_path.iterdir())


class TestKept:
    def test_another_process_does_not_time_again(self, clock, tmp_path):
        chooser(clock, tmp_path).way("training", (4, 3), clock.make(0.02, 0.01))
        clock.runs.clear()
        assert chooser(clock, tmp_path).way("training", (4, 3), clock.make(0.01, 0.02)) == "other"
        assert not clock.runs
        (record,) = (tmp_path / "records").glob("fastest-*.json")
        kept = json.loads(record.read_text("utf-8"))
        assert kept["processor"] == processor()
        assert kept["found"] == {"training 4x3": {"way": "other", "ms": {"plain": 20.0, "other": 10.0}}}

    def test_of_two_processes_the_first_counts(self, clock, tmp_path):
        first, second = chooser(clock, tmp_path), chooser(clock, tmp_path)
        second.way("training", (9,), clock.make(0.02, 0.01))  # it has read the file by now
        first.way("training", (4,), clock.make(0.02, 0.01))
        assert second.way("training", (4,), clock.make(0.01, 0.02)) == "other"

    @pytest.mark.parametrize(
        "text",
        ["{", "[]", '{"found": 3}', '{"found": {"training 4": {"way": "unknown"}}}', '{"found": {"training 4": []}}'],
    )
    def test_a_damaged_file_is_found_again(self, clock, tmp_path, text):
        chooser(clock, tmp_path).way("training", (8,), clock.make(0.02, 0.01))
        (record,) = (tmp_path / "records").glob("fastest-*.json")
        record.write_text(text, "utf-8")
        assert chooser(clock, tmp_path).way("training", (4,), clock.make(0.02, 0.01)) == "other"

    def test_a_folder_that_cannot_be_written(self, clock, tmp_path, caplog):
        (tmp_path / "file").write_text("", "utf-8")
        chosen = chooser(clock, tmp_path / "file")
        for size in (4, 8):
            assert chosen.way("training", (size,), clock.make(0.02, 0.01)) == "other"
        (line,) = caplog.messages
        assert line.startswith(f"{tmp_path / 'file'}: cannot keep which")

    def test_less_of_the_processor_is_another_machine(self, clock, tmp_path, monkeypatch):
        chooser(clock, tmp_path).way("training", (4,), clock.make(0.02, 0.01))
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert chooser(clock, tmp_path).way("training", (4,), clock.make(0.01, 0.02)) == "plain"


class TestLinearLayers:
    @pytest.mark.parametrize("faster", ["plain", "convolution"])
    @pytest.mark.parametrize("trained", [False, True])
    def test_what_is_timed_is_what_runs(self, tmp_path, monkeypatch, faster, trained):
        clock, called = Clock(), []
        seconds = {"plain": 0.01, "convolution": 0.01, faster: 0.001}

        def takes(name, way):
            def run(*arguments):
                clock.now += seconds[name]
                called.append(name)
                return way(*arguments)

            return run

        monkeypatch.setattr(F, "linear", takes("plain", F.linear))
        monkeypatch.setattr(linear, "_convolved", takes("convolution", linear._convolved))
        chosen = Fastest("linear layers", linear.LINEARS.ways, timer=clock, folder=tmp_path)
        monkeypatch.setattr(linear, "LINEARS", chosen)
        layer = linear.Linear(3, 5)
        before = torch.get_rng_state()
        with torch.set_grad_enabled(trained):
            layer(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
        assert called[-1] == faster
        assert called.count("plain" if faster == "convolution" else "convolution") == called.count(faster) - 1
        assert torch.equal(torch.get_rng_state(), before), "a training that is resumed draws the same numbers"
        mode = "training" if trained else "inference"
        assert next(iter(chosen._found.values())).keys() == {f"{mode} 8x3x5"}
        assert all(layer.grad is None for layer in layer.parameters())

    def test_nothing_is_timed_within_transforms_of_torch_func(self, tmp_path, monkeypatch):
        chosen = Fastest("linear layers", linear.LINEARS.ways, timer=Clock(), folder=tmp_path)
        monkeypatch.setattr(linear, "LINEARS", chosen)
        layer = linear.Linear(3, 5)
        torch.func.grad(lambda x: layer(x).sum())(torch.ones(2, 3))
        assert not chosen.describe()

    def test_it_takes_little_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(linear, "LINEARS", Fastest("linear layers", linear.LINEARS.ways, folder=tmp_path))
        with torch.inference_mode():
            for width in (64, 128, 256):
                linear.Linear(width, 4 * width)(torch.ones(300, width))
        assert re.search(r"inference: .*\d", linear.LINEARS.describe())
        assert sum(linear.LINEARS._spent.values()) < 2 * fastest.SECONDS_ALL
