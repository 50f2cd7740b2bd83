"""A segmentation branch on few annotated samples of a layered generator, against a U-Net on the same images.

::

    python -m benchmarks.generators --generator RUN --json F
    python -m benchmarks.generators --generator taught --teach 2000 --json F

The masks of the generator's composites stand for annotations and are what is measured with; the branch sees features
of colors only. RUN is a folder of ``terse-aug learn cutter``; ``--teach`` makes one by regression on drawn layers
(:mod:`benchmarks._taught_layers`). 200 held-out samples. Also how well the disagreement of the heads tells bad masks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._taught_layers import teach
from benchmarks._timing import parser, run_in_one_thread, show, surroundings, write_json
from terse_aug.discovery.segmentation import SegmentationNetwork
from terse_aug.generators import (
    AnnotatedSample,
    BranchEnsemble,
    BranchSettings,
    SampleKey,
    Truncation,
    learn_branch,
    uncertainty,
)
from terse_aug.generators.filtering import highest, mode_mask
from terse_aug.generators.layered import CHECKPOINT, LayeredFeatures
from terse_aug.generators.protocol import render_sample, sample_latent
from terse_aug.utils.random import derived_seed, generator_for

_HELD_OUT_FROM = 1_000_000
_SEED_STRIDE = 10_000
_MASK_SHARE = (0.02, 0.98)
_BAD = 0.6


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    run_in_one_thread()
    if args.teach and not (args.generator / CHECKPOINT).exists():
        teach(args.generator, args.teach)
    generator = LayeredFeatures.load(args.generator)
    settings = BranchSettings(
        args.variant, args.width, heads=args.heads, steps=args.steps, learning_rate=args.learning_rate
    )
    truncation = Truncation(args.truncation)
    held_out = _samples(generator, _HELD_OUT_FROM, args.held_out, truncation)
    rows = []
    for seed in args.seeds:
        samples = _samples(generator, seed * _SEED_STRIDE, max(args.samples), truncation)
        for count in args.samples:
            row = _row(generator, samples[:count], held_out, settings, seed, args.unet_steps)
            rows.append(row)
            print({name: round(value, 3) for name, value in row.items() if value is not None}, flush=True)
            content = {
                "command": {name: str(value) for name, value in vars(args).items()},
                "rows": rows,
                "summary": _summary(rows, args.samples),
                **surroundings(),
            }
            write_json(args.json, content)
    _print(content["summary"])


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__, json_required=True)
    made.add_argument("--generator", type=Path, required=True, metavar="RUN", help="folder of a run of learn cutter")
    made.add_argument("--teach", type=int, default=0, metavar="STEPS", help="teach a generator, where there is no RUN")
    made.add_argument("--samples", type=int, nargs="+", default=[5, 10, 20], help="annotated")
    made.add_argument("--held-out", type=int, default=200)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--truncation", type=float, default=0.9)
    made.add_argument("--variant", default="supplement")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--heads", type=int, default=16)
    made.add_argument("--steps", type=int, default=100, help="of each head")
    made.add_argument("--learning-rate", type=float, default=3e-3, help="of each head")
    made.add_argument("--unet-steps", type=int, default=600)
    return made


def _samples(generator: LayeredFeatures, first: int, count: int, truncation: Truncation) -> list[AnnotatedSample]:
    """The first samples from a number on whose masks are neither empty nor full, as an annotator would choose."""
    found: list[AnnotatedSample] = []
    number = first
    while len(found) < count:
        key = SampleKey(0, number, 0, truncation)
        latent = sample_latent(generator, key)
        mask = generator.masks(latent[None])[0].numpy() > 0.5
        if _MASK_SHARE[0] < mask.mean() < _MASK_SHARE[1]:
            found.append(AnnotatedSample(key, latent, mask))
        number += 1
        if number - first > 10 * count:
            raise SystemExit(f"nine of ten masks of {generator.name} are empty or full")
    return found


def _row(
    generator: LayeredFeatures,
    samples: Sequence[AnnotatedSample],
    held_out: Sequence[AnnotatedSample],
    settings: BranchSettings,
    seed: int,
    unet_steps: int,
) -> dict[str, Any]:
    started = time.perf_counter()
    own = BranchSettings(**{**vars(settings), "seed": seed})
    branch = learn_branch(generator, samples, own)
    overlaps, uncertainties = _measured(generator, branch, held_out)
    row: dict[str, Any] = {"seed": seed, "samples": len(samples), "branch": float(overlaps.mean())}
    row |= {"branch, first head": _first_head(generator, branch, held_out), **_filter(overlaps, uncertainties)}
    row["branch seconds"] = time.perf_counter() - started
    for name, augmented in (("U-Net", False), ("U-Net, augmented", True)):
        network = _unet(_images(generator, samples), _masks(samples), unet_steps, seed, augmented)
        row[name] = float(_unet_overlaps(network, _images(generator, held_out), _masks(held_out)).mean())
    return row


def _measured(
    generator: LayeredFeatures, branch: BranchEnsemble, held_out: Sequence[AnnotatedSample]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of the mode of the heads, and their disagreement, of each held-out sample."""
    overlaps, uncertainties = [], []
    for key, latent, true in held_out:
        probabilities = branch.probabilities(render_sample(generator, latent, key), key.label)
        overlaps.append(_iou(mode_mask(probabilities, 0), true))
        uncertainties.append(float(uncertainty(probabilities[:, None])))
    return np.array(overlaps), np.array(uncertainties)


def _first_head(generator: LayeredFeatures, branch: BranchEnsemble, held_out: Sequence[AnnotatedSample]) -> float:
    alone = BranchEnsemble(branch.heads[:1], BranchSettings(), branch.record, [], 1)
    return float(_measured(generator, alone, held_out)[0].mean())


def _filter(overlaps: NDArray[np.float64], uncertainties: NDArray[np.float64]) -> dict[str, float | None]:
    """What dropping the most uncertain tenth does, and how well uncertainty tells bad masks."""
    dropped = np.isin(np.arange(len(overlaps)), list(highest(uncertainties.tolist(), 0.1)))
    ranks = uncertainties.argsort().argsort() + 1.0
    bad = overlaps < _BAD
    pairs = int(bad.sum() * (~bad).sum())
    area = (ranks[bad].sum() - bad.sum() * (bad.sum() + 1) / 2) / pairs if pairs else None
    return {
        "kept": float(overlaps[~dropped].mean()),
        "dropped": float(overlaps[dropped].mean()),
        "bad": int(bad.sum()),
        "AUC": None if area is None else float(area),
        "correlation": float(np.corrcoef(overlaps, uncertainties)[0, 1]),
    }


def _unet(images: Tensor, masks: Tensor, steps: int, seed: int, augmented: bool) -> nn.Module:
    network = SegmentationNetwork(16, derived_seed(seed, "U-Net"))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        rng = generator_for(seed, "U-Net batch", step)
        numbers = torch.randperm(len(images), generator=rng)[:8]
        batch, true = images[numbers], masks[numbers]
        if augmented:
            batch, true = _changed(batch, true, rng)
        loss = functional.binary_cross_entropy_with_logits(network(batch)[:, 0], true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.eval()


def _changed(images: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, scale 0.8 to 1.25, rotation up to 20 degrees, shift up to 10 %, gain and offset of each color channel."""
    count = len(images)
    unit = 2 * torch.rand(5, count, generator=rng) - 1
    size, angle = 1.25 ** unit[0], unit[1] * np.pi / 9
    flip = torch.where(unit[2] > 0, 1.0, -1.0)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    rows = [torch.stack([flip * cos, -sin, 0.2 * unit[3]], 1), torch.stack([flip * sin, cos, 0.2 * unit[4]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    moved_masks = functional.grid_sample(masks[:, None], grid, padding_mode="reflection", align_corners=False)[:, 0]
    color = 2 * torch.rand(2, count, 3, 1, 1, generator=rng) - 1
    return (moved * 1.3 ** color[0] + 0.2 * color[1]).clamp(-1, 1), (moved_masks > 0.5).float()


@torch.no_grad()
def _unet_overlaps(network: nn.Module, images: Tensor, masks: Tensor) -> NDArray[np.float64]:
    found = torch.cat([network(own)[:, 0] > 0 for own in images.split(50)])
    return np.array([_iou(own.numpy(), true.numpy() > 0.5) for own, true in zip(found, masks, strict=True)])


def _images(generator: LayeredFeatures, samples: Sequence[AnnotatedSample]) -> Tensor:
    """As a U-Net takes them: what is written as PNG, float ``[N, 3, S, S]`` in [-1, 1]."""
    images = [render_sample(generator, latent, key).image for key, latent, _ in samples]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _masks(samples: Sequence[AnnotatedSample]) -> Tensor:
    return torch.from_numpy(np.stack([sample.mask for sample in samples])).float()


def _iou(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float((found & true).sum() / max((found | true).sum(), 1))


def _summary(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Mean over the seeds of each measure and number of samples, and the least and the largest of the branch's lead."""
    made = []
    for count in counts:
        own = [row for row in rows if row["samples"] == count]
        if not own:
            continue
        mean = {
            name: float(np.mean(values)) if (values := [row[name] for row in own if row[name] is not None]) else None
            for name in own[0]
            if name not in ("seed", "samples")
        }
        leads = [row["branch"] - max(row["U-Net"], row["U-Net, augmented"]) for row in own]
        made.append({"samples": count, "seeds": len(own), **mean, "lead, least": min(leads), "lead, most": max(leads)})
    return made


def _print(summary: Sequence[dict[str, Any]]) -> None:
    names = [name for name in summary[0] if name not in ("samples", "seeds")]
    rows = [
        [str(own["samples"]), *("-" if own[name] is None else f"{own[name]:.3f}" for name in names)] for own in summary
    ]
    show("mean over the seeds; IoU", ("samples", *names), rows, width=200)


if __name__ == "__main__":
    main()
