"""Whether bank, detector and policy speak of the same classes. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from terse_aug.bank import ForegroundBank
from terse_aug.models import GivesClassProbabilities, ModelAdapter
from terse_aug.policies import Policy


def translated(bank: ForegroundBank, classes: Sequence[str] | Mapping[str, int] | None) -> ForegroundBank:
    """The bank with the detector's labels: class names from label 1 on, as torchvision has them, or a mapping.

    To leave categories out, relabel the bank before.
    """
    if classes is None:
        return bank
    return bank.relabel(classes) if isinstance(classes, Mapping) else bank.relabel(classes, offset=1)


def check_distractors(distractors: ForegroundBank, known: Iterable[str]) -> None:
    """Distractors get no label, so they must be of no class that the detector knows.

    Raises:
        ValueError: they have one; the message names it.
    """
    names = {_plain(part) for name in known for part in (name, *name.split("/"))}
    if shared := sorted(name for name in distractors.categories.values() if _plain(name) in names):
        raise ValueError(
            f"distractor_bank: {', '.join(shared[:10])}: the detector knows this class, and without a label it would "
            "be taught that it is background; leave it out with bank.select(categories=[...])"
        )


def _plain(name: str) -> str:
    return name.strip().casefold()


def probability_columns(target: ModelAdapter | None) -> int | None:
    """Number of classes, where the target tells the chances of all of them."""
    return target.label_limit if isinstance(target, GivesClassProbabilities) else None


def check_labels(bank: ForegroundBank, target: ModelAdapter | None) -> None:
    """The detector has to have every class of the bank.

    Raises:
        ValueError: it lacks some; the message names them.
    """
    if target is None or target.label_limit is None:
        return
    first, limit = target.first_label, target.label_limit
    unknown = {label: name for label, name in bank.categories.items() if not first <= label < limit}
    if unknown:
        raise ValueError(
            f"the bank has labels that the detector does not have: expected labels {first} to {limit - 1}, got "
            f"{unknown}; give Terse(classes=[...]) with the detector's class names"
        )


def check_classes(policy: Policy, bank: ForegroundBank, told: int | None) -> None:
    """A policy that was handed over ready made has to fit the bank and what the target tells.

    Raises:
        ValueError: it learns the chances of another number of classes.
    """
    if policy.classes is None:
        return
    highest = max(bank.categories, default=0)
    if not highest < policy.classes or policy.classes != (told or policy.classes):
        raise ValueError(
            f"policy: it learns the chances of {policy.classes} classes, but the target tells those of "
            f"{told or 'none'} and the bank's labels go up to {highest}"
        )
