import pytest

from mal.schedule import CosineSchedule, peak_lr


def test_peak_counts_devices_and_batch():
    assert peak_lr(1e-6, 2, 4) == pytest.approx(8e-6)


@pytest.mark.parametrize(("epochs", "expected"), [(0, 0), (0.5, 4e-6), (1, 8e-6), (5.5, 4.8e-6), (10, 1.6e-6)])
def test_hand_worked(epochs, expected):
    assert CosineSchedule(8e-6, 1.6e-6, 10).at(epochs) == pytest.approx(expected)


def test_a_warm_up_as_long_as_the_training():
    schedule = CosineSchedule(1.0, 0.2, num_epochs=1, warmup_epochs=1)
    assert [schedule.at(0.5), schedule.at(1), schedule.at(1.2)] == [0.5, 1, 1]


def test_several_waves_come_back():
    schedule = CosineSchedule(1.0, 0.0, num_epochs=4, warmup_epochs=0, num_wave=2)
    assert schedule.at(2) == pytest.approx(0)
    assert schedule.at(4) == pytest.approx(1)
