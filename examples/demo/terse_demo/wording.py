"""Sentences about the results of a run; each follows from the numbers, whichever way they came out."""

from terse_demo.results import Results, cost, diversity, final

CLOSE = 1.5
"""AP; arms that differ by less are called equal."""
CLOSE_MISSED = 3.0
"""Percentage points of missed objects; policies that differ by less are called equal."""
COLLAPSED = 0.5
"""Diversity below this is called a collapse."""


def headline(results: Results) -> str:
    """The outcome in one line."""
    critic, random, none = (final(results, arm) for arm in ("critic", "random", "none"))
    words = ("came out ahead", "did not win", "ended level with the best of the others")
    outcome = _compare(critic - max(random, none), CLOSE, *words)
    return f"The learned policy {outcome}: critic {critic:.1f} AP, random {random:.1f}, no pasting {none:.1f}"


def paragraphs(results: Results) -> list[str]:
    """What the run shows."""
    return [
        f"{pasting(results)} {learning(results)} This is a single run: two seeds of the same arm may end several AP "
        "apart, so repeat it with another --seed before you trust a small difference.",
        f"{hardness(results)} {std_ratio(results)} {price(results)}",
    ]


def pasting(results: Results) -> str:
    """What random pasting changed."""
    gain = final(results, "random") - final(results, "none")
    gained, lost = f"gained {gain:.1f} AP over no pasting", f"lost {-gain:.1f} AP against no pasting"
    return f"Random pasting {_compare(gain, CLOSE, gained, lost, f'made no difference ({gain:+.1f} AP)')}."


def learning(results: Results) -> str:
    """What the learned policy changed against random pasting."""
    gain = final(results, "critic") - final(results, "random")
    helped = f"ended {gain:.1f} AP above random pasting"
    hurt = f"did not help here: it ended {-gain:.1f} AP below random pasting"
    level = f"made no difference to that ({gain:+.1f} AP)"
    return f"The learned policy (critic) {_compare(gain, CLOSE, helped, hurt, level)}."


def hardness(results: Results) -> str:
    """Whether the learned policy's pastes are harder than random ones, for the same detector and foregrounds."""
    measurements = results["arms"]["critic"]["measurements"]
    critic, random = (
        sum(one["missed"][policy] for one in measurements) / len(measurements) for policy in ("critic", "random")
    )
    words = ("harder for the detector than", "easier for the detector than", "about as hard for the detector as")
    return (
        f"The learned policy's pastes are {_compare(critic - random, CLOSE_MISSED, *words)} random ones: averaged over "
        f"training, the detector missed {critic:.0f} % of them, and {random:.0f} % of the same foregrounds placed at "
        "random."
    )


def std_ratio(results: Results) -> str:
    """Whether the learned transforms are still diverse."""
    kept = 100 * diversity(results, "critic")
    state = "have begun to collapse" if kept < 100 * COLLAPSED else "stayed diverse"
    return f"Its transforms {state}: their standard deviation is {kept:.0f} % of that of random ones."


def price(results: Results) -> str:
    """How much longer a step takes than without pasting."""
    base = cost(results, "none")
    random, critic = (_more(100 * (cost(results, arm) / base - 1)) for arm in ("random", "critic"))
    return (
        f"Compared with no pasting, a training step took {random} CPU time with random pasting and {critic} with the "
        "learned policy; with a detector of usual size the relative cost is smaller."
    )


def _compare(gain: float, close: float, above: str, below: str, level: str) -> str:
    return above if gain > close else below if gain < -close else level


def _more(per_cent: float) -> str:
    return f"{abs(per_cent):.0f} % {'less' if per_cent < 0 else 'more'}"
