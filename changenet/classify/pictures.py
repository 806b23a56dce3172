"""What TensorBoard shows besides numbers: the first pairs of an epoch, and how the weights are spread."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from changenet.pictures import FirstBatchPictures


class TrainingPictures(FirstBatchPictures):
    """The first pair in the colours of its files, named as by TAO.

    ``image/compare_sample`` and ``image/golden_sample`` (or ``golden_sample0``, …).
    """

    def images(self, batch: Any) -> dict[str, Tensor]:
        golden = batch["golden"][0]
        named = {"compare_sample": batch["test"][0]}
        if golden.ndim == 3:
            named["golden_sample"] = golden
        else:
            named |= {f"golden_sample{i}": image for i, image in enumerate(golden)}
        return {name: self.normalization.undo(image) for name, image in named.items()}
