"""When pasting ends, if it ends before the training does."""

from __future__ import annotations

from terse_aug.training.metrics import Metrics


class Closing:
    """The batch from which on nothing is pasted; not a part of any state.

    Args:
        metrics: of ``Terse``; they count its batches over resumed runs.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._first: int | None = None

    def after(self, batches: int | None) -> None:
        """See :meth:`terse_aug.Terse.close_after`.

        Raises:
            ValueError: fewer than none.
        """
        if batches is not None and batches < 0:
            raise ValueError(f"batches: expected a number of at least 0, or None, got {batches}")
        self._first = None if batches is None else self._metrics.counts["calls"] + batches

    def includes(self, call: int) -> bool:
        """Whether nothing is pasted on a batch, by its number on this rank."""
        return self._first is not None and call >= self._first

    @property
    def open_batches(self) -> int | None:
        """Batches that are still pasted on; ``None`` for all."""
        return None if self._first is None else max(self._first - self._metrics.counts["calls"], 0)

    def checked(self, first_sample: int | None) -> int | None:
        """The number of the first sample that nothing is pasted on, for a composer in the workers.

        Raises:
            ValueError: it is not given, and the workers would go on pasting.
        """
        if self._first is not None and first_sample is None:
            raise ValueError(
                "composer: expected closes_at after close_after, the number of the first sample of this rank that "
                "nothing is pasted on: terse.image_count and the images of the batches that are left"
            )
        return first_sample
