"""Objects that a build rejected, kept to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class RejectedSample:
    """A rejected object on its image.

    Attributes:
        image: the file, or its name as its annotation has it.
        caption: where the object is found, for a person.
        box: x, y, width, height in px as annotated, whatever is there.
        segmentation: likewise.
        size: height and width of the image in px as annotated, 0 where it is not.
    """

    image: str | Path
    caption: str
    box: Any = None
    segmentation: Any = None
    size: tuple[int, int] = (0, 0)


@dataclass
class EvenSample(Generic[Item]):
    """Some of many items, evenly spread; at most twice ``wanted`` are ``held``."""

    wanted: int = 12
    held: list[Item] = field(default_factory=list)
    _step: int = 1
    _seen: int = 0

    def add(self, item: Item) -> None:
        """Add an item; it is held if the even spread includes it."""
        if self._seen % self._step == 0:
            self.held.append(item)
        self._seen += 1
        if len(self.held) > 2 * self.wanted:
            self.held, self._step = self.held[::2], 2 * self._step

    def items(self, count: int | None = None) -> Sequence[Item]:
        """At most ``count`` of them, or as many as wanted, in their order."""
        count = min(self.wanted if count is None else count, len(self.held))
        return [self.held[len(self.held) * at // count] for at in range(count)]
