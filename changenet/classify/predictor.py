"""Running a classify network in torch, without encoding a golden again for every row that is compared with it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.prediction import Batch, Outputs, Predictor

Encoding = tuple[Tensor, ...]


class PairPredictor(Predictor):
    """Runs the network in torch. Goldens that rows share are encoded once, within ``cache_mb`` of memory.

    ``hits`` and ``misses`` count goldens of rows that could share one.
    """

    runtime = "torch"

    def __init__(self, network: nn.Module, *, cache_mb: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.max_bytes = cache_mb * 2**20
        self.hits = self.misses = self.num_bytes = 0
        self._kept: OrderedDict[int, Encoding] = OrderedDict()

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """``output``: logits ``(B, num_classes)`` or distances ``(B,)`` of a
        :class:`~changenet.classify.data.PairBatch`.

        A batch without shared goldens (``golden_id`` -1) takes one pass over both images.
        """
        network: Any = self.network
        ids: list[int] = batch["golden_id"].tolist()
        if not self.max_bytes or max(ids) < 0:
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
        new = {key: place for place, key in enumerate(keys) if key not in self._kept}
        shared = sum(i >= 0 for i in ids)
        self.misses += sum(key >= 0 for key in new)
        self.hits += shared - sum(key >= 0 for key in new)
        fresh: dict[int, Encoding] = {}
        # On the CPU one by one, which costs nothing there: a golden's encoding must not depend, not in its last bit, on
        # which others are new, or scores would depend on how the rows are divided between processes.
        size = 1 if golden.device.type == "cpu" else max(1, len(new))
        for start in range(0, len(new), size):
            part_of_new = list(new.items())[start : start + size]
            parts = network.encode_golden(golden[[place for _, place in part_of_new]])
            for number, (key, _) in enumerate(part_of_new):
                fresh[key] = tuple(part[number].clone() for part in parts)  # a slice would keep all of them alive
        found = [fresh[key] if key in fresh else self._kept[key] for key in keys]
        for key in keys:
            if key >= 0:
                self._keep(key, fresh.get(key))
        return found

    def _keep(self, key: int, encoding: Encoding | None) -> None:
        """Make ``key`` the most recently used; drop the least recently used ones beyond the memory allowed."""
        if encoding is not None and key not in self._kept:
            self._kept[key] = encoding
            self.num_bytes += _bytes(encoding)
        if key in self._kept:
            self._kept.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(encoding: Encoding) -> int:
    return sum(part.nbytes for part in encoding)
