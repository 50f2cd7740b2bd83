"""Time that a policy takes in the training thread: composed in the training loop, and ahead in a thread.

``python -m benchmarks.ahead --json F --batch 8 --threads 1 [--detector mobilenet]``

The training step of :mod:`benchmarks.step` with 8-bit images and 64 proposals of an image. A timed call is a loop over
four batches, so that all that the thread does is in the time of its own loop; the first batch of each loop is waited
for. All arms train the same detector with a learning rate of 0.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn

from benchmarks._timing import interleaved, surroundings, write_json
from benchmarks._training_steps import CYCLE, POLICIES, report_steps, step_bank, step_parser
from benchmarks.step import MAKERS, Batch, make_batches
from terse_aug import Terse
from terse_aug.config import Matched, PolicySettings, Random

SETTINGS: dict[str, PolicySettings] = {"random": Random(), "critic": POLICIES["critic_k4"], "matched": Matched()}
_AHEAD = "_ahead"
ARMS = ("none", *(policy + kind for policy in SETTINGS for kind in ("", _AHEAD)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    torch.manual_seed(0)
    model = MAKERS[options.detector](
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=options.side,
        max_size=options.side,
        box_batch_size_per_image=64,
    ).train()
    batches = [
        ([(image * 255).to(torch.uint8) for image in images], targets)
        for images, targets in make_batches(options.side, options.batch)
    ]
    with tempfile.TemporaryDirectory() as folder:
        bank = step_bank(Path(folder))
        terse = {arm: Terse(bank, SETTINGS[arm.removesuffix(_AHEAD)], model=model) for arm in ARMS[1:]}
        loops = {arm: _Loop(model, terse.get(arm), arm) for arm in ARMS}
        arms: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
            arm: (lambda _: batches, loop) for arm, loop in loops.items()
        }
        times = interleaved(arms, CYCLE * options.cycles, options.warmup)
    inside = {arm: 1e3 * loop.seconds_per_image() for arm, loop in loops.items()}
    title = f"Loops of {len(batches)} steps: {options.detector}, {options.side} px, batch {options.batch}"
    content = report_steps(title, times, {"in Terse, ms per image": inside})
    content |= {"ms_in_terse_per_image": inside, "detector": options.detector, "batch": options.batch}
    write_json(options.json, content | surroundings())


class _Loop:
    """A training loop without ``Terse``, with it, or composed ahead."""

    def __init__(self, model: nn.Module, terse: Terse | None, arm: str) -> None:
        self._model, self._terse, self._ahead = model, terse, arm.endswith(_AHEAD)
        self._images = 0

    def __call__(self, batches: Sequence[Batch]) -> None:
        for number, (images, targets) in enumerate(self._composed(batches)):
            torch.manual_seed(number)  # the detector's own sampling is then the same in every arm
            losses = self._model([image.float() / 255 for image in images], list(targets))
            torch.stack(list(losses.values())).sum().backward()
            self._model.zero_grad()
            if self._terse is not None:
                self._terse.step(losses)
            self._images += len(images)

    def seconds_per_image(self) -> float:
        """Inside ``Terse``, in the training thread, by its own clock."""
        return 0.0 if self._terse is None else self._terse.seconds / self._images

    def _composed(self, batches: Sequence[Batch]) -> Iterable[Batch]:
        if self._terse is None:
            return batches
        return self._terse.ahead(batches) if self._ahead else (self._terse(*batch) for batch in batches)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = step_parser(__doc__, batch=8, cycles=1)
    made.add_argument("--detector", choices=sorted(MAKERS), default="mobilenet")
    made.add_argument("--warmup", type=int, default=1, help="loops before the timed ones")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
