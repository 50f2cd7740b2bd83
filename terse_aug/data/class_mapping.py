"""Checks that bank, model and policy agree on the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from terse_aug.bank import ForegroundBank, UnknownClassesError
from terse_aug.config import PasteConfig
from terse_aug.models import GivesClassProbabilities, ModelAdapter


def relabelled_bank(
    bank: ForegroundBank, classes: Sequence[str] | Mapping[str, int] | None, with_model: bool
) -> ForegroundBank:
    """The bank with the detector's labels: class names from label 1 on, as torchvision has them, or a mapping.

    To leave categories out, relabel the bank before.

    Raises:
        ValueError: nothing says whether label 0 of the bank is a class.
    """
    if classes is None:
        if not with_model and 0 in bank.categories:
            known = {name: label for label, name in bank.categories.items()}
            raise ValueError(
                f"the bank has label 0 ({bank.categories[0]!r}), which is the background of torchvision's detectors. "
                "Give Terse(model=detector), so that it is known; or classes=[...], the detector's class names from "
                f"label 1 on; or, where labels begin at 0, a mapping: classes={known}"
            )
        return bank
    return bank.relabel(classes) if isinstance(classes, Mapping) else bank.relabel(classes, offset=1)


def relabelled_for_framework(
    bank: ForegroundBank, classes: Sequence[str] | Mapping[str, int], drop_unknown: bool, option: str
) -> ForegroundBank:
    """The bank with the labels of a framework's data set.

    Args:
        bank: the foregrounds.
        classes: names from label 0 on, or a mapping from name to label.
        drop_unknown: whether foregrounds of other classes are left out.
        option: of the framework, that leaves them out.

    Raises:
        ValueError: the bank has other classes that are not left out, or no others; it names the option.
    """
    try:
        return bank.relabel(classes, unknown="drop" if drop_unknown else "error")
    except UnknownClassesError as error:
        raise error.with_option(option) from None


def class_count(model: ModelAdapter | None) -> int | None:
    """Number of classes, where the model gives the probabilities of all of them."""
    return model.label_limit if isinstance(model, GivesClassProbabilities) else None


def check_classes(bank: ForegroundBank, model: ModelAdapter | None, predicted: int | None, paste: PasteConfig) -> None:
    """Refuse classes that do not fit together.

    Args:
        bank: the foregrounds.
        model: the detector, if there is one.
        predicted: classes whose probabilities the policy predicts; ``None`` if it predicts hardness alone.
        paste: settings.

    Raises:
        ValueError: the detector does not have a class of the bank, the policy predicts other classes than the model
            has, or there is no other class for occludees.
    """
    if model is not None and model.label_limit is not None:
        first, limit = model.first_label, model.label_limit
        unknown = {label: name for label, name in bank.categories.items() if not first <= label < limit}
        if unknown:
            raise ValueError(
                f"the bank has labels that the detector does not have: expected labels {first} to {limit - 1}, got "
                f"{unknown}; give Terse(classes=[...]) with the detector's class names"
            )
    available, highest = class_count(model), max(bank.categories, default=0)
    if predicted is not None and (highest >= predicted or predicted != (available or predicted)):
        raise ValueError(
            f"policy: it predicts the probabilities of {predicted} classes, but the model gives those of "
            f"{available or 'none'} and the bank's labels go up to {highest}"
        )
    if paste.occluded_object_probability > 0 and len(bank.categories) < 2:
        raise ValueError(
            "occluded_object_probability: expected a bank with at least two classes, since one occludes the other, "
            f"got {list(bank.categories.values())}"
        )
