"""Where the feedback that policy and sampler learn from comes from, in words for the log."""

from __future__ import annotations

from collections.abc import Mapping

from terse_aug.models import ModelAdapter, RecordsTrainingForward
from terse_aug.policies import Policy
from terse_aug.samplers import Sampler


def why_not_recorded(model: ModelAdapter | None) -> str | None:
    """Why the training forward of a model cannot be recorded; ``None`` if it can."""
    if model is None:
        return "there is no model"
    name = type(getattr(model, "model", model)).__name__
    if not isinstance(model, RecordsTrainingForward):
        return f"{type(model).__name__} does not record the training forward"
    try:
        recorder = model.record_forward()
    except Exception as error:
        return reason_of(error)
    if recorder is None:
        return f"the training forward of {name} is not recorded"
    recorder.close()
    return None


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


def describe_feedback(
    model: ModelAdapter | None, policy: Policy, sampler: Sampler, counts: Mapping[str, int], not_recorded: str | None
) -> list[str]:
    """Sources and costs, one line for each kind of feedback that is needed.

    Args:
        model: the detector, if there is one.
        policy: in use.
        sampler: in use.
        counts: of the metrics.
        not_recorded: see :func:`why_not_recorded`.
    """
    lines = []
    if policy.needs_model:
        lines.append("loss of candidates: from forwards of the detector in every iteration")
    if policy.learns and policy.learns_from == "gradient":
        every = _every(policy.update_interval)
        lines.append(f"gradient: from the training's own backward {every}, no extra forward or backward")
    by_policy = policy.learns and policy.learns_from == "hardness"
    if not (by_policy or sampler.learns):
        return lines
    if model is None:
        lines.append("hardness: supplied by observe(), no extra forward")
    elif not_recorded is None and not counts["hooks_failed"]:
        lines.append("hardness: recorded from the training forward, no extra forward")
    elif counts["feedback_failed"] > counts["hooks_failed"]:
        lines.append("hardness: not measured, because an extra forward has failed in the run that this one resumes")
    else:
        every = _every(policy.update_interval if by_policy else sampler.update_interval)
        why = not_recorded or "it could not be recorded in the run that this one resumes"
        lines.append(f"hardness: from an extra forward of the images with pastes {every}, because {why}")
    return lines


def _every(interval: int) -> str:
    return "in every iteration" if interval == 1 else f"every {interval} iterations"
