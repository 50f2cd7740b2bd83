"""Random bipartite graphs with given degrees. An edge means that an object is pasted on a background."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SWITCHES = 3
"""Switches tried for each edge after the repair."""
_REPAIR_TRIES = 100
"""Switches tried for each edge to repair a graph before another one is drawn."""
_BLOCK = 65536


def random_bipartite(
    object_degrees: Sequence[int],
    background_degrees: Sequence[int],
    generator: torch.Generator,
    switches: int = SWITCHES,
) -> list[list[int]]:
    """A random graph without double edges, uniform over all graphs with these degrees.

    The ends of the edges are matched at random (the configuration model: conditioned on the outcome having no double
    edge it is uniform; Bollobás 1980). Double edges are repaired by switches: two edges o-b, p-c become o-c, p-b where
    that makes no double edge. The bias that this leaves is removed by further switches of random pairs of edges: they
    are a Markov chain whose stationary distribution is uniform, as proposals are symmetric and any two graphs with the
    same degrees are connected by switches (Ryser 1957). That it mixes in polynomial time was shown where the degrees of
    one side are equal (Kannan, Tetali, Vempala 1999; Miklós, Erdős, Soukup 2013), but by bounds far above what is
    affordable: that few switches are enough, after so good a start, is measured (docs/pairing.md).

    Args:
        object_degrees: n numbers, each at most m; they differ by at most one.
        background_degrees: m numbers, each at most n, with the same sum; they differ by at most one.
        generator: the only source of randomness.
        switches: tried for each edge after the repair; at least 0.

    Returns:
        For each background its objects, in random order.
    """
    objects, backgrounds = len(object_degrees), len(background_degrees)
    if 2 * sum(background_degrees) <= objects * backgrounds:
        rows = _sparse(object_degrees, background_degrees, generator, switches)
    else:
        # The complement is sparse; double edges of a dense graph are hard or impossible to repair.
        fewer = [backgrounds - degree for degree in object_degrees]
        missing = _sparse(fewer, [objects - degree for degree in background_degrees], generator, switches)
        rows = [sorted(set(range(objects)) - set(row)) for row in missing]
    return [[row[place] for place in torch.randperm(len(row), generator=generator).tolist()] for row in rows]


def _sparse(
    object_degrees: Sequence[int], background_degrees: Sequence[int], generator: torch.Generator, switches: int
) -> list[list[int]]:
    """:func:`random_bipartite` where at most half of all pairs are edges."""
    owners = [number for number, degree in enumerate(background_degrees) for _ in range(degree)]
    ends = torch.repeat_interleave(torch.arange(len(object_degrees)), torch.tensor(object_degrees))
    while True:
        objects = ends[torch.randperm(len(ends), generator=generator)].tolist()
        if _repair(objects, owners, background_degrees, generator):
            break
    _switch_pairs(objects, owners, len(background_degrees), switches * len(objects), generator)
    ordered = iter(objects)
    return [[next(ordered) for _ in range(degree)] for degree in background_degrees]


def _repair(objects: list[int], owners: list[int], degrees: Sequence[int], generator: torch.Generator) -> bool:
    """Switch double edges away, in place; false where that does not succeed."""
    starts, total = [], 0
    for degree in degrees:
        starts.append(total)
        total += degree
    tries = 0

    def row(number: int) -> list[int]:
        return objects[starts[number] : starts[number] + degrees[number]]

    for edge in range(total):
        while objects[edge] in objects[starts[owners[edge]] : edge]:
            if tries == _REPAIR_TRIES * total:
                return False
            tries += 1
            other = int(torch.randint(total, (), generator=generator))
            if objects[other] not in row(owners[edge]) and objects[edge] not in row(owners[other]):
                objects[edge], objects[other] = objects[other], objects[edge]
    return True


def _switch_pairs(
    objects: list[int], owners: list[int], backgrounds: int, tries: int, generator: torch.Generator
) -> None:
    """Switch random pairs of edges, in place."""
    rows: list[set[int]] = [set() for _ in range(backgrounds)]
    for number, owner in zip(objects, owners, strict=True):
        rows[owner].add(number)
    for start in range(0, tries, _BLOCK):
        pairs = torch.randint(len(objects), (min(_BLOCK, tries - start), 2), generator=generator)
        for first, second in pairs.tolist():
            one, two = objects[first], objects[second]
            row, other = rows[owners[first]], rows[owners[second]]
            if one in other or two in row:
                continue
            objects[first], objects[second] = two, one
            row.remove(one)
            row.add(two)
            other.remove(two)
            other.add(one)
