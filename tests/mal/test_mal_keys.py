"""Keys of a spec do what they say, and only there."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import mal
from fiducial.checkpoints.reading import read
from fiducial.data.samplers import Draw
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.spec.compose import Source, compose
from mal.config import ExperimentSpec
from mal.decode import mask_prob
from mal.model import build_labeler
from mal.task import MAL

HEADS = {"hidden": 8, "out_dim": 8}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [build_labeler("vit-deit-tiny/16", **HEADS).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def checkpoint(networks, tmp_path_factory):
    """Student and teacher that are nothing like each other."""
    path = tmp_path_factory.mktemp("keys") / "model.pth"
    sides = zip(("student", "teacher"), networks, strict=True)
    torch.save({"state_dict": {f"{side}.{k}": v for side, n in sides for k, v in n.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def batch():
    make = torch.Generator().manual_seed(1)
    boxmask = torch.zeros(3, 1, 32, 32)
    boxmask[..., 4:28, 4:28] = 1
    return {
        "image": torch.randn(3, 3, 32, 32, generator=make),
        "boxmask": boxmask,
        "area": torch.tensor([100.0, 5000.0, 2e4]),
    }


@pytest.fixture
def runtime_of(make_tree, tmp_path):
    def make(action="inference", **changes):
        runtime = MAL.runtime(compose(ExperimentSpec, Source(make_tree(tmp_path / "results", **changes))).spec)
        runtime.action = action
        return runtime

    return make


@torch.no_grad()
def expected(networks, batch, which, flip):
    """Probabilities by the definition: the mean of logits, of mirrored crops too."""
    student, teacher = networks
    image, area = batch["image"], batch["area"]
    logits = []
    for network in {"student": [student], "teacher": [teacher], "both": [student, teacher]}[which]:
        logits.append(network(image, area))
        if flip:
            logits.append(network(image.flip(3), area).flip(3))
    return mask_prob(sum(logits) / len(logits), batch["boxmask"])


CHOICES = [
    ({}, "student", False),
    ({"teacher": True}, "teacher", False),
    ({"mixed": True}, "both", False),
    ({"mixed": True, "teacher": True}, "both", False),
    ({"flip": True}, "student", True),
    ({"flip": True, "teacher": True}, "teacher", True),
    ({"flip": True, "mixed": True}, "both", True),
]
NAMES = {
    "evaluate": {"teacher": "use_teacher_test", "mixed": "use_mixed_model_test", "flip": "use_flip_test"},
    "inference": {"teacher": "use_teacher", "mixed": "use_mixed_model", "flip": "use_flip"},
}


class TestNetworks:
    @pytest.mark.parametrize("action", ["evaluate", "inference"])
    @pytest.mark.parametrize(("choice", "which", "flip"), CHOICES)
    def test_of_an_action(self, networks, checkpoint, batch, runtime_of, action, choice, which, flip):
        changes = {f"{action}__{NAMES[action][name]}": value for name, value in choice.items()}
        outputs = runtime_of(action, **changes).torch_predictor(read(checkpoint)).predict(batch)
        assert torch.allclose(outputs["prob"], expected(networks, batch, which, flip), atol=1e-5)

    @pytest.mark.parametrize(("action", "other"), [("evaluate", "inference"), ("inference", "evaluate")])
    def test_not_those_of_another(self, networks, checkpoint, batch, runtime_of, action, other):
        changes = {f"{other}__{key}": True for key in NAMES[other].values()}
        outputs = runtime_of(action, **changes).torch_predictor(read(checkpoint)).predict(batch)
        assert torch.allclose(outputs["prob"], expected(networks, batch, "student", flip=False), atol=1e-5)

    @pytest.mark.parametrize(
        ("choice", "second"),
        [({}, "teacher"), ({"use_teacher": True}, "student"), ({"use_mixed_model": True}, "teacher")],
    )
    def test_agreement_is_with_the_other_network(self, networks, checkpoint, batch, runtime_of, choice, second):
        changes = {f"inference__{key}": value for key, value in choice.items()}
        outputs = runtime_of(**changes).torch_predictor(read(checkpoint)).predict(batch)
        assert torch.allclose(outputs["second"], expected(networks, batch, second, flip=False), atol=1e-5)

    @pytest.mark.parametrize(("action", "quality"), [("inference", False), ("evaluate", True)])
    def test_one_pass_where_nothing_is_judged(self, checkpoint, batch, runtime_of, action, quality):
        predictor = runtime_of(action, inference__quality=quality).torch_predictor(read(checkpoint))
        assert set(predictor.predict(batch)) == {"prob"}

    def test_validation_follows_those_of_evaluate(self, batch, runtime_of):
        module = runtime_of("train", evaluate__use_teacher_test=True, inference__use_flip=True).module(pretrained=False)
        module.eval()
        with torch.no_grad():
            found = module.evaluate_batch(batch)[0]["prob"]
        assert torch.allclose(
            found, expected([module.student, module.teacher], batch, "teacher", flip=False), atol=1e-5
        )

    @pytest.mark.parametrize(("use_teacher", "which"), [(False, "student"), (True, "teacher")])
    def test_exported(self, networks, checkpoint, batch, make_tree, tmp_path, use_teacher, which):
        tree = make_tree(tmp_path, export__checkpoint=str(checkpoint), export__use_teacher=use_teacher)
        target = tmp_path / "model.onnx"
        mal.run("export", tree, f"export.onnx_file={target}", "export.batch_size=-1", "inference.use_flip=true")
        runtime = MAL.runtime(compose(ExperimentSpec, Source(tree)).spec)
        found = OnnxPredictor(target, runtime).predict(batch)["prob"]
        assert torch.allclose(torch.as_tensor(found), expected(networks, batch, which, flip=False), atol=1e-4)

    def test_an_exported_file_has_no_choice_and_says_so(self, checkpoint, make_tree, tmp_path, caplog):
        tree = make_tree(tmp_path, export__checkpoint=str(checkpoint))
        mal.run("export", tree, f"export.onnx_file={tmp_path / 'model.onnx'}")
        keys = ("evaluate.use_teacher_test=true", "evaluate.comp_clustering=true", "inference.use_flip=true")
        kpis = mal.run("evaluate", tree, f"evaluate.checkpoint={tmp_path / 'model.onnx'}", *keys).kpis
        told = "evaluate.use_teacher_test, evaluate.comp_clustering: no effect on an exported file"
        assert told in caplog.text
        assert "val_cluster_score" not in kpis


class TestBackbone:
    def test_stochastic_depth_grows_to_the_last_block_of_the_student_alone(self, runtime_of):
        module = runtime_of("train", model__vit_dpr=0.22).module(pretrained=False).train()
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in module.student.backbone.blocks]
        assert rates == pytest.approx([0.02 * place for place in range(12)])
        images, area = torch.randn(2, 3, 32, 32), torch.tensor([50.0, 50.0])
        with torch.no_grad():
            assert not torch.equal(module.student(images, area), module.student(images, area))
            assert torch.equal(module.teacher(images, area), module.teacher(images, area))

    @pytest.mark.parametrize(
        ("stages", "frozen"),
        [([-1], set()), ([0], {0}), ([1, 3], {1, 3}), ([3, 1, 1, -1], {1, 3}), ([0, 12], {0, 12}), ([], set())],
    )
    def test_frozen_stages_are_a_set(self, runtime_of, stages, frozen, caplog):
        module = runtime_of("train", model__frozen_stages=stages).module(pretrained=False).train()
        backbone = module.student.backbone
        parts = [backbone.patch_embed, *backbone.blocks]
        fixed = {i for i, part in enumerate(parts) if not any(p.requires_grad for p in part.parameters())}
        assert fixed == frozen
        assert {i for i, part in enumerate(parts) if not part.training} == frozen
        assert "no stages" not in caplog.text

    def test_stages_that_are_not_there_are_said(self, runtime_of, caplog):
        runtime_of("train", model__frozen_stages=[13, 99, 1]).module(pretrained=False)
        assert "the backbone has no stages [13, 99]" in caplog.text

    @pytest.mark.parametrize("arch", ["vit-deit-tiny/16", "fan_tiny_8_p4_hybrid"])
    def test_recomputed_activations_change_no_number(self, runtime_of, arch):
        weights = []
        for again in (False, True):
            torch.manual_seed(0)
            runtime = runtime_of(
                "train",
                model__arch=arch,
                model__activation_checkpointing=again,
                model__vit_dpr=0.2,
                train__lr=1e-3,
                train__loss_mil_step=1,
                model__frozen_stages=[0],
            )
            module = runtime.module(pretrained=False)
            torch.manual_seed(1)
            fit(module, runtime, limit_train_batches=2)
            weights.append(module.state_dict())
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def fit(module, runtime, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0, **quiet | options
    )
    trainer.fit(module, runtime.datamodule())


@pytest.mark.parametrize(("key", "name"), [("student", "image"), ("clean", "clean")])
def test_the_mean_field_follows_the_picture_that_is_asked_for(runtime_of, key, name):
    runtime = runtime_of("train", train__crf_image=key)
    module, seen = runtime.module(pretrained=False), []
    objective, step = module.objective, module.training_step
    module.objective = lambda s, t, image, *rest, **o: (seen.append(image), objective(s, t, image, *rest, **o))[1]
    module.training_step = lambda batch, batch_idx: (seen.append(batch), step(batch, batch_idx))[1]
    fit(module, runtime, limit_train_batches=1)
    given, image = seen
    assert torch.equal(image, given[name])
    assert not torch.equal(given["image"], given["clean"])


class TestMasks:
    def test_are_clipped_in_inference_alone(self, checkpoint, make_tree, tmp_path, pictures):
        """Every pixel of the crop is mask: without clipping it is the crop's, a pixel beyond the box."""
        tree = make_tree(tmp_path, inference__checkpoint=str(checkpoint), evaluate__checkpoint=str(checkpoint))
        tree["train"]["mask_thres"] = [1e-6]
        tree["inference"]["quality"] = False
        areas, kpis = {}, {}
        for clip in (False, True):
            key = f"inference.clip_to_box={str(clip).lower()}"
            mal.run("inference", tree, key, f"inference.results_dir={tmp_path / str(clip)}")
            rows = json.loads((tmp_path / str(clip) / "instances_val2017_mal.json").read_text())["annotations"]
            areas[clip] = [row["mask_area"] for row in rows]
            kpis[clip] = mal.run("evaluate", tree, key, f"evaluate.results_dir={tmp_path / 'e'}").kpis["object_IoU"]
            boxes = [row["bbox"] for row in rows]
        # the last row and column of a box are in it
        assert areas[True] == [min(w + 1, 128 - x) * min(h + 1, 96 - y) for x, y, w, h in boxes]
        assert all(loose >= tight for loose, tight in zip(areas[False], areas[True], strict=True))
        assert sum(areas[False]) > sum(areas[True])
        assert kpis[False] == kpis[True]

    def test_of_a_library_are_clipped_as_its_spec_says(self, checkpoint, write_spec, tmp_path, pictures):
        found = {}
        for clip in (False, True):
            spec = write_spec(tmp_path / str(clip), inference__clip_to_box=clip, train__mask_thres=[1e-6])
            labeler = mal.load(checkpoint, spec=spec)
            found[clip] = labeler.label(pictures / "val" / "img" / "0.png", [(20, 20, 60, 50)])[0].mask
        assert found[True].sum() == 41 * 31
        assert found[False].sum() > found[True].sum()


class TestData:
    @pytest.mark.parametrize(("size", "side"), [(10, 10), (30, 30), (None, 96 / 5)])
    def test_size_of_a_point(self, runtime_of, tmp_path, pictures, size, side):
        tree = json.loads((pictures / "val" / "ann.json").read_text())
        tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "point": [60, 50]}]
        (tmp_path / "ann.json").write_text(json.dumps(tree))
        runtime = runtime_of(inference__ann_path=str(tmp_path / "ann.json"), dataset__point_size=size)
        x0, y0, x1, y1 = runtime.dataset("infer").boxes[0].corners
        assert (x1 - x0, y1 - y0) == pytest.approx((side, side))
        assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((60, 50))

    @pytest.mark.parametrize(("pool", "together"), [(1, 1), (2, 2), (64, 5)])
    def test_pictures_of_a_pool(self, runtime_of, pool, together):
        """Three boxes in each of five pictures: how many pictures the first boxes of an epoch come from."""
        data = runtime_of("train", dataset__shuffle_pool=pool, train__batch_size=1).datamodule()
        order = [data.train_set.boxes[batch[0].index].picture for batch in data.train_dataloader().batch_sampler]
        assert len(order) == 15
        assert len(set(order[: 3 * pool])) == together

    @pytest.mark.parametrize(("megabytes", "decoded"), [(512, 2), (0, 6)])
    def test_memory_for_pictures(self, runtime_of, megabytes, decoded):
        dataset = runtime_of(dataset__image_cache_mb=megabytes).dataset("infer")
        for index in range(len(dataset)):
            dataset[index]
        assert dataset.reader.cache.misses == decoded

    def test_kept_pictures_are_the_same(self, runtime_of, monkeypatch):
        monkeypatch.setattr("fiducial.data.kept.SETTLED_NS", 0)
        plain, kept = (runtime_of("train", dataset__cache=kind).dataset("train") for kind in ("off", "ram"))
        for place in range(len(plain)):
            one, other = plain[Draw(3, place)], kept[Draw(3, place)]
            assert all(torch.equal(one[key], other[key]) for key in one)
        assert (kept.reader.cache.shared.misses, kept.reader.cache.shared.hits) == (5, 10)


class TestClustering:
    def test_is_measured_where_asked_for(self, checkpoint, make_tree, tmp_path):
        tree = make_tree(tmp_path, evaluate__checkpoint=str(checkpoint), dataset__crop_size=64)
        assert "val_cluster_score" not in mal.run("evaluate", tree).kpis
        score = mal.run("evaluate", tree, "evaluate.comp_clustering=true").kpis["val_cluster_score"]
        assert 0 < score < 4

    def test_in_training_too(self, make_tree, tmp_path):
        tree = make_tree(tmp_path, evaluate__comp_clustering=True, train__num_epochs=1)
        result = mal.run("train", tree)
        assert np.isfinite(result.history[-1][1]["val_cluster_score"])
