"""A folder of rendered samples that a person annotates: images, their latents, and a mask beside each image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from terse_aug.bank.inputs.images import load_image, read_image
from terse_aug.bank.inputs.mask_files import read_object_numbers
from terse_aug.generators.latents import SampleKey, Truncation
from terse_aug.generators.protocol import FeatureGenerator, check_key, render_sample, sample_latent, short_name
from terse_aug.generators.training import AnnotatedSample

SAMPLES = "samples.json"
MASK_ENDING = "_mask.png"
"""Ends the name of a mask, in place of the image's ``.png``."""

_FORMAT, _VERSION = "terse-aug samples", 1
_MAX_DIFFERENCE = 2.0
"""Mean difference in levels of 255 between an image and what its latents render: other devices round differently."""
_MAX_LOCAL_DIFFERENCE = 8.0
"""The same in any square of 8 px: another sample may differ in a small object alone."""
_SQUARE = 8


class SampleFolder(NamedTuple):
    """What ``samples.json`` says.

    Attributes:
        generator: the text that names it.
        fingerprint: of its weights.
        entries: of each sample its file name, key and latent.
    """

    generator: str
    fingerprint: str
    entries: Sequence[tuple[str, SampleKey, Tensor]]


class AnnotatedFolder(NamedTuple):
    """The samples of a folder that can be learned from.

    Attributes:
        samples: annotated.
        left_out: file name and reason of those whose annotation cannot be used.
        without_mask: number of samples that have no mask.
    """

    samples: list[AnnotatedSample]
    left_out: dict[str, str]
    without_mask: int


def write_samples(
    generator: FeatureGenerator,
    spec: str,
    keys: Sequence[SampleKey],
    folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render samples into a new folder, with their latents in ``samples.json``.

    Args:
        generator: renders them.
        spec: the text that names it, see :func:`load_generator`.
        keys: of the samples, all of different classes or numbers.
        folder: is made, or is empty.
        progress: called with the number of samples done and in total.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: there is nothing to render, or the generator's result cannot be used; of latents that cannot be
            recorded, nothing is written.
    """
    root = Path(folder)
    if not keys:
        raise ValueError("expected at least one sample, got none")
    if len({(key.label, key.number) for key in keys}) < len(keys):
        raise ValueError(
            "expected samples of different classes or numbers; give each seed and truncation its own folder"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} is not an empty folder; choose another one, so that no annotation is lost")
    latents = [_as_numbers(generator, sample_latent(generator, key)) for key in keys]
    root.mkdir(parents=True, exist_ok=True)
    entries = []
    for done, (key, latent) in enumerate(zip(keys, latents, strict=True), 1):
        name = f"class{key.label:04d}-{key.number:06d}.png"
        Image.fromarray(render_sample(generator, torch.from_numpy(latent), key).image).save(root / name)
        entries.append(
            {
                "file": name,
                "class": generator.class_names[key.label],
                "label": key.label,
                "number": key.number,
                "seed": key.seed,
                "truncation": key.truncation.value,
                "truncation_method": key.truncation.method,
                "latent": latent.tolist(),
                "latent_type": latent.dtype.name,
            }
        )
        if progress is not None:
            progress(done, len(keys))
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "generator": spec,
        "name": short_name(generator),
        "fingerprint": generator.fingerprint,
        "samples": entries,
    }
    (root / SAMPLES).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_folder(folder: str | Path) -> SampleFolder:
    """What is recorded of a folder of samples.

    Raises:
        FileNotFoundError: there is no ``samples.json``.
        ValueError: it is damaged.
    """
    path = Path(folder) / SAMPLES
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; make a folder of samples with `terse-aug learn samples`")
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        entries = [_entry(own) for own in content["samples"]]
        return SampleFolder(str(content["generator"]), str(content["fingerprint"]), entries)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: expected what `terse-aug learn samples` writes ({error!r})") from error


def read_annotated(
    folder: str | Path,
    generator: FeatureGenerator,
    progress: Callable[[int, int], None] | None = None,
) -> AnnotatedFolder:
    """The samples that have a mask; each is rendered again from its latent, and compared with its image.

    In masks, black is background and everything else the object, which may fill most of the image.

    Args:
        folder: of :func:`write_samples`, with masks added.
        generator: that rendered it.
        progress: called with the number of samples done and in total.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_folder`; or the generator is another one.
    """
    root, content = Path(folder), read_folder(folder)
    if content.fingerprint != generator.fingerprint:
        raise ValueError(f"{root}: its samples were rendered by another generator than {short_name(generator)}")
    annotated = [own for own in content.entries if _mask_of(root, own[0]).is_file()]
    result = AnnotatedFolder([], {}, len(content.entries) - len(annotated))
    for done, (name, key, latent) in enumerate(annotated, 1):
        try:
            check_key(generator, key)
            image = render_sample(generator, latent, key).image
            _compare(read_image(root / name), image)
            mask = _read_mask(_mask_of(root, name), image.shape[:2])
            result.samples.append(AnnotatedSample(key, latent, mask))
        except (ValueError, OSError) as error:
            result.left_out[name] = str(error)
        if progress is not None:
            progress(done, len(annotated))
    return result


def _as_numbers(generator: FeatureGenerator, latent: Tensor) -> NDArray[Any]:
    """A latent whose type and values JSON can hold, or ``ValueError``."""
    try:
        numbers: NDArray[Any] = latent.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{generator.name}: expected latents of a type that NumPy has, got {latent.dtype}") from error
    if numbers.dtype.kind not in "fiub":
        raise ValueError(f"{generator.name}: expected latents of real numbers, got {latent.dtype}")
    return numbers


def _entry(content: dict[str, Any]) -> tuple[str, SampleKey, Tensor]:
    truncation = Truncation(float(content["truncation"]), content["truncation_method"]).checked()
    key = SampleKey(int(content["label"]), int(content["number"]), int(content["seed"]), truncation)
    latent = np.array(content["latent"], content["latent_type"])
    return Path(content["file"]).name, key, torch.from_numpy(latent)


def _mask_of(root: Path, name: str) -> Path:
    return root / (Path(name).stem + MASK_ENDING)


def _compare(image: NDArray[np.uint8], rendered: NDArray[np.uint8]) -> None:
    if image.shape != rendered.shape:
        raise ValueError(
            f"the image has another size, {_size(image.shape)}, than its latents render, {_size(rendered.shape)}"
        )
    levels = np.abs(image.astype(np.float32) - rendered).mean(2)
    mean, local = float(levels.mean()), float(cv2.blur(levels, (_SQUARE, _SQUARE)).max())
    if mean > _MAX_DIFFERENCE or local > _MAX_LOCAL_DIFFERENCE:
        raise ValueError(
            f"the image is not what its latents render: {mean:.1f} levels of 255 apart in the mean, {local:.1f} in one "
            "place"
        )


def _read_mask(path: Path, size: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = _without_black(path)
    if mask.shape != size:
        raise ValueError(f"the mask has another size, {_size(mask.shape)}, than its image, {_size(size)}")
    if not mask.any():
        raise ValueError("the mask is empty")
    if mask.all():
        raise ValueError("the mask fills the image; draw the background black")
    return mask


def _without_black(path: Path) -> NDArray[np.bool_]:
    image = load_image(path)
    if image.mode == "P":  # its numbers say nothing about its colors
        colors = np.asarray(image.convert("RGBA"))
        bright: NDArray[np.bool_] = (colors[..., :3].max(2) > 127) & (colors[..., 3] > 127)
        return bright
    found: NDArray[np.bool_] = read_object_numbers(path).numbers > 0
    return found


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]} px"
