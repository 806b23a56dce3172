"""Training on what a frozen backbone makes of a picture, which is computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fiducial.data.cache import default_cache_dir
from fiducial.data.feature_store import KEY_BYTES, DiskStore, Features, FeatureStore, NoStore, RamStore, make_room
from fiducial.data.picture_keys import PictureKeys, content_key
from fiducial.run.console import LOGGER

__all__ = ["FeatureCache", "KeyedBatch", "collate_keyed", "weights_digest"]

KeyedBatch = Mapping[str, Any]
"""A batch whose pictures are named by keys (:func:`collate_keyed`).

``keys``: those of the U different pictures of the batch, bytes. ``pictures``: float32 ``(M, 3, H, W)``, those that
were read; absent when M is 0. ``picture_place``: for each of these its place among the keys. ``<role>_place`` int64
``(B,)``: for each item the place of its picture among the keys.
"""


def collate_keyed(items: Sequence[dict[str, Any]], roles: Sequence[str]) -> dict[str, Any]:
    """What of a :data:`KeyedBatch` is about pictures, taken out of the items.

    Of each role an item has ``<role>_key`` and, unless the picture need not be read, the picture itself under the role.
    """
    places: dict[bytes, int] = {}
    pictures: dict[int, Tensor] = {}
    batch: dict[str, Any] = {}
    for role in roles:
        found = []
        for item in items:
            place = places.setdefault(item.pop(f"{role}_key"), len(places))
            found.append(place)
            picture = item.pop(role, None)
            if picture is not None:
                pictures[place] = picture
        batch[f"{role}_place"] = torch.tensor(found)
    batch |= {"keys": list(places), "picture_place": list(pictures)}
    if pictures:
        batch["pictures"] = torch.stack(list(pictures.values()))
    return batch


class FeatureCache:
    """Features of pictures under the weights that ``backbone`` has when the first are asked for, and keeps.

    ``kind``: where they are kept. ``max_mb``: at most, on disk with those of other weights. ``identity``: what beside
    the weights decides the features, in words. ``keys`` is told which pictures need not be read again.
    """

    def __init__(
        self,
        backbone: nn.Module,
        kind: Literal["ram", "disk"],
        *,
        max_mb: int,
        identity: str = "",
        keys: PictureKeys | None = None,
    ) -> None:
        self.backbone, self.kind, self.max_bytes = backbone, kind, max_mb * 2**20
        self.identity, self.keys = identity, keys
        self.encoded = self.reused = 0
        """Pictures that the backbone has seen, and that were there already."""
        self._store: FeatureStore | None = None

    def features(self, batch: KeyedBatch, encode: Callable[[Tensor], Sequence[Tensor]], device: Any) -> Features:
        """The features of the different pictures of a batch, ``(U, ...)`` each, on ``device``, without autograd.

        ``encode`` makes them of pictures ``(M, 3, H, W)``.
        """
        if self._store is None:
            self._store = self._opened(torch.device(device))
        store, keys = self._store, batch["keys"]
        kept = {place: found for place, key in enumerate(keys) if (found := store.get(key)) is not None}
        new = {place: number for number, place in enumerate(batch["picture_place"]) if place not in kept}
        if len(kept) + len(new) < len(keys):
            raise RuntimeError("pictures that were kept are gone")
        self.encoded, self.reused = self.encoded + len(new), self.reused + len(kept)
        made: Features = ()
        with torch.no_grad():
            if new:
                made = tuple(encode(batch["pictures"][list(new.values())]))
            joined = _joined(kept, list(new), made, device)
            here = tuple(part.cpu() for part in made)
        now = [place for i, place in enumerate(new) if store.put(keys[place], tuple(part[i] for part in here))]
        if self.keys is not None:
            for place in (*kept, *now):
                self.keys.tell(keys[place])
        return joined

    def report(self) -> str:
        """One line of what the cache has done, for the log."""
        store = self._store
        size = f"{len(store)} kept in {store.where}, {store.num_bytes / 2**20:.1f} MB" if store else "none kept"
        return f"features of the frozen backbone: {size}; {self.encoded} pictures computed, {self.reused} reused"

    def close(self) -> None:
        """Let go of what is kept; the next call of :meth:`features` begins anew."""
        if self._store is not None:
            self._store.close()
            self._store = None
        if self.keys is not None:
            self.keys.forget()

    def _opened(self, device: torch.device) -> FeatureStore:
        if self.kind == "ram":
            return RamStore(self.max_bytes)
        exact = f"{device.type} {torch.get_float32_matmul_precision()}"
        name = content_key(self.identity.encode(), exact.encode(), weights_digest(self.backbone)).hex()
        root = default_cache_dir() / "features"
        try:
            others = make_room(root, root / name, self.max_bytes)
            return DiskStore(root / name, self.max_bytes - others)
        except OSError as error:
            reason = error.strerror or error
            LOGGER.warning("train.feature_cache: %s cannot be used (%s): going on without it", root / name, reason)
            return NoStore()


def weights_digest(module: nn.Module) -> bytes:
    """A hash of all tensors of a module and their names."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _joined(kept: Mapping[int, Features], new: Sequence[int], made: Features, device: Any) -> Features:
    """What is kept and what was made, in the order of their places."""
    if not kept and list(new) == list(range(len(new))):
        return made
    joined = []
    for number, example in enumerate(made or next(iter(kept.values()))):
        shape = example.shape[1:] if made else example.shape
        whole = torch.empty((len(kept) + len(new), *shape), dtype=example.dtype, device=device)
        if kept:
            whole[list(kept)] = torch.stack([features[number] for features in kept.values()]).to(device)
        if made:
            whole[list(new)] = made[number]
        joined.append(whole)
    return tuple(joined)
