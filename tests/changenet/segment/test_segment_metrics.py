import numpy as np
import pytest
import torch

from changenet.segment.metric_names import METRICS
from changenet.segment.metrics import _confusion_without_waiting, class_order, confusion, per_class, summary
from changenet.segment.rates import EPSILON


class TestConfusion:
    def test_hand_counted_per_image(self):
        label = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 1, 0]]], dtype=torch.uint8)
        said = torch.tensor([[[0, 1, 1, 1]], [[0, 1, 1, 0]]])
        assert confusion(said, label, 2).tolist() == [[[1, 1], [0, 1]], [[1, 0], [1, 2]]]

    def test_labels_outside_the_classes_are_left_out(self):
        assert confusion(torch.zeros(1, 1, 3).long(), torch.tensor([[[3, 7, 254]]]), 3).sum() == 0

    def test_arrays_are_wrapped(self):  # a row of the matrix is a true class; the ignored pixel is in no cell
        truth = np.array([[[0, 0, 1, 1], [2, 2, 255, 0]]], np.uint8)
        prediction = np.array([[[0, 1, 1, 2], [2, 0, 1, 0]]], np.uint8)
        matrix = confusion(torch.from_numpy(prediction), torch.from_numpy(truth), 3)
        assert matrix.tolist() == [[[2, 1, 0], [0, 1, 1], [1, 0, 1]]]
        assert matrix.dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    def test_any_integer(self, dtype):
        label, said = torch.randint(0, 4, (2, 3, 5, 5))
        assert torch.equal(confusion(said.to(dtype), label, 4), confusion(said, label.to(dtype), 4))

    def test_all_ignored(self):
        matrix = confusion(torch.ones(2, 3, 3).long(), torch.full((2, 3, 3), 255), 3)
        assert torch.equal(matrix, torch.zeros(2, 3, 3).long())

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_as_it_is_counted_on_a_gpu(self, dtype):  # without shapes that depend on values
        label, said = torch.randint(0, 4, (2, 3, 5, 5))
        label[0, 0], label[1, 1, 1] = 255, 4
        found = _confusion_without_waiting(said, label.to(dtype), 4)
        assert torch.equal(found, confusion(said, label, 4))

    def test_wrong_use(self):
        masks = torch.tensor([[[0, 1, 2]]])
        with pytest.raises(ValueError, match="class numbers below 2"):
            confusion(masks, masks.clamp(max=1), 2)
        with pytest.raises(ValueError, match="masks of"):
            confusion(masks[..., :2], masks, 3)

    def test_sum_is_the_matrix_of_all(self):
        label, said = torch.randint(0, 4, (2, 3, 5, 5))
        one = confusion(said.reshape(1, 15, 5), label.reshape(1, 15, 5), 4)[0]
        assert torch.equal(confusion(said, label, 4).sum(0), one)


class TestSummary:
    MATRIX = np.array([[50, 10], [5, 35]])

    def test_hand_computed(self):
        found = summary(self.MATRIX)
        iou = (50 / (65 + EPSILON), 35 / (50 + EPSILON))
        assert found["iou_1"] == pytest.approx(iou[1], rel=1e-12)
        assert found["miou"] == pytest.approx(sum(iou) / 2, rel=1e-12)
        assert found["acc"] == pytest.approx(85 / (100 + EPSILON), rel=1e-12)
        assert found["precision_1"] == pytest.approx(35 / 45)
        assert found["recall_1"] == pytest.approx(35 / 40)
        assert found["F1_1"] == pytest.approx(2 * 35 / (45 + 40), rel=1e-6)

    def test_change_comes_first(self):
        per = [name for name in summary(np.eye(3, dtype=int)) if name.startswith("iou_")]
        assert per == ["iou_1", "iou_2", "iou_0"]
        assert class_order(3) == [1, 2, 0]

    def test_absent_classes_are_0(self):
        rates = per_class(np.array([[9, 0], [0, 0]]))
        assert {name: float(value[1]) for name, value in rates.items()} == dict.fromkeys(rates, 0.0)

    def test_nothing_at_all(self):
        assert set(summary(np.zeros((2, 2), dtype=int)).values()) == {0.0}


class TestNames:
    @pytest.mark.parametrize("name", ["val_miou", "miou", "val_iou_1", "iou_0", "train_acc", "val_F1_12", "val_loss"])
    def test_known(self, name):
        assert METRICS.find(name, ("train", "val")) is not None

    @pytest.mark.parametrize("name", ["val_iou", "loss", "val_fscore", "val_iou_x", "test_loss", "val_object_f1", ""])
    def test_unknown(self, name):
        assert METRICS.find(name) is None

    def test_direction(self):
        directions = [METRICS.direction(name) for name in ("val_loss", "val_iou_1", "mf1", "unheard_of")]
        assert directions == ["min", "max", "max", "min"]

    def test_validation_logs_two_names(self):
        assert METRICS.logged("val_iou_1", "val") == ("val_iou_1", "iou_1")
        assert METRICS.logged("train_iou_1", "train") == ("train_iou_1",)
        assert METRICS.logged("train_loss", "train") == ()  # the module does

    def test_summary_reports_every_named_metric(self):
        shorts = {metric.short for metric in METRICS.kpis("val").values()} - {"val_loss"}
        named = {name.replace("{class}", str(k)) for name in shorts for k in range(2)}
        assert set(summary(np.eye(2, dtype=int))) == named
