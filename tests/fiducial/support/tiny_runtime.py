"""The half of :mod:`tiny_task` that needs torch."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fiducial.data.samplers import Draw, EpochSampler
from fiducial.data.sharding import BatchShards
from fiducial.run.ranks import gather
from fiducial.run.seeds import Position
from fiducial.spec.knob import plain
from fiducial.task import Graph, GraphInput

STOP = {}
"""``{(epoch, batch): exception}``: raised in that training step; ``("val", epoch)`` in that validation."""
SEEN: list[tuple[int, int, tuple[int, ...], float, float]] = []
"""(epoch, batch, rows, loss, learning rate) of every training step."""


class Rows(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        row = index.index if isinstance(index, Draw) else index
        x = np.random.default_rng(row).standard_normal(3).astype(np.float32)
        return {"x": torch.from_numpy(x), "y": torch.tensor(float(x.sum())), "row": torch.tensor(row)}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.norm(self.linear(x)), 0.2, self.training)
        return self.out(hidden)[:, 0]


class Module(pl.LightningModule):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.model, self.lr = Network(), spec.train.lr
        self.save_hyperparameters(plain(spec), logger=False)
        self.losses: dict[str, list[float]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        stop = STOP.pop((self.current_epoch, batch_idx), None)
        if callable(stop):
            stop()
        elif stop is not None:
            raise stop
        loss = nn.functional.mse_loss(self.model(batch["x"]), batch["y"])
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        SEEN.append((self.current_epoch, batch_idx, tuple(batch["row"].tolist()), loss.item(), rate))
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["x"]))
        self.losses["train"].append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        stop = None if self.trainer.sanity_checking or batch_idx == 0 else STOP.pop(("val", self.current_epoch), None)
        if stop is not None:
            raise stop
        self.losses["val"].append(nn.functional.mse_loss(self.model(batch["x"]), batch["y"]).item())

    def epoch_kpis(self, stage: str) -> dict[str, float]:
        losses, self.losses[stage] = [v for part in gather(self.losses[stage]) for v in part], []
        return {f"{stage}_loss": float(np.mean(losses))}

    def preview(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"compare_sample": torch.rand(3, 8, 8)}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class Data(pl.LightningDataModule):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec, self.num_batches = spec, spec.dataset.rows // spec.dataset.batch_size

    def train_dataloader(self) -> DataLoader:
        data, trainer = self.spec.dataset, self.trainer
        place = next(callback for callback in trainer.callbacks if isinstance(callback, Position))
        sampler = EpochSampler(
            data.rows, batch_size=data.batch_size, seed=1, rank=trainer.global_rank, world=trainer.world_size
        )
        sampler.set_epoch(place.epoch)
        sampler.start(place.batch * data.batch_size * trainer.world_size)
        return DataLoader(
            Rows(data.rows),
            data.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        rows = int(os.environ.get("TINY_VAL", "10"))
        shards = BatchShards(rows, 4, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return DataLoader(Rows(rows), batch_sampler=shards)


class Predictor:
    runtime = "torch"

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def predict(self, batch: Any) -> torch.Tensor:
        return self.network(batch["x"])


class Evaluator:
    def __init__(self) -> None:
        self.parts: list[Any] = []

    def update(self, output: torch.Tensor, batch: Any) -> None:
        stop = STOP.pop("predict", None)
        if stop is not None:
            raise stop
        self.parts += zip(batch["row"].tolist(), output.tolist(), strict=True)

    def finish(self) -> list[Any]:
        parts, self.parts = self.parts, []
        return sorted(pair for rank in gather(parts) for pair in rank)


class Runtime:
    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def network(self) -> nn.Module:
        return Network()

    def module(self, *, pretrained: bool) -> Module:
        return Module(self.spec)

    def datamodule(self) -> Data:
        return Data(self.spec)

    def dataset(self, split: str) -> Rows:
        return Rows(self.spec.dataset.rows)

    def loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader:
        rows = int(os.environ.get("TINY_VAL", "10"))
        return DataLoader(Rows(rows), batch_sampler=BatchShards(rows, 4, rank=rank, world_size=world_size))

    def torch_predictor(self, checkpoint: Any) -> Predictor:
        network = self.network()
        weights = {key.removeprefix("model."): value for key, value in checkpoint.state_dict.items()}
        network.load_state_dict(weights)
        return Predictor(network)

    def use_normalization_of(self, meta: Any) -> None:
        pass

    def graph(self) -> Graph:
        return Graph({"x": GraphInput("x", (3,))}, ("y",), "batch")

    def metadata(self) -> dict[str, Any]:
        return {"concat_type": "linear"}

    def evaluator(self) -> Evaluator:
        return Evaluator()

    def write(self, action: str, results: Any, folder: Any, facts: Any) -> dict[str, float]:
        (folder / f"{action}.json").write_text(json.dumps({"rows": results, "runtime": facts["runtime"]}))
        return {"test_mean": float(np.mean([value for _, value in results]))}

    def facts(self, action: str) -> dict[str, Any]:
        return {}
