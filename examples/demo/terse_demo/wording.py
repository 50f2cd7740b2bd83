"""Says in words what the figures of a run say, whichever way they came out. Nothing is said that they do not say."""

from terse_demo.results import Results, cost, diversity, final

CLOSE = 1.0
"""AP; arms that differ by less are called equal."""
CLOSE_MISSED = 3.0
"""Percentage points; likewise for shares of missed objects."""
COLLAPSED = 0.5
"""Diversity below this is called a collapse."""


def headline(results: Results) -> str:
    """The outcome in one line."""
    learned, random, none = (final(results, arm) for arm in ("adversarial", "random", "none"))
    figures = f"{learned:.1f} AP, random {random:.1f}, no pasting {none:.1f}"
    gap = learned - max(random, none)
    if gap > CLOSE:
        return f"Learned pasting came out ahead: {figures}"
    if gap < -CLOSE:
        return f"Learned pasting did not win: {figures}"
    return f"Learned pasting ended level with the best of the others: {figures}"


def paragraphs(results: Results) -> list[str]:
    """What the run shows, in plain sentences."""
    return [
        f"{pasting(results)} {learning(results)} One run is one draw: two seeds of the same arm may end several AP "
        "apart, so repeat it with another --seed before you believe a small difference.",
        f"{hardness(results)} {spread(results)} {price(results)}",
    ]


def pasting(results: Results) -> str:
    """What random pasting did."""
    gain = final(results, "random") - final(results, "none")
    if gain > CLOSE:
        return f"Pasting at random was worth {gain:.1f} AP over not pasting."
    if gain < -CLOSE:
        return f"Pasting at random cost {-gain:.1f} AP against not pasting."
    return f"Pasting at random made no difference ({gain:+.1f} AP)."


def learning(results: Results) -> str:
    """What learning where to paste did, against random pasting."""
    gain = final(results, "adversarial") - final(results, "random")
    if gain > CLOSE:
        return f"Learning where to paste ended {gain:.1f} AP above random pasting."
    if gain < -CLOSE:
        return f"Learning where to paste did not help here: it ended {-gain:.1f} AP below random pasting."
    return f"Learning where to paste made no difference to that ({gain:+.1f} AP)."


def hardness(results: Results) -> str:
    """Whether what the policy proposes is harder than random, for the same detector and the same cut-outs."""
    measurements = results["arms"]["adversarial"]["measurements"]
    learned, random = (
        sum(one["missed"][policy] for one in measurements) / len(measurements) for policy in ("adversarial", "random")
    )
    figures = f"on average over training it missed {learned:.0f} % of them, and {random:.0f} % of the same objects"
    if learned - random > CLOSE_MISSED:
        start = "The learned policy's objects are harder for the detector:"
    elif random - learned > CLOSE_MISSED:
        start = "The learned policy's objects are easier for the detector:"
    else:
        start = "The learned policy's objects are about as hard for the detector as random ones:"
    return f"{start} {figures} placed at random."


def spread(results: Results) -> str:
    """Whether the learned transforms are still diverse."""
    kept = diversity(results, "adversarial")
    if kept < COLLAPSED:
        return f"Its transforms have begun to collapse: their spread is {100 * kept:.0f} % of that of random ones."
    return f"Its transforms stayed diverse: their spread is {100 * kept:.0f} % of that of random ones."


def price(results: Results) -> str:
    """What a step costs more than without pasting."""
    base = cost(results, "none")
    random, learned = (_more(100 * (cost(results, arm) / base - 1)) for arm in ("random", "adversarial"))
    return (
        f"Against no pasting a training step took {random} CPU time with random and {learned} with learned pasting; "
        "beside so small a detector that weighs more than beside a real one."
    )


def _more(per_cent: float) -> str:
    return f"{abs(per_cent):.0f} % {'less' if per_cent < 0 else 'more'}"
