"""Where a framework's hook composes: in the data loader's workers, by a thread, or in the training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable

from terse_aug.composer import Composer
from terse_aug.terse import Terse


def thread_composes(
    terse: Terse,
    enabled: bool,
    in_workers: Callable[[Composer], str],
    logger: logging.Logger,
    closes_at: int | None,
) -> bool:
    """Whether a thread is to compose, see :meth:`terse_aug.Terse.ahead`; the log says where composites are made.

    Args:
        terse: after its state was loaded.
        enabled: without it composites are made in the training loop.
        in_workers: lets the data loader's workers compose; the reason if they cannot, else an empty text.
        logger: of the framework.
        closes_at: see :meth:`terse_aug.Terse.composer`.
    """
    if not enabled:
        logger.info("Composites are made in the training loop: composing ahead is switched off.")
        return False
    composer = _composer(terse, closes_at)
    reason = "" if composer is None else in_workers(composer)
    if composer is not None and not reason:
        logger.info("Composites are made in the data loader's workers.")
        return False
    try:
        terse.ahead(())
    except ValueError as error:
        logger.info("Composites are made in the training loop. %s", error)
        return False
    logger.info("Composites are made by a thread, one batch ahead.%s", f" {reason}" if reason else "")
    return True


def _composer(terse: Terse, closes_at: int | None) -> Composer | None:
    try:
        return terse.composer(closes_at)
    except ValueError:  # policy, sampler or robustness needs the training process, or closes_at is unknown
        return None
