"""Spec keys of ``task: segment``: its part of ``dataset`` and ``train``."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from changenet.augment_config import RandomColor, RandomFlip, RandomRotate, ScaleRandomCrop
from fiducial.spec.common import MAX_BATCH, MAX_SIDE, MAX_WORKERS, CacheKind, PositiveTriple, Text, Triple
from fiducial.spec.knob import Section, knob, section
from fiducial.training.sections import cache_knob, cache_mb_knob

Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
"""Red, green, blue, each 0 to 255."""
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
"""The lower and the upper end."""


class SegmentAugmentation(Section):
    """``dataset.segment.augmentation``: normalisation, and random changes of training pairs."""

    random_flip: RandomFlip = section(RandomFlip, "Random mirroring of both images and the mask.")
    random_rotate: RandomRotate = section(RandomRotate, "Random rotation of both images and the mask.")
    random_color: RandomColor = section(RandomColor, "Random colour changes, drawn for each image.")
    with_scale_random_crop: ScaleRandomCrop = section(
        ScaleRandomCrop, "Enlarging and cropping of both images and the mask."
    )
    with_random_blur: bool = knob(True, "Blur both images by the same random radius of up to one pixel.")
    with_random_crop: bool = knob(True, "Cut a random window of 80 to 100 % of the area and scale it back.")
    mean: Triple = knob([0.5, 0.5, 0.5], "Subtracted from each colour channel of images in [0, 1].")
    std: PositiveTriple = knob([0.5, 0.5, 0.5], "Each channel is divided by this after subtracting the mean.")


class CalibrationRoot(Section):
    """Images that static quantization observes."""

    images_dir: Text = knob("", "Folder laid out like root_dir, with a list file predict.txt; masks are not needed.")
    csv_path: Text = knob("", "CSV of pairs.", schema=False, ignored="task segment reads list files")


class Windows(Section):
    """``dataset.segment.windows``: images larger than the network's input, at their own resolution."""

    enable: bool = knob(
        False,
        "Leave images at their own resolution: training draws windows of img_size pixels from them, the other actions "
        "go over the whole image with a sliding window, whose places overlap.",
        schema=False,
    )
    per_image: int = knob(
        0, "Windows drawn from each image in an epoch; 0: as many as would cover it.", ge=0, le=10**6, schema=False
    )
    overlap: float = knob(
        0.25,
        "Part of its side that a window shares with the next one when an image is gone over.",
        ge=0,
        lt=1,
        schema=False,
    )
    on_change: float = knob(
        0.5,
        "Part of the training windows that hold a changed pixel, where the image has one.",
        ge=0,
        le=1,
        schema=False,
    )
    cache_mb: int = knob(256, "Memory for decoded images, in MB per loading process.", ge=0, schema=False)


class Raster(Section):
    """``dataset.segment.raster``: how TIFFs and images of more than 8 bits are read."""

    scaling: Range | None = knob(None, "Two pixel values that become 0 and 255.", schema=False)
    percentiles: Range | None = knob(
        None, "The same as percentiles (0 to 100) of each image, such as [2, 98].", schema=False
    )
    bands: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=3)] | None = knob(
        None,
        "Bands to read, from 1: red, green, blue, or a single one. null: those the file marks so, else the first.",
        schema=False,
    )


class Outputs(Section):
    """``dataset.segment.outputs``: what evaluate and inference write beside masks, metrics and report."""

    original_size: bool = knob(
        False,
        "Masks and metrics at the size of each image, not of img_size; always so with windows. TAO's metrics are those "
        "at img_size.",
        schema=False,
    )
    probabilities: bool = knob(False, "Write the probabilities of every pixel.", schema=False)
    pictures: bool = knob(
        True, "Write TAO's pictures of every vis_after_n_batches-th batch of the action.", schema=False
    )
    polygons: Literal["none", "map", "wgs84"] = knob(
        "map",
        "Write the changed areas of GeoTIFFs as GeoJSON, in the coordinates of the image or in longitude and latitude.",
        schema=False,
    )
    min_object_area: int = knob(
        0,
        "Pixels below which a changed area is no object: not a polygon, neither missed nor false.",
        ge=0,
        schema=False,
    )
    num_overlays: int = knob(12, "Images in the report, half of them the worst and half the best.", ge=0, schema=False)


class SegmentDataset(Section):
    """``dataset.segment``: two images of one place and the mask of what changed."""

    root_dir: Text = knob(
        "",
        "Folder that holds the folders of the images, the masks and the lists.",
        shown=True,
        actions=("train", "evaluate", "inference"),
    )
    dataset: Literal["CNDataset"] = knob("CNDataset", "Kind of dataset; there is one.")
    data_name: str = knob(
        "LEVIR",
        "Name of the data. LandSCD brings its palette for pictures of the result; other names change nothing.",
        options=("LEVIR", "LandSCD", "custom"),
    )
    label_transform: Annotated[str, BeforeValidator(lambda value: "None" if value in (None, "") else value)] = knob(
        "norm",
        "norm: masks hold 0 and 255, meaning 0 and 1. None (or null): masks hold class numbers.",
        options=("norm", "None"),
        shown=True,
        actions=("train", "evaluate"),
    )
    multi_scale_train: bool = knob(
        True,
        "Train on the predictions at all five scales, weighted by train.segment.weights; off, on the finest.",
        automl=True,
    )
    multi_scale_infer: bool = knob(False, "Average the predictions of all five scales.")
    num_classes: int = knob(
        2,
        "Classes of the mask, no change included.",
        ge=2,
        le=MAX_SIDE,
        schema_range=(2, inf),
        math_cond=">0",
        shown=True,
    )
    img_size: int = knob(
        224,
        "Images and masks are resized to squares of this many pixels; a multiple of 16 (FAN) or 32 (ViT).",
        ge=1,
        le=MAX_SIDE,
        schema_range=(None, None),
        shown=True,
    )
    batch_size: int = knob(
        8,
        "Pairs per batch and GPU.",
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
    shuffle: bool = knob(True, "Shuffle the data.", ignored="training always shuffles, the other actions never do")
    image_folder_name: str = knob("A", "Folder of the earlier images, under root_dir.")
    change_image_folder_name: str = knob("B", "Folder of the later images, under root_dir, with the same file names.")
    list_folder_name: str = knob("list", "Folder of the list files, under root_dir.")
    annotation_folder_name: str = knob("label", "Folder of the masks, under root_dir.")
    augmentation: SegmentAugmentation = section(SegmentAugmentation, "Normalisation and augmentation.")
    train_split: str = knob("train", "List file to train on, without .txt.", shown=True, actions=("train",))
    validation_split: str = knob("val", "List file to validate on, without .txt.", shown=True, actions=("train",))
    test_split: str = knob("test", "List file for evaluate, without .txt.", shown=True, actions=("evaluate",))
    predict_split: str = knob("test", "List file for inference, without .txt.", shown=True, actions=("inference",))
    label_suffix: str = knob(".png", "Suffix of mask files.")
    color_map: dict[str, Colour] | None = knob(
        None, "Colour [R, G, B] of each class number in pictures of the result; null takes the palette of data_name."
    )
    quant_calibration_dataset: CalibrationRoot = section(CalibrationRoot, "Images for static quantization.")
    windows: Windows = section(Windows, "Images larger than the network's input.", schema=False)
    raster: Raster = section(Raster, "How TIFFs and images of more than 8 bits are read.", schema=False)
    outputs: Outputs = section(Outputs, "What evaluate and inference write.", schema=False)
    cache: CacheKind = cache_knob()
    cache_mb: int = cache_mb_knob()

    @field_validator("color_map", mode="before")
    @classmethod
    def _class_numbers_as_text(cls, value: Any) -> Any:
        return ({str(k): v for k, v in value.items()} or None) if isinstance(value, dict) else value or None


class SegmentTrain(Section):
    """``train.segment``: the loss."""

    loss: Literal["ce", "mmiou", "focal", "dice"] = knob(
        "ce",
        "ce: cross entropy of each pixel. mmiou: smallest plus mean soft IoU. focal: cross entropy that counts pixels "
        "the less the surer the network is. dice: soft F1 of the classes in a batch.",
    )
    weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=5, max_length=5)] = knob(
        [0.5, 0.5, 0.5, 0.8, 1.0],
        "Weights of the predictions, coarsest first, for multi_scale_train; the last is the finest.",
    )
    class_weights: list[Annotated[float, Field(ge=0)]] | None = knob(
        None,
        "Weight of each class in losses ce, focal and dice: no change first; null weights all alike.",
        schema=False,
    )
    focal_gamma: float = knob(2.0, "How fast loss focal forgets pixels that are right.", ge=0, schema=False)
