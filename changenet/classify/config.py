"""Spec keys of ``task: classify``: its part of ``dataset``, ``model`` and ``train``."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from changenet.augment_config import Factors, RandomColor, RandomFlip, RandomRotate, ScaleRandomCrop
from fiducial.spec.common import (
    MAX_BATCH,
    MAX_SIDE,
    MAX_WORKERS,
    BlankIsNone,
    CacheKind,
    OptionalText,
    PositiveTriple,
    Text,
    Triple,
)
from fiducial.spec.knob import Section, item, knob, section
from fiducial.training.sections import cache_knob, cache_mb_knob


class PairFiles(Section):
    """One split of the data: a CSV of pairs and the folder its paths start from."""

    csv_path: Text = knob("", "CSV with the columns input_path, golden_path, label and object_name.", shown=True)
    images_dir: Text = knob("", "Folder that input_path and golden_path of the CSV start from.", shown=True)


class CalibrationFiles(Section):
    """Images that static quantization observes."""

    images_dir: Text = knob("", "Folder with calibration images.")
    csv_path: Text = knob("", "CSV of pairs under images_dir; empty uses the rows of the training CSV.", schema=False)


_NOT_ENLARGED = "task classify does not enlarge images; with_random_crop crops them"


class UnusedScaleCrop(ScaleRandomCrop):
    """What TAO's schema shares with task segment."""

    scale_range: Factors = knob([1, 1.2], "Smallest and largest factor.", ignored=_NOT_ENLARGED)
    enable: bool = knob(
        True, "Switch enlarging and cropping on.", aliases=("enabled",), automl=True, ignored=_NOT_ENLARGED
    )


class ClassifyAugmentation(Section):
    """``dataset.classify.augmentation_config``: normalisation, and random changes of training pairs."""

    rgb_input_mean: Triple = knob([0.485, 0.456, 0.406], "Subtracted from each colour channel of images in [0, 1].")
    rgb_input_std: PositiveTriple = knob(
        [0.229, 0.224, 0.225],
        "Each channel is divided by this after subtracting the mean.",
        template=[0.226, 0.226, 0.226],
    )
    radio_normalization: Literal["auto", "clip", "as_configured"] = knob(
        "auto",
        "Mean and std for C-RADIO backbones while rgb_input_mean and rgb_input_std keep their defaults. auto: what the "
        "checkpoint was trained with, CLIP's for a new training; clip: always CLIP's; as_configured: the values above.",
        schema=False,
    )
    random_flip: RandomFlip = section(RandomFlip, "Random mirroring, the same for both images and all lights.")
    random_rotate: RandomRotate = section(RandomRotate, "Random rotation, the same for both images and all lights.")
    random_color: RandomColor = section(RandomColor, "Random colour changes, the same strength for both images.")
    with_scale_random_crop: UnusedScaleCrop = section(UnusedScaleCrop, "Enlarging and cropping; task segment only.")
    with_random_crop: bool = knob(True, "Cut a random window of 80 to 100 % of the area and scale it back.")
    with_random_blur: bool = knob(True, "Blur both images by the same random radius of up to one pixel.")
    augment: bool = knob(
        False, "Augment training pairs at all. Off, every split sees the images as they are.", automl=True
    )


class ClassifyDataset(Section):
    """``dataset.classify``: pairs of a part and its golden reference."""

    train_dataset: PairFiles = section(PairFiles, "Pairs to train on.", actions=("train",))
    validation_dataset: PairFiles = section(PairFiles, "Pairs that are scored during training.", actions=("train",))
    test_dataset: PairFiles = section(PairFiles, "Labelled pairs for evaluate.", actions=("evaluate",))
    infer_dataset: PairFiles = section(
        PairFiles, "Pairs for inference; the label may be missing.", actions=("inference",)
    )
    quant_calibration_dataset: CalibrationFiles = section(CalibrationFiles, "Images for static quantization.")
    image_ext: Annotated[str, BeforeValidator(lambda value: value or ".jpg")] = knob(
        ".jpg",
        "Suffix of every image file, with its dot and exactly as written on disk.",
        shown=True,
        actions=("train", "evaluate", "inference"),
    )
    batch_size: int = knob(
        8,
        "Pairs per batch and GPU. Training needs at least 2.",
        ge=1,
        le=MAX_BATCH,
        schema_range=(1, inf),
        shown=True,
        actions=("train", "evaluate", "inference"),
    )
    workers: int = knob(
        8,
        "Processes that load data; 0 loads in the main process.",
        template=1,
        ge=0,
        le=MAX_WORKERS,
        schema_range=(0, inf),
    )
    fpratio_sampling: float = knob(
        0.1,
        "Defects drawn for each good pair while training: 0.25 makes every fifth pair a defect.",
        ge=0,
        usual=(0, 1),
        automl=True,
        search=(0.02, 0.5),
        log=True,
        shown=True,
        actions=("train",),
    )
    num_input: int = knob(
        8,
        "Lights per image. Equals the number of entries of input_map; 1 without input_map.",
        template=4,
        ge=1,
        schema_range=(1, inf),
        shown=True,
    )
    input_map: dict[str, int] | None = knob(
        None,
        "Lights of an image: file suffix and position. Images are joined in the order of these entries. null: one "
        "image without suffix.",
        template={"LowAngleLight": 0, "SolderLight": 1, "UniformLight": 2, "WhiteLight": 3},
        shown=True,
    )
    concat_type: Annotated[Literal["linear", "grid"] | None, BlankIsNone] = knob(
        None,
        "How lights are joined: linear stacks them downwards, grid fills grid_map. null is linear.",
        template="linear",
        shown=True,
    )
    grid_map: dict[str, int] | None = knob(
        None, "Columns (x) and rows (y) of concat_type grid; x times y is num_input.", template={"x": 2, "y": 2}
    )
    image_width: int = knob(
        224,
        "Width of the image of one light, in pixels.",
        ge=1,
        le=MAX_SIDE,
        schema_range=(None, None),
        aliases=("input_width",),
        shown=True,
    )
    image_height: int = knob(
        224,
        "Height of the image of one light, in pixels.",
        ge=1,
        le=MAX_SIDE,
        schema_range=(None, None),
        aliases=("input_height",),
        shown=True,
    )
    num_classes: int = knob(
        2,
        "Outputs of the learnable classifier: good and defect.",
        ge=2,
        le=MAX_SIDE,
        schema_range=(2, inf),
        math_cond=">0",
    )
    num_golden: int = knob(
        1,
        "Golden references per part. With more than one, golden_path names a folder that holds them.",
        ge=1,
        le=MAX_BATCH,
        schema_range=(1, inf),
    )
    augmentation_config: ClassifyAugmentation = section(ClassifyAugmentation, "Normalisation and augmentation.")
    align: Literal["none", "shift"] = knob(
        "none", "shift moves the test image onto its golden before they are compared.", schema=False
    )
    group_by: OptionalText = knob(
        None,
        "CSV column whose values get metrics of their own, such as component types; null means object_name.",
        schema=False,
    )
    golden_cache_mb: int = knob(
        256, "Memory for decoded golden images that many rows share, in MB per loading process.", ge=0, schema=False
    )
    cache: CacheKind = cache_knob()
    cache_mb: int = cache_mb_knob()


class ClassifyModel(Section):
    """``model.classify``: how a pair becomes one defect score."""

    train_margin_euclid: float = knob(
        2.0,
        "Distance that contrastive training pushes defects beyond.",
        gt=0,
        usual=(1, None),
        schema_range=(1, inf),
        automl=True,
    )
    eval_margin: float = knob(
        2.0,
        "A pair is a defect when its score is above this.",
        usual=(0, None),
        schema_range=(0, inf),
        automl=True,
        shown=True,
        actions=("train", "evaluate", "inference"),
    )
    embedding_vectors: int = knob(
        5, "Size of the embedding that euclidean compares.", ge=1, le=MAX_SIDE, schema_range=(1, inf)
    )
    embed_dec: int = knob(5, "Hidden width of the classifier behind learnable.", ge=1, le=2**20, schema_range=(1, inf))
    difference_module: Literal["learnable", "euclidean"] = knob(
        "euclidean",
        "How the two images are compared: learnable trains a difference decoder with loss ce, euclidean measures the "
        "distance of two embeddings with loss contrastive.",
        aliases=("diff_module",),
        shown=True,
    )
    learnable_difference_modules: int = knob(
        4, "Scales that learnable compares, coarsest first.", ge=1, le=4, automl=True
    )


class ClassifyTrain(Section):
    """``train.classify``: the loss."""

    loss: Literal["ce", "contrastive"] = knob(
        "contrastive",
        "ce belongs to difference_module learnable, contrastive to euclidean.",
        shown=True,
        actions=("train",),
    )
    cls_weight: list[Annotated[float, Field(ge=0)]] = knob(
        [1.0, 10.0],
        "Weight of each class in loss ce: good, defect.",
        aliases=("cls_weights",),
        items={
            1: item("Weight of defects in loss ce; good pairs weigh cls_weight[0].", ge=0, usual=(1, 100), automl=True)
        },
    )
