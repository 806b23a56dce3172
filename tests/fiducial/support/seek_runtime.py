"""The half of :mod:`seek_task` that needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seek_task import Spec, read_annotations
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fiducial.actions.models import open_model
from fiducial.actions.result import Result
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.data.samplers import Draw, EpochBatches
from fiducial.data.sharding import BatchShards
from fiducial.deploy.card import ModelCard, TensorCard
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Graph, GraphInput, Kpis, Outputs, Predictor
from fiducial.run.ranks import gather
from fiducial.spec.knob import plain
from fiducial.task import TaskRuntime
from fiducial.training.data import TrainingData
from fiducial.training.module import TrainingModule, TrainingPlan

STOP: dict[Any, Any] = {}
"""``{(epoch, batch): exception}``: raised in that training step."""
SEEN: list[tuple[int, int, tuple[int, ...], float, float]] = []
"""(epoch, batch, shapes, loss, learning rate of the trunk) of every training step."""


class Shapes(Dataset[dict[str, Any]]):
    def __init__(self, annotations: list[dict[str, Any]], size: int, mean: float = 0.0) -> None:
        self.annotations, self.size, self.mean = annotations, size, mean

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        number = index.index if isinstance(index, Draw) else index
        shape = self.annotations[number]
        kind = int(shape["kind"].split()[1])
        noise = np.random.default_rng(shape["seed"]).standard_normal(self.size).astype(np.float32)
        x = noise + 0.5 * np.float32(kind) - np.float32(self.mean)
        return {"x": torch.from_numpy(x), "kind": torch.tensor(kind), "place": torch.tensor(number)}


class KindBatches(EpochBatches):
    """Batches of P kinds with K shapes each."""

    def __init__(self, kinds: list[int], *, per_kind: int, batch_size: int, rank: int, world: int) -> None:
        super().__init__(len(kinds) // (batch_size * world) + 1, rank=rank, world=world)
        self.kinds, self.per_kind, self.num_kinds = np.array(kinds), per_kind, batch_size // per_kind

    def draw(self, epoch: int, num_batches: int) -> list[list[int]]:
        rng = np.random.default_rng((7, epoch))

        def batch() -> Iterator[int]:
            for kind in rng.permutation(np.unique(self.kinds))[: self.num_kinds]:
                yield from rng.permutation(np.flatnonzero(self.kinds == kind))[: self.per_kind].tolist()

        return [list(batch()) for _ in range(num_batches)]


class Network(nn.Module):
    """``(B, size)`` to an embedding ``(B, 3)`` and a box ``(B, 4)``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(size, 8), nn.ReLU(), nn.Dropout(0.1))
        self.embedder, self.boxes = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.embedder(hidden), self.boxes(hidden)


class Module(TrainingModule):
    tao_model = "seek"

    def __init__(self, network: Network, plan: TrainingPlan, spec: Spec, evaluator: Evaluator[Any]) -> None:
        super().__init__(plan, evaluators={"val": evaluator})
        self.automatic_optimization = False
        self.trunk, self.embedder, self.boxes = network.trunk, network.embedder, network.boxes
        self.rates = spec.train.optim

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        stop = STOP.pop((self.current_epoch, batch_idx), None)
        if callable(stop):
            stop()
        elif stop is not None:
            raise stop
        outputs, _ = self.evaluate_batch(batch)
        kind = batch["kind"]
        apart = torch.cdist(outputs["embedding"], outputs["embedding"])
        same = kind[:, None] == kind[None]
        loss = (apart[same].mean() - apart[~same].mean()).exp() + outputs["box"].square().mean()
        trunk = self.optimizers()[0].param_groups[0]["lr"]  # type: ignore[index]
        SEEN.append((self.current_epoch, batch_idx, tuple(batch["place"].tolist()), loss.item(), trunk))
        self.optimize(loss, batch_idx)
        self.track(loss, size=len(kind))

    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, None]:
        hidden = self.trunk(batch["x"])
        return {"embedding": self.embedder(hidden), "box": self.boxes(hidden)}, None

    def kpis(self, stage: Stage) -> Kpis:
        kpis = super().kpis(stage)
        if stage == "train":
            kpis["trunk_base_lr"] = f"{self.rates.trunk.base_lr:.4e}"
        return kpis

    def configure_optimizers(self) -> Any:
        trunk = torch.optim.SGD(self.trunk.parameters(), lr=self.rates.trunk.base_lr, momentum=0.9)
        head = torch.optim.AdamW(
            [{"params": [p]} for m in (self.embedder, self.boxes) for p in m.parameters()], lr=self.rates.head.base_lr
        )
        schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in (trunk, head)]
        return [trunk, head], schedules

    def on_train_epoch_end(self) -> None:
        self.step_schedules()


class Data(TrainingData):
    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    @property
    def num_batches(self) -> int:
        return len(self.sampler(0, 1))

    def sampler(self, rank: int, world: int) -> KindBatches:
        train = self.runtime.spec.train
        kinds = [int(shape["kind"].split()[1]) for shape in self.runtime.annotations]
        return KindBatches(kinds, per_kind=train.per_kind, batch_size=train.batch_size, rank=rank, world=world)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self.sampler(*self.ranks())
        epoch, batch = self.position()
        sampler.set_epoch(epoch)
        sampler.start(batch)
        return DataLoader(self.runtime.shapes(), batch_sampler=sampler)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        rank, world = self.ranks()
        return self.runtime.loaders("val", rank=rank, world_size=world)


class TorchPredictor(Predictor):
    runtime = "torch"

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        embedding, box = self.network(batch["x"])
        return {"embedding": embedding, "box": box}

    def facts(self) -> dict[str, str]:
        return {"boxes": "corners"}


Found = dict[int, list[tuple[int, int, list[float], list[float]]]]


class SeekEvaluator(Evaluator[Found]):
    """Nearest neighbours of the queries among the gallery, known only when both are complete; boxes of all."""

    def __init__(self, stage: Stage, annotations: Mapping[str, Any], folder: Path | None) -> None:
        self.stage, self.annotations, self.folder = stage, annotations, folder
        self.parts: list[tuple[int, int, int, list[float], list[float]]] = []

    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        columns = (batch["place"], batch["kind"], outputs["embedding"], outputs["box"])
        for place, kind, embedding, box in zip(*(column.tolist() for column in columns), strict=True):
            self.parts.append((source, place, kind, embedding, box))

    def finish(self) -> Found:
        parts = sorted({part[:2]: part for rank in gather(self.parts) for part in rank}.values())
        self.parts = []
        found: Found = {}
        for source, place, kind, embedding, box in parts:
            found.setdefault(source, []).append((place, kind, embedding, box))
        return found

    def kpis(self, result: Found) -> Kpis:
        if self.stage == "infer" or 1 not in result:
            return {}
        gallery, queries = result[0], result[1]
        apart = torch.cdist(*(torch.tensor([row[2] for row in rows]) for rows in (queries, gallery)))
        places = torch.tensor([row[0] for row in queries])[:, None] == torch.tensor([row[0] for row in gallery])
        nearest = apart.masked_fill(places, torch.inf).argmin(1).tolist()
        right = [queries[i][1] == gallery[j][1] for i, j in enumerate(nearest)]
        error = float(np.mean(np.abs([row[3] for row in queries])))
        return {f"{self.stage} Precision at Rank 1": float(np.mean(right)), f"{self.stage}_box_error": error}

    def write(self, result: Found, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        assert self.folder is not None
        boxes = {place: box for place, _, _, box in result[0]}
        shapes = [
            {**shape, "found": boxes.get(place) if shape["box"] else None, "why": "" if shape["box"] else "no box"}
            for place, shape in enumerate(self.annotations["shapes"])
        ]
        path = self.folder / "shapes.json"
        path.write_text(json.dumps({**self.annotations, "shapes": shapes, "run": dict(facts)}))
        return (path,)


class Runtime(TaskRuntime):
    def __init__(self, spec: Spec) -> None:
        self.spec, self.mean = spec, 1.0
        self._content: dict[str, Any] = {}

    @property
    def content(self) -> dict[str, Any]:
        if not self._content:
            self._content = read_annotations(self.spec.data.annotations)
        return self._content

    @property
    def annotations(self) -> list[dict[str, Any]]:
        shapes: list[dict[str, Any]] = self.content["shapes"]
        return shapes

    def shapes(self) -> Shapes:
        return Shapes(self.annotations, self.spec.data.size, self.mean)

    def network(self) -> Network:
        return Network(self.spec.data.size)

    def module(self, *, pretrained: bool) -> Module:
        plan = TrainingPlan(card=self.card(), hyper_parameters=plain(self.spec))
        return Module(self.network(), plan, self.spec, self.evaluator("val"))

    def datamodule(self) -> Data:
        return Data(self)

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Any]]:
        size = self.spec.data.val_batch_size
        sources = (self.shapes(),) if stage == "infer" else (self.shapes(), self.shapes())
        return [
            DataLoader(data, batch_sampler=BatchShards(len(data), size, rank=rank, world_size=world_size))
            for data in sources
        ]

    def torch_predictor(self, checkpoint: Checkpoint) -> TorchPredictor:
        network = self.network()
        network.load_state_dict(checkpoint.state_dict)
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        return TorchPredictor(network)

    def adopt(self, card: ModelCard) -> None:
        if card.mean:
            self.mean = card.mean[0]

    def graph(self) -> Graph:
        return Graph({"shape": GraphInput("x", (self.spec.data.size,))}, ("embedding", "box"), "batch")

    def card(self) -> ModelCard:
        return ModelCard(
            network="seek_net",
            task="seek",
            inputs={"shape": TensorCard((self.spec.data.size,), "float32")},
            mean=(self.mean,),
            details={"corners": 2},
        )

    def samples(self, count: int) -> list[dict[str, Tensor]]:
        data = self.shapes()
        return [data[i] for i in range(min(count, len(data)))]

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> SeekEvaluator:
        return SeekEvaluator(stage, self.content, folder)


def gallery(task: Any, run: Any) -> Result:
    """``gallery add`` embeds the annotated shapes; ``gallery list`` says what is there."""
    path = run.folder / "gallery.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    if run.verb == "add":
        runtime = task.runtime(run.spec)
        predictor = runtime.torch_predictor(read(open_model(task, run)))
        for loader in runtime.loaders("infer"):
            for batch in loader:
                kept += [[run.spec.gallery.label, row] for row in predictor.predict(batch)["embedding"].tolist()]
        path.write_text(json.dumps(kept))
    run.note(f"{len(kept)} references")
    return Result(run.action, run.folder, kpis={"references": float(len(kept))}, files=(path,))
