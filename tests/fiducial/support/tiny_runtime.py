"""The half of :mod:`tiny_task` that needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fiducial.checkpoints.reading import Checkpoint
from fiducial.data.samplers import Draw
from fiducial.data.sharding import BatchShards
from fiducial.deploy.card import ModelCard
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Graph, GraphInput, Kpis, Outputs, Predictor
from fiducial.run.ranks import gather
from fiducial.spec.knob import plain
from fiducial.task import TaskRuntime
from fiducial.training.data import TrainingData
from fiducial.training.module import TrainingModule, TrainingPlan
from fiducial.training.optim import build_optimizer

STOP = {}
"""``{(epoch, batch): exception}``: raised in that training step; ``("val", epoch)`` in that validation."""
SEEN: list[tuple[int, int, tuple[int, ...], float, float]] = []
"""(epoch, batch, rows, loss, learning rate) of every training step."""


class Rows(Dataset[dict[str, Any]]):
    def __init__(self, count: int, shift: float = 0.0) -> None:
        self.count, self.shift = count, np.float32(shift)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        row = index.index if isinstance(index, Draw) else index
        x = np.random.default_rng(row).standard_normal(3).astype(np.float32)
        return {"x": torch.from_numpy(x + self.shift), "y": torch.tensor(float(x.sum())), "row": torch.tensor(row)}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.norm(self.linear(x)), 0.2, self.training)
        return self.out(hidden)[:, 0]


class Module(TrainingModule):
    def __init__(self, spec: Any, plan: TrainingPlan) -> None:
        super().__init__(plan)
        self.model, self.lr, self.optim = Network(), spec.train.lr, spec.train.optim

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        stop = STOP.pop((self.current_epoch, batch_idx), None)
        if callable(stop):
            stop()
        elif stop is not None:
            raise stop
        loss = nn.functional.mse_loss(self.model(batch["x"]), batch["y"])
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        SEEN.append((self.current_epoch, batch_idx, tuple(batch["row"].tolist()), loss.item(), rate))
        self.track(loss, size=len(batch["x"]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        stop = None if self.trainer.sanity_checking or batch_idx == 0 else STOP.pop(("val", self.current_epoch), None)
        if stop is not None:
            raise stop
        super().validation_step(batch, batch_idx, dataloader_idx)

    def evaluate_batch(self, batch: Any) -> tuple[Outputs, torch.Tensor]:
        output = self.model(batch["x"])
        return {"y": output}, nn.functional.mse_loss(output, batch["y"])

    def preview(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"compare_sample": torch.rand(3, 8, 8)}

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optim, self.parameters(), lr=self.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class Data(TrainingData):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    @property
    def num_batches(self) -> int:
        return int(self.spec.dataset.rows // self.spec.dataset.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        data = self.spec.dataset
        sampler = self.epoch_sampler(data.rows, batch_size=data.batch_size, seed=1, what="dataset.rows")
        return DataLoader(
            Rows(data.rows),
            data.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        rank, world = self.ranks()
        return [loader(rank, world)]


def loader(rank: int, world_size: int, shift: float = 0.0) -> DataLoader[Any]:
    """The rows that are not trained on; ``TINY_VAL`` says how many."""
    rows = int(os.environ.get("TINY_VAL", "10"))
    return DataLoader(Rows(rows, shift), batch_sampler=BatchShards(rows, 4, rank=rank, world_size=world_size))


class TorchPredictor(Predictor):
    runtime = "torch"

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def predict(self, batch: Any) -> Outputs:
        return {"y": self.network(batch["x"])}


class RowEvaluator(Evaluator[list[Any]]):
    def __init__(self, stage: Stage, folder: Path | None) -> None:
        self.stage, self.folder = stage, folder
        self.parts: list[Any] = []

    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        stop = STOP.pop("predict", None)
        if stop is not None:
            raise stop
        self.parts += zip(batch["row"].tolist(), outputs["y"].tolist(), strict=True)

    def finish(self) -> list[Any]:
        parts, self.parts = self.parts, []
        return sorted(pair for rank in gather(parts) for pair in rank)

    def kpis(self, result: list[Any]) -> Kpis:
        return {"test_mean": float(np.mean([value for _, value in result]))} if self.stage == "test" else {}

    def write(self, result: list[Any], facts: Mapping[str, Any]) -> tuple[Path, ...]:
        assert self.folder is not None
        path = self.folder / f"{'evaluate' if self.stage == 'test' else 'inference'}.json"
        path.write_text(json.dumps({"rows": result, "runtime": facts["runtime"]}))
        return (path,)


class Runtime(TaskRuntime):
    def __init__(self, spec: Any) -> None:
        self.spec, self.shift = spec, spec.dataset.shift

    def network(self) -> nn.Module:
        return Network()

    def module(self, *, pretrained: bool) -> Module:
        return Module(self.spec, TrainingPlan(card=self.card(), hyper_parameters=plain(self.spec)))

    def datamodule(self) -> Data:
        return Data(self.spec)

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Any]]:
        return [loader(rank, world_size, self.shift)]

    def torch_predictor(self, checkpoint: Checkpoint) -> TorchPredictor:
        network = self.network()
        weights = {key.removeprefix("model."): value for key, value in checkpoint.state_dict.items()}
        network.load_state_dict(weights)
        return TorchPredictor(network)

    def adopt(self, card: ModelCard) -> None:
        self.shift = card.details.get("shift", self.shift)

    def graph(self) -> Graph:
        return Graph({"x": GraphInput("x", (3,))}, ("y",), "batch")

    def card(self) -> ModelCard:
        return ModelCard(network="tiny", task="line", details={"shift": self.shift})

    def samples(self, count: int) -> list[Batch]:
        rows = Rows(self.spec.dataset.rows, self.shift)
        return [rows[i] for i in range(min(count, len(rows)))]

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> RowEvaluator:
        return RowEvaluator(stage, folder)
