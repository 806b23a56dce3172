"""Training on kept features of a frozen FAN: the same losses, without a second look at an image."""

import pytest
import torch

from changenet import run
from changenet.kept_features import check_feature_cache, makes_new
from changenet.segment.runtime import SegmentRuntime
from fiducial.backbones.names import build_pyramid
from fiducial.run.status import read_status

AUGMENT = "dataset__segment__augmentation__"
TURNS = {f"{AUGMENT}{name}": False for name in ("with_random_crop", "with_random_blur")} | {
    f"{AUGMENT}{name}": {"enable": False} for name in ("random_color", "with_scale_random_crop")
}


@pytest.fixture
def frozen(make_spec_tree, scene_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    weights = tmp_path / "fan.pth"
    torch.save(build_pyramid("fan_tiny_8_p4_hybrid", image_size=(32, 32)).state_dict(), weights)
    frozen = {"model__backbone__freeze_backbone": True, "model__backbone__pretrained_backbone_path": str(weights)}

    def make(**changes):
        return make_spec_tree(
            scene_data, tmp_path / "results", train__optim={"optim": "sgd", "lr": 1e-2}, **frozen, **changes
        )

    return make


@pytest.mark.parametrize("windows", [False, True])
def test_same_losses(frozen, tmp_path, windows):
    spec, found = frozen(**TURNS, dataset__segment__windows={"enable": windows}), []
    for kind in ("off", "disk"):
        where = tmp_path / kind
        run("train", spec, f"train.feature_cache={kind}", f"results_dir={where}", "train.num_epochs=3")
        found.append([line["kpi"] for line in read_status(where / "train" / "status.json") if "kpi" in line])
    assert len(found[0]) == len(found[1]) > 3
    for kept, wanted in zip(*found, strict=True):
        assert kept == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def test_each_image_is_seen_once(make_spec, frozen):
    from changenet.config import ExperimentSpec

    spec = ExperimentSpec.model_validate(frozen(train__feature_cache="ram", **TURNS))
    runtime = SegmentRuntime(spec)
    data, module = runtime.datamodule(), runtime.module(pretrained=True)
    (val,) = data.val_dataloader()
    losses = [[module.evaluate_batch(batch)[1].item() for batch in val] for _ in range(2)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert (module.features.encoded, module.features.reused) == (6, 6)
    batch = next(iter(val))
    plain = runtime.dataset("val")[0]
    undo = val.dataset.normalize.undo
    shown = module.preview(batch)
    assert torch.equal(shown["before"], undo(plain["A"]))
    assert torch.equal(shown["after"], undo(plain["B"]))


def test_where_it_is_of_no_use(make_spec):
    frozen = {"model__backbone__freeze_backbone": True, "train__feature_cache": "disk"}
    (problem,) = check_feature_cache(make_spec(**frozen))
    assert "every picture is new" in problem.found
    assert list(check_feature_cache(make_spec(**frozen, **TURNS))) == []
    windows = make_spec(**TURNS, dataset__segment__windows={"enable": True})
    assert makes_new(windows) == ["dataset.segment.windows.enable"]
    (problem,) = check_feature_cache(make_spec(**frozen, model__backbone__type="vit_large_nvdinov2"))
    assert "adapter" in problem.found
