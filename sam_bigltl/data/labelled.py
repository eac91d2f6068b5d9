"""Images with labels: folders with one folder a class, and timm's other datasets.

They are read like every image of this project.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import ImageFolder

from ..errors import InputError
from .images import as_rgb, decode_image, read_image
from .photos import SUFFIXES, is_hidden
from .skipped import Skipped


class Indexed(Protocol):
    """A dataset with an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class LabelledImages(Dataset):
    """(Pillow image RGB, label), or what is wrong with an image that cannot be read.

    Args:
        dataset: of timm or torchvision, with an index. Its own reading is passed over: it gives the next image, and
            that one's label, in place of one that it cannot read.

    Attributes:
        labels: by the name of the class, or None where the dataset does not tell.
    """

    def __init__(self, dataset: Indexed) -> None:
        self.dataset = dataset
        self._reader: Any = getattr(dataset, "reader", None)
        self.labels: dict[str, int] | None = getattr(_files_of(dataset), "class_to_idx", None)
        self._samples: Any = getattr(_files_of(dataset), "samples", None)

    @property
    def classes(self) -> int | None:
        """How many there are, or None where the dataset does not tell."""
        return len(set(self.labels.values())) if self.labels else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int] | Skipped:
        name = f"image {index}"
        try:
            if self._samples is not None and isinstance(self._samples[index][0], str):
                name, label = self._samples[index]
                return Image.fromarray(read_image(name)), label
            if self._reader is not None:
                file, label = self._reader[index]
                with file:
                    return Image.fromarray(decode_image(file.read(), name)), label
            image, label = self.dataset[index]
            return as_rgb(image, name), label
        except (InputError, OSError) as error:
            return Skipped(name, str(error))


class Transformed(Dataset):
    """(normalised image, label) of `LabelledImages`, or `Skipped`."""

    def __init__(self, dataset: Indexed, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Skipped:
        item = self.dataset[index]
        return item if isinstance(item, Skipped) else (self.transform(item[0]), item[1])


def collate(items: list[tuple[Tensor, int] | Skipped]) -> tuple[Tensor, Tensor, list[Skipped]]:
    """Images (B, 3, H, W), labels (B,), and those that cannot be read; B may be 0."""
    skipped = [item for item in items if isinstance(item, Skipped)]
    read = [item for item in items if not isinstance(item, Skipped)]
    images = torch.stack([image for image, _ in read]) if read else torch.empty(0)
    return images, torch.tensor([label for _, label in read], dtype=torch.long), skipped


def open_dataset(name: str, root: Path, split: str, labels: dict[str, int] | None = None) -> LabelledImages:
    """A dataset of timm; `name` "" is a folder with one folder a class.

    Args:
        labels: of the classes, for folders; None numbers those that are there.

    Raises:
        InputError: there is no such dataset, or a folder of a class that `labels` does not know.
    """
    if not name and not root.is_dir():
        raise InputError(f"no folder of images at {root}")
    options: dict[str, Any] = {} if name else {"input_key": ";".join(sorted(SUFFIXES))}
    try:
        dataset = create_dataset(name, root=str(root), split=split, **options)
        found = len(dataset)
    except TypeError:
        found = None
    except Exception as error:  # of whatever reader the name chooses
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"dataset {name or 'folder'} cannot be read from {root} ({reason})") from None
    if found is None or isinstance(dataset, IterableDataset):
        raise InputError(f"dataset {name} can only be read in order: give one with an index, such as a folder")
    if type(files := _files_of(dataset)) in (ReaderImageFolder, ImageFolder):
        _only_classes(files, labels)
    if not len(dataset):
        raise InputError(f"no images in {root}: it needs one folder a class")
    return LabelledImages(dataset)


def _files_of(dataset: Any) -> Any:
    """What knows the dataset's files and classes: timm's reader, or a dataset of torchvision itself."""
    return dataset if getattr(dataset, "reader", None) is None else dataset.reader


def _only_classes(files: Any, labels: dict[str, int] | None) -> None:
    """Leave out images under a hidden name and those in no class's folder, and number the classes anew."""
    names = {index: name for name, index in files.class_to_idx.items()}
    inside = [(path, Path(path).relative_to(files.root), names[label]) for path, label in files.samples]
    inside = [each for each in inside if not is_hidden(each[1])]
    kept = [(path, name) for path, below, name in inside if len(below.parts) > 1]
    if kept and len(kept) < len(inside):
        print(f"left out: {len(inside) - len(kept)} images of {files.root} in no class's folder", file=sys.stderr)
    found = {name for _, name in kept}
    if labels is None:
        labels = {name: index for index, name in enumerate(name for name in files.class_to_idx if name in found)}
    if unknown := sorted(found - labels.keys()):
        raise InputError(f"{files.root} has a class {unknown[0]} that the training images do not have")
    files.class_to_idx, files.samples = labels, [(path, labels[name]) for path, name in kept]
