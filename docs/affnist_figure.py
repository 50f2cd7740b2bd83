"""Makes docs/images/affnist.png: accuracy on AffNIST against the number of synthetic images.

The figures are those of the tables in docs/research-log/affnist.md: mean, lowest and highest of the seeds. Run it from
the root of the repository::

    python docs/affnist_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

LIVE = {
    "random, 5 seeds": [
        (70.9, 69.7, 72.1),
        (84.4, 83.5, 85.0),
        (89.1, 88.4, 90.0),
        (91.3, 90.8, 92.0),
        (92.5, 92.0, 93.1),
    ],
    "critic, 5 seeds": [
        (72.5, 69.0, 73.6),
        (86.6, 85.8, 87.2),
        (91.2, 90.8, 91.5),
        (93.0, 92.4, 93.5),
        (94.2, 93.7, 94.4),
    ],
    "best of 4, 5 seeds": [
        (69.4, 66.3, 72.3),
        (86.3, 85.1, 87.1),
        (91.5, 91.0, 91.9),
        (93.7, 93.1, 94.1),
        (94.7, 94.2, 95.1),
    ],
}
LOCKSTEP = {
    "random, 5 seeds": [
        (61.8, 60.4, 62.7),
        (75.4, 74.7, 76.5),
        (81.4, 80.9, 82.3),
        (84.6, 84.3, 84.8),
        (86.6, 86.0, 87.2),
        (88.1, 87.7, 88.7),
    ],
    "random, only hard images kept, 5 seeds": [
        (63.5, 62.9, 63.9),
        (77.9, 76.9, 78.8),
        (84.4, 83.6, 85.0),
        (87.7, 86.9, 88.4),
        (89.6, 88.5, 90.5),
        (90.9, 90.0, 91.3),
    ],
    "critic, only hard images kept, 5 seeds": [
        (63.8, 62.7, 64.7),
        (78.2, 76.7, 79.0),
        (83.9, 83.3, 84.5),
        (87.2, 86.6, 87.8),
        (89.5, 89.2, 90.0),
        (91.0, 90.5, 91.8),
    ],
    "paper, only hard images kept, 3 seeds": [
        (35.3, 32.5, 38.7),
        (40.7, 38.9, 41.7),
        (42.1, 40.6, 43.8),
        (43.0, 41.9, 44.8),
        (43.6, 42.3, 45.8),
        (44.4, 42.7, 46.6),
    ],
}
STYLES = {"random": ("#737373", "o"), "critic": ("#d95f02", "s"), "best": ("#1b6ca8", "^"), "paper": ("#7b3294", "v")}


def main() -> None:
    """Draw both schedules side by side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    draw(left, LOCKSTEP, [1500 * n for n in range(1, 7)], "Lock-step: six rounds of 1,500 images")
    draw(right, LIVE, [25600 * n for n in range(1, 6)], "Live: fresh composites in every batch")
    out = Path(__file__).parent / "images" / "affnist.png"
    figure.savefig(out, dpi=130)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def draw(axes: plt.Axes, arms: dict[str, list[tuple[float, float, float]]], counts: list[int], title: str) -> None:
    """One schedule: a line for the mean of each arm, a band from its lowest to its highest seed."""
    for name, readings in arms.items():
        color, marker = STYLES[name.replace(",", "").split()[0]]
        mean, low, high = zip(*readings, strict=True)
        kept = name.startswith("random, only")
        axes.plot(counts, mean, color=color, marker=marker, linestyle="--" if kept else "-", label=name, markersize=5)
        axes.fill_between(counts, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("synthetic images")
    axes.set_ylabel("accuracy on AffNIST, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right" if title.startswith("Live") else (0.36, 0.3))


if __name__ == "__main__":
    main()
