"""A frozen DINOv3 from a file of weights to a trained, evaluated and exported network, compared in both ways."""

import pytest
import tiny_dinov3
import torch
from safetensors.torch import load_file

from changenet import run


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny_dinov3.shrink(monkeypatch)


@pytest.mark.parametrize(
    ("difference", "loss", "inner"), [("euclidean", "contrastive", "inner"), ("learnable", "ce", "vit")]
)
def test_trained_evaluated_continued_and_exported(make_spec_tree, pair_data, tmp_path, difference, loss, inner):
    weights = tiny_dinov3.write_weights(tmp_path)
    spec = make_spec_tree(
        pair_data,
        tmp_path,
        model__backbone__type=tiny_dinov3.NAME,
        model__backbone__pretrained_backbone_path=str(weights),
        model__backbone__freeze_backbone=True,
        model__decode_head__feature_strides=[4, 8, 16, 32],
        model__decode_head__use_summary_token=True,
        model__classify__difference_module=difference,
        train__classify__loss=loss,
        train__num_epochs=1,
    )
    run("train", spec)
    run("train", spec, "train.num_epochs=2")  # continued
    latest = torch.load(tmp_path / "train" / "changenet_model_classify_latest.pth", weights_only=True)
    trained = latest["state_dict"]
    prefix = f"model.backbone.{inner}."
    given = load_file(weights)
    assert {key.removeprefix(prefix) for key in trained if key.startswith(prefix)} == given.keys()
    for key, tensor in given.items():  # nothing of the ViT was trained
        assert torch.equal(trained[prefix + key], tensor), key
    in_torch = run("evaluate", spec, "evaluate.checkpoint=latest")
    onnx = tmp_path / "model.onnx"
    run("export", spec, "export.checkpoint=latest", f"export.onnx_file={onnx}")
    elsewhere = run("evaluate", spec, f"evaluate.checkpoint={onnx}", f"results_dir={tmp_path / 'onnx'}")
    assert elsewhere.kpis == pytest.approx(in_torch.kpis, abs=1e-4, nan_ok=True)
