"""Fitting tensors into a module."""

import pytest
import torch
from torch import nn

from fiducial.checkpoints import KeyMap
from fiducial.checkpoints.loading import load_into
from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)), nn.BatchNorm1d(2))  # 10 + 5 tensors


def changed(**tensors):
    state = {name: torch.full_like(tensor, 3) for name, tensor in network().state_dict().items()}
    return {name: value for name, value in (state | tensors).items() if value is not None}


def test_everything_matches():
    module = network()
    report = load_into(module, changed(), what="model")
    assert all((tensor == 3).all() for tensor in module.state_dict().values())
    assert report.summary() == "model: 15 of 15 tensors loaded"
    assert report.as_dict()["matched"] == 15


def test_counts_and_names():
    module = network()
    given = changed(**{"0.bias": None, "head.weight": torch.ones(1), "5.num_batches_tracked": None})
    report = load_into(module, given, what="backbone")
    assert (report.wanted, report.matched) == (14, 13)
    assert report.missing == ("0.bias",)
    assert report.unexpected == ("head.weight",)
    assert report.summary() == "backbone: 13 of 14 tensors loaded; 1 missing (0.bias); 1 not used (head.weight)"


def test_allowed_differences_do_not_count():
    given = changed(**{f"{i}.{name}": None for i in range(4) for name in ("weight", "bias")})
    with pytest.raises(CheckpointError, match="only 7 of 15"):
        load_into(network(), given)
    report = load_into(network(), given | {"head.x": torch.ones(1)}, allow=("[0-3].*", "head.*"), strict=True)
    assert (report.wanted, report.matched, report.missing, report.unexpected) == (7, 7, (), ())


def test_another_family_is_named_and_nothing_is_copied():
    module = nn.ModuleDict(
        {"layer4": nn.ModuleDict({"0": nn.ModuleDict({"conv1": nn.Linear(1, 1)})}), "bn1": nn.Linear(1, 1)}
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fan = {"patch_embed.backbone.stem.0.weight": torch.ones(1), "bn1.weight": torch.ones(1, 1)}
    sides = "the file looks like FAN, the model is ResNet; not in the file: layer4.*; not in the model: patch_embed"
    with pytest.raises(CheckpointError, match=rf"only 1 of 4 tensors match: {sides}"):
        load_into(module, fan)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_shapes_name_file_key_and_both(tmp_path):
    torch.save(changed(**{"0.bias": torch.ones(7)}), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth · 0\.bias is \[7\] in the file, \[2\] in the model"):
        load_into(network(), read(tmp_path / "m.pth"))


def test_size_dependent_tensors_keep_their_values():
    module = network()
    before = module[0].bias.clone()
    report = load_into(module, changed(**{"0.bias": torch.ones(7)}), size_dependent=("0.*",))
    assert torch.equal(module[0].bias, before)
    assert report.kept == ("0.bias",)
    assert report.matched == 14


def test_adapted_tensors_are_counted_as_reshaped():
    module = network()
    given = changed(**{"0.bias": torch.arange(4.0)})
    report = load_into(module, given, adapt=lambda key, tensor, shape: tensor[: shape[0]])
    assert module[0].bias.tolist() == [0, 1]
    assert (report.reshaped, report.matched) == (("0.bias",), 15)


def test_strict_lists_every_difference_with_its_reason():
    given = changed(**{"0.bias": torch.ones(7), "1.bias": None, "head": torch.ones(3)})
    with pytest.raises(CheckpointError) as caught:
        load_into(network(), given, strict=True, explain=lambda key, want, got: f"see model.{key} {want} {got}")
    assert [(problem.found, problem.fix) for problem in caught.value.problems] == [
        ("0.bias is [7] in the file, [2] in the model", "see model.0.bias (2,) (7,)"),
        ("1.bias [2] is in the model, not in the file", "see model.1.bias (2,) None"),
        ("head [3] is in the file, not in the model", "see model.head None (3,)"),
    ]


def test_key_maps_and_precision():
    given = {f"model.{name}": tensor.half() for name, tensor in changed().items()}
    module = network()
    report = load_into(module, given, key_maps=[KeyMap("wrapped", has=("model.",), renames=(("model.", ""),))])
    assert report.layouts == ("wrapped",)
    assert module[0].weight.dtype == torch.float32
    assert (module[0].weight == 3).all()


def test_weights_that_are_not_finite_are_warned_of(caplog):
    module = nn.Linear(2, 2)
    weights = {**module.state_dict(), "bias": torch.tensor([float("nan"), 0.0])}
    load_into(module, weights, what="m.pth")
    assert "bias is not finite" in caplog.text
