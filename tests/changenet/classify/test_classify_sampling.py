"""How often defects are drawn."""

import logging

import numpy as np
import pytest

from changenet.classify.sampling import fpratio_weights
from fiducial.errors import DatasetError


class TestFpratioWeights:
    def test_by_hand(self):  # three PASS, two defects: 0.5 * 3 / 2
        assert fpratio_weights([0, 1, 0, 2, 0], 0.5).tolist() == [1, 0.75, 1, 0.75, 1]

    @pytest.mark.parametrize("ratio", [0.1, 0.25, 1.0])
    def test_share_of_defects(self, ratio):
        labels = np.arange(1000) % 7 == 0
        weights = fpratio_weights(labels.astype(int), ratio)
        assert weights[labels].sum() / weights.sum() == pytest.approx(ratio / (1 + ratio))

    def test_no_defect_is_an_error(self):
        with pytest.raises(DatasetError, match="3 rows, all PASS"):
            fpratio_weights([0, 0, 0], 0.1)

    def test_no_pass_is_a_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert fpratio_weights([1, 1], 0.1).tolist() == [1, 1]
        assert "none PASS" in caplog.text
