"""What the segment network costs, beside the straightforward way of computing the same, in one run.

    python scripts/bench/segment.py [--only fan|vit] [--turns 3] [--threads 2] [--quick]
    python scripts/bench/segment.py --threads 1 --cpu-time      # on a machine that others use too

The straightforward way is kept here (`Plain`): attention with its matrix of weights in memory, deformable attention
sampled level by level (`grid_sample`), class tokens and their attention although no map depends on them, the summary
token repeated for every cell and joined before the ViT's maps, the two images' maps joined before every convolution
that compares them, the maps of all scales enlarged and joined before the 1×1 convolution, and the predictions of single
scales always computed. It runs on the same weights, and both ways must give the same logits, losses and gradients
before anything is timed.

Seconds are medians of runs in turns (plain, ours, plain, ours, …), the ratio that of neighbouring turns. Memory is
measured for each way in a process of its own, after one run that warms up: the most that a run holds beyond what was
there before it, the weights (on a GPU what torch allocates; else resident memory, with freed memory given back before).
The exit code is 1 when a target is missed: inference in at most 1/1.2 of the time and 80 % of the memory on a CPU, and
training in less memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # runs from a checkout, installed or not

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measure import machine, measure  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from changenet.difference import resize, stack_coarse_first  # noqa: E402
from changenet.segment.losses import cross_entropy, multi_scale  # noqa: E402
from changenet.segment.model import ChangeSegmenter, build_segmenter  # noqa: E402
from fiducial.backbones import deformable, vit_adapter  # noqa: E402
from fiducial.backbones.deformable import MSDeformAttn  # noqa: E402
from fiducial.backbones.fan import FanPyramid  # noqa: E402
from fiducial.ops.linear import Linear  # noqa: E402

ROUNDING, GRADIENT_ROUNDING = 1e-3, 1e-2
"""By which logits, and the loss and the gradient of each weight, may differ between the two ways, of their norm: in
float32 a few ReLUs near 0 open in one and not in the other. (In float64 the tests hold them to 1e-9.)"""
SCALE_WEIGHTS = (0.5, 0.5, 0.5, 0.8, 1.0)
SPEED, MEMORY = 1.2, 0.8
"""Of inference on a CPU: at least so many times as fast, at most this part of the memory."""


@dataclass(frozen=True)
class Case:
    """A network and what it is fed."""

    backbone: str
    side: int = 256
    batch: int = 4
    training_batch: int = 2
    embed_dim: int = 256


CASES = {
    "fan": Case("fan_small_12_p4_hybrid"),
    "vit": Case("vit_large_nvdinov2", batch=2, training_batch=1),
}
QUICK = {
    "fan": Case("fan_tiny_8_p4_hybrid", side=64, batch=2, embed_dim=32),
    "vit": Case("vit_large_nvdinov2", side=64, batch=1, training_batch=1, embed_dim=32),
}
MODES = ("inference", "training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(CASES), help="one backbone instead of both")
    parser.add_argument("--turns", type=int, default=3, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, for use with --threads 1")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    parser.add_argument("--memory-of", nargs=2, metavar=("MODE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = QUICK if options.quick else CASES
    if options.memory_of:
        print(json.dumps(megabytes(cases[options.only], *options.memory_of)))
        return 0
    print(machine(options.threads))
    clock = time.process_time if options.cpu_time else time.perf_counter
    met = True
    for name in [options.only] if options.only else cases:
        bench = Bench(cases[name])
        for mode in MODES:
            flags = ["--only", name, "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
            met &= report(bench, mode, flags, options.turns, clock)
    return int(not met and not options.quick)


def report(bench: Bench, mode: str, flags: Sequence[str], turns: int, clock: Callable[[], float]) -> bool:
    """Time both ways in turns, measure the memory of each apart, print both; whether the targets are met."""
    bench.assert_equal(mode)
    ways = {way: getattr(bench, mode)(way) for way in ("plain", "ours")}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, run in ways.items():
            seconds[way].append(measure(run, clock).seconds)
    memory = {way: _in_own_process([*flags, "--memory-of", mode, way]) for way in ways}
    faster = statistics.median(p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True))
    share = memory["ours"] / memory["plain"]
    case = bench.case
    batch = case.batch if mode == "inference" else case.training_batch
    print(f"{mode}: {case.backbone}, {case.side} × {case.side} pixels, batch {batch}, decoder of {case.embed_dim}")
    for way, name in (("plain", "straightforward"), ("ours", "this project's")):
        print(f"    {name:18} {statistics.median(seconds[way]):9.3f} s {memory[way]:8.0f} MB")
    print(f"    {faster:.2f}x as fast, {1 - share:+.0%} less memory", end="", flush=True)
    on_cpu = device() == "cpu"
    met = (not on_cpu or (faster >= SPEED and share <= MEMORY)) if mode == "inference" else share < 1
    print(f"   (target {'met' if met else 'MISSED'})")
    return met


def megabytes(case: Case, mode: str, way: str) -> float:
    """Peak memory of one run, beyond what is there before it."""
    run = getattr(Bench(case), mode)(way)
    run()
    return measure(run).megabytes


def _in_own_process(flags: Sequence[str]) -> float:
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(flags)} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


class Bench:
    """A network with numbers in it, a batch of pairs, and both ways of running it."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        size = (case.side, case.side)
        self.case = case
        self.network = _trained_looking(
            build_segmenter(backbone=case.backbone, image_size=size, embed_dim=case.embed_dim)
        ).to(device())
        self.plain = Plain(self.network)
        self.before, self.after = torch.randn(2, case.batch, 3, *size).to(device())
        self.label = torch.randint(0, 2, (case.batch, *size)).to(device())

    def inference(self, way: str) -> Callable[[], Tensor]:
        """The logits of the batch; call the result with the network in eval mode."""
        forward = self.network.final if way == "ours" else lambda *pair: self.plain(*pair)[-1]

        @torch.inference_mode()
        def run() -> Tensor:
            self.network.eval()
            logit_BKHW: Tensor = forward(self.before, self.after)
            return logit_BKHW

        return run

    def training(self, way: str) -> Callable[[], Tensor]:
        """The loss over all scales, and gradients, of the batch's first pairs; the same random paths every time."""
        forward = self.network.predictions if way == "ours" else self.plain
        batch = slice(0, self.case.training_batch)

        def run() -> Tensor:
            self.network.train()
            self.network.zero_grad()
            torch.manual_seed(0)
            predictions = forward(self.before[batch], self.after[batch])
            loss = multi_scale(predictions, self.label[batch], SCALE_WEIGHTS, cross_entropy)
            loss.backward()
            return loss.detach()

        return run

    def assert_equal(self, mode: str) -> None:
        """Raises: AssertionError unless both ways give the same result, and in training the same gradients."""
        results = []
        for way in ("plain", "ours"):
            results.append([getattr(self, mode)(way)()])
            if mode == "training":
                results[-1] += [p.grad.clone() for p in self.network.parameters() if p.grad is not None]
        total = max(float(x.norm()) for x in results[0])
        rounding = ROUNDING if mode == "inference" else GRADIENT_ROUNDING
        for a, b in zip(*results, strict=True):  # gradients that should be 0 are rounding alone
            if float((a - b).norm()) > rounding * max(float(a.norm()), 1e-3 * total):
                raise AssertionError(f"{mode}: the two ways differ by {(a - b).norm():.1e} of {a.norm():.1e}")


# --- the straightforward way -----------------------------------------------------------------------------------------


class Plain:
    """Computes a segmenter's predictions as they are usually written down, with its modules and weights."""

    def __init__(self, network: ChangeSegmenter) -> None:
        self.backbone, self.decoder = network.backbone, network.decoder

    def __call__(self, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
        with plain_functions():
            return self._decode(self._pyramid(before), self._pyramid(after))

    def _pyramid(self, image: Tensor) -> list[Tensor]:
        with class_tokens(self.backbone):
            maps: list[Tensor] = self.backbone(image)
        return maps

    def _decode(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, ...]:
        decoder: Any = self.decoder
        maps: list[Tensor] = []
        auxiliary = []
        for scale in range(len(before), 0, -1):
            project, compare = getattr(decoder, f"linear_c{scale}"), getattr(decoder, f"diff_c{scale}")
            joined = torch.cat((project(before[scale - 1]), project(after[scale - 1])), dim=1)
            difference = nn.Sequential.forward(compare, joined)
            if maps:
                difference = difference + resize(maps[-1], difference.shape[-2:])
            maps.append(difference)
            auxiliary.append(getattr(decoder, f"make_pred_c{scale}")(difference))
        fused = decoder.linear_fuse(stack_coarse_first(tuple(reversed(maps)), maps[-1].shape[-2:]))
        x = decoder.dense_2x(decoder.convd2x(fused))
        x = decoder.dense_1x(decoder.convd1x(x))
        return (*auxiliary, decoder.change_probability(x))


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, *_: object, scale: float | None = None, **__: object
) -> Tensor:
    """``softmax(scale q kᵀ) v``, every intermediate in memory."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (scale * query @ key.transpose(-2, -1)).softmax(-1) @ value


def sampled_attention(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, **_: object
) -> Tensor:
    """Deformable attention by one ``grid_sample`` per level; shapes as in :func:`fiducial.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    sampled = []
    for level, (height, width) in enumerate(shapes.tolist()):
        part = value[:, int(starts[level]) :][:, : height * width]
        map_NDHW = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid_NQP2 = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled.append(F.grid_sample(map_NDHW, grid_NQP2.to(value.dtype), align_corners=False))
    weight_N1QX = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    attended_NDQ = (torch.cat(sampled, dim=-1) * weight_N1QX).sum(-1)
    return attended_NDQ.view(batch, heads * channels, queries).transpose(1, 2)


def joined_summary(conv: nn.Conv2d, summary: Tensor, cells: Tensor) -> Tensor:
    """The 1×1 convolution of a map and, before its channels, the summary repeated for every cell."""
    mixed: Tensor = conv(torch.cat((summary[:, :, None, None].expand_as(cells), cells), dim=1))
    return mixed


@contextmanager
def plain_functions() -> Iterator[None]:
    """Let every layer use the three functions above, and linear layers torch's matrix product."""
    with (
        mock.patch.object(F, "scaled_dot_product_attention", explicit_attention),
        mock.patch.object(deformable, "ms_deform_attn", sampled_attention),
        mock.patch.object(vit_adapter, "mix_summary", joined_summary),
        mock.patch.object(Linear, "forward", nn.Linear.forward),
    ):
        yield


@contextmanager
def class_tokens(backbone: nn.Module) -> Iterator[None]:
    """Let FAN also compute its class token, which no map depends on."""
    hooks = []
    if isinstance(backbone, FanPyramid):
        token = backbone.cls_token
        for block in backbone.cls_attn_blocks:
            hooks.append(block.register_forward_hook(lambda block, args, _: _with_class_token(block, args[0], token)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_class_token(block: Any, patches: Tensor, token: Tensor) -> Tensor:
    """XCiT's class attention block, on all tokens; its patches are the result."""
    x = torch.cat((token.expand(len(patches), -1, -1), patches), dim=1)
    normed = block.norm1(x)
    x = x + block.gamma1 * torch.cat((block.attn(normed), normed[:, 1:]), dim=1)
    x = block.norm2(x)
    changed: Tensor = x + torch.cat((block.gamma2 * block.mlp(x[:, :1]), x[:, 1:]), dim=1)
    return changed[:, 1:]


def _trained_looking(network: ChangeSegmenter) -> ChangeSegmenter:
    """With batch norm statistics and sampling offsets that are not those of a fresh network.

    Fresh offsets hit the centres of pixels, where the gradient to them jumps, and rounding alone chooses the side.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.momentum = 0.0  # training steps leave them as they are
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(module, MSDeformAttn):
            bias = module.sampling_offsets.bias
            bias.data += torch.empty_like(bias).uniform_(-0.5, 0.5, generator=generator)
    return network


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
