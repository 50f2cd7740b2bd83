"""Random bipartite graphs with given degrees. Imports torch.

The sides are called objects and backgrounds: an edge says that an object is pasted on a background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SWITCHES = 3
"""Switches of the chain that are tried for each edge."""
_REPAIRS = 100
"""So many switches are tried for each edge to mend a graph before another one is begun."""
_BLOCK = 65536


def random_bipartite(
    object_degrees: Sequence[int],
    background_degrees: Sequence[int],
    generator: torch.Generator,
    switches: int = SWITCHES,
) -> list[list[int]]:
    """A random graph without double edges, of all those with these degrees each as likely as any other.

    The ends of the edges are matched at random (the configuration model: conditioned on the outcome having no double
    edge it is uniform; Bollobás 1980). Double edges are mended by switches: two edges o-b, p-c become o-c, p-b where
    that makes no double edge. Mending leaves a bias, which further switches of random pairs of edges take away: they
    are a Markov chain whose stationary distribution is uniform, as proposals are symmetric and any two graphs with the
    same degrees are connected by switches (Ryser 1957). That it mixes in polynomial time was shown where the degrees of
    one side are equal (Kannan, Tetali, Vempala 1999; Miklós, Erdős, Soukup 2013), but by bounds far above what is
    affordable: that few switches are enough, after so good a start, is measured (docs/pairing.md).

    Args:
        object_degrees: n numbers, each at most m; they differ by at most one.
        background_degrees: m numbers, each at most n, with the same sum; they differ by at most one.
        generator: the only source of randomness.
        switches: of the chain, for each edge; at least 0.

    Returns:
        For each background its objects, in random order.
    """
    objects, backgrounds = len(object_degrees), len(background_degrees)
    if 2 * sum(background_degrees) <= objects * backgrounds:
        rows = _sparse(object_degrees, background_degrees, generator, switches)
    else:
        # It is what a sparse one lacks; in a dense one double edges are hard to mend, or cannot be.
        fewer = [backgrounds - degree for degree in object_degrees]
        lacking = _sparse(fewer, [objects - degree for degree in background_degrees], generator, switches)
        rows = [sorted(set(range(objects)) - set(row)) for row in lacking]
    return [[row[place] for place in torch.randperm(len(row), generator=generator).tolist()] for row in rows]


def _sparse(
    object_degrees: Sequence[int], background_degrees: Sequence[int], generator: torch.Generator, switches: int
) -> list[list[int]]:
    """:func:`random_bipartite` where at most half of all pairs are edges."""
    owners = [number for number, degree in enumerate(background_degrees) for _ in range(degree)]
    ends = torch.repeat_interleave(torch.arange(len(object_degrees)), torch.tensor(object_degrees))
    while True:
        objects = ends[torch.randperm(len(ends), generator=generator)].tolist()
        if _mend(objects, owners, background_degrees, generator):
            break
    _mix(objects, owners, len(background_degrees), switches * len(objects), generator)
    found = iter(objects)
    return [[next(found) for _ in range(degree)] for degree in background_degrees]


def _mend(objects: list[int], owners: list[int], degrees: Sequence[int], generator: torch.Generator) -> bool:
    """Switch double edges away, in place; false where that does not succeed."""
    firsts, total = [], 0
    for degree in degrees:
        firsts.append(total)
        total += degree
    tries = 0

    def row(number: int) -> list[int]:
        return objects[firsts[number] : firsts[number] + degrees[number]]

    for slot in range(total):
        while objects[slot] in objects[firsts[owners[slot]] : slot]:
            if tries == _REPAIRS * total:
                return False
            tries += 1
            other = int(torch.randint(total, (), generator=generator))
            mine, theirs = row(owners[slot]), row(owners[other])
            if objects[other] not in mine and objects[slot] not in theirs:
                objects[slot], objects[other] = objects[other], objects[slot]
    return True


def _mix(objects: list[int], owners: list[int], backgrounds: int, tries: int, generator: torch.Generator) -> None:
    """Switch random pairs of edges, in place."""
    held: list[set[int]] = [set() for _ in range(backgrounds)]
    for found, owner in zip(objects, owners, strict=True):
        held[owner].add(found)
    for start in range(0, tries, _BLOCK):
        pairs = torch.randint(len(objects), (min(_BLOCK, tries - start), 2), generator=generator)
        for slot, other in pairs.tolist():
            own, theirs = objects[slot], objects[other]
            mine, its = held[owners[slot]], held[owners[other]]
            if own in its or theirs in mine:
                continue
            objects[slot], objects[other] = theirs, own
            mine.remove(own)
            mine.add(theirs)
            its.remove(theirs)
            its.add(own)
