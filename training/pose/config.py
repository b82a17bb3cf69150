"""The part of a recipe that describes pose data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.pose import BOX_PADDING

Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoseAugment(_Part):
    """What is done at random to training people (Newell et al. 2016, section 3.1).

    scale : a person is enlarged or shrunk by up to this share.
    rotation_degrees, rotation_share : turned by up to so many degrees each way; the share of people that are.
    shift : moved by up to this share of the crop's side each way.
    flip : mirror half of the people, left and right joints changing places.
    colour : each colour channel is multiplied by 1 plus or minus up to this share.
    """

    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    rotation_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    flip: bool = True
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.2


class _PoseData(_Part):
    """What all pose data sets share.

    root : the data set's folder; `--data` and the environment variable SIGNET_DATA do the same.
    image_size : side in pixels of the network's input; heatmaps have a quarter of it.
    heatmap_sigma : standard deviation of a target's Gaussian, in cells.
    box_padding : side of the square that is cut out, in terms of the longer side of a person's box.
    augment : see PoseAugment.
    storage : `memory` decodes every person once; `files` for each batch. `auto` takes memory up to 4 GiB.
    workers : processes that decode files; 0 = decode in the training process.
    train_people, validation_people : use the first so many alone, for a quick look; none = all.
    """

    root: Path | None = None
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=4)] = 256
    heatmap_sigma: Annotated[float, Field(gt=0, le=8)] = 1.0
    box_padding: Annotated[float, Field(ge=1, le=4)] = BOX_PADDING
    augment: PoseAugment = PoseAugment()
    storage: Literal["auto", "memory", "files"] = "auto"
    workers: Annotated[int, Field(ge=0, le=256)] = 4
    train_people: Count | None = None
    validation_people: Count | None = None


class LspetData(_PoseData):
    """Leeds Sports Pose, extended and original: `.npz` files of crops, or folders of `images/` and `joints.mat`.

    framing : the square that is cut out is around the `person` (the box of the annotated joints, padded), or the
        whole `picture`.
    """

    name: Literal["lspet"]
    framing: Literal["person", "picture"] = "person"


class MpiiData(_PoseData):
    """MPII Human Pose: JSON lists of people with centre and scale, and a folder of pictures. Paths are in `root`.

    head_boxes : the .mat file of the official measure (`headboxes_src`), beside the validation list's people; where
        it does not exist, a head's size is the distance of upper neck and head top.
    """

    name: Literal["mpii"]
    train_annotations: Path = Path("annot/train.json")
    validation_annotations: Path = Path("annot/valid.json")
    train_images: Path = Path("images")
    validation_images: Path = Path("images")
    head_boxes: Path = Path("annot/gt_valid.mat")


class CocoData(_PoseData):
    """COCO keypoints: the official JSON files and folders of pictures; people by their boxes. Paths are in `root`."""

    name: Literal["coco"]
    train_annotations: Path = Path("annotations/person_keypoints_train2017.json")
    validation_annotations: Path = Path("annotations/person_keypoints_val2017.json")
    train_images: Path = Path("train2017")
    validation_images: Path = Path("val2017")


PoseData = LspetData | MpiiData | CocoData
