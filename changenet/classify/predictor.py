"""Running a classify network in torch, without encoding a golden again for every row that is compared with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fiducial.data.lru import ByteLRU
from fiducial.prediction import Batch, Outputs, Predictor

Encoding = tuple[Tensor, ...]


class PairPredictor(Predictor):
    """Runs the network in torch. Goldens that rows share are encoded once, within ``cache_mb`` of memory."""

    runtime = "torch"
    compiled_calls = ("forward", "encode", "encode_golden", "compare")

    def __init__(self, network: nn.Module, *, cache_mb: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.cache: ByteLRU[int, Encoding] = ByteLRU(cache_mb * 2**20)
        self._shared_rows = 0

    @property
    def misses(self) -> int:
        """Shared goldens that had to be encoded."""
        return self.cache.misses

    @property
    def hits(self) -> int:
        """Rows whose golden was encoded already, before or for another row of their batch."""
        return self._shared_rows - self.cache.misses

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """``output``: logits ``(B, num_classes)`` or distances ``(B,)`` of a
        :class:`~changenet.classify.data.PairBatch`.

        A batch without shared goldens (``golden_id`` -1) takes one pass over both images.
        """
        network: Any = self.network
        ids: list[int] = batch["golden_id"].tolist()
        if not self.cache.max_bytes or max(ids) < 0:
            return {"output": network(batch["test"], batch["golden"])}
        goldens = self._encoded(ids, batch["golden"])
        stacked = tuple(torch.stack(parts) for parts in zip(*goldens, strict=True))
        return {"output": network.compare(network.encode(batch["test"]), stacked)}

    def facts(self) -> dict[str, str]:
        return {"goldens encoded / reused": f"{self.misses} / {self.hits}"} if self.hits else {}

    def _encoded(self, ids: list[int], golden: Tensor) -> list[Encoding]:
        """The encoding of every row's golden; new ones are computed together, shared ones kept."""
        network: Any = self.network
        # -1 means nobody else's: such a row is a key of its own
        keys = [i if i >= 0 else -1 - place for place, i in enumerate(ids)]
        self._shared_rows += sum(i >= 0 for i in ids)
        kept = {key: self.cache.get(key) if key >= 0 else None for key in dict.fromkeys(keys)}
        found = {key: encoding for key, encoding in kept.items() if encoding is not None}
        new = [(key, keys.index(key)) for key in kept if key not in found]
        # On the CPU one by one, which costs nothing there: a golden's encoding must not depend, not in its last bit, on
        # which others are new, or scores would depend on how the rows are divided between devices.
        size = 1 if golden.device.type == "cpu" else max(1, len(new))
        for start in range(0, len(new), size):
            part_of_new = new[start : start + size]
            parts = network.encode_golden(torch.stack([golden[place] for _, place in part_of_new]))
            for number, (key, _) in enumerate(part_of_new):
                found[key] = tuple(part[number].clone() for part in parts)  # a slice would keep all of them alive
                if key >= 0:
                    self.cache.put(key, found[key], sum(part.nbytes for part in found[key]))
        return [found[key] for key in keys]
