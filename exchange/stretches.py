"""Stretches of time: candles that open in [start, end), in ms. What is left of some, what two share."""

from collections.abc import Iterable, Sequence

__all__ = ["Stretch", "joined", "shared", "without"]

Stretch = tuple[int, int]


def without(stretches: Iterable[Stretch], known: Iterable[Stretch]) -> list[Stretch]:
    """The stretches less the known ones, in order."""
    left: list[Stretch] = []
    known = sorted(known)
    for start, end in stretches:
        for known_start, known_end in known:
            if known_end <= start or end <= known_start:
                continue
            if start < known_start:
                left.append((start, known_start))
            start = known_end
        if start < end:
            left.append((start, end))
    return left


def shared(stretches: Iterable[Stretch], within: Stretch) -> list[Stretch]:
    """The parts of the stretches that lie within another."""
    cut = ((max(start, within[0]), min(end, within[1])) for start, end in stretches)
    return [(start, end) for start, end in cut if start < end]


def joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The same time in as few stretches as there are, in order."""
    whole: list[Stretch] = []
    for start, end in sorted(stretches):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((start, end))
    return whole
