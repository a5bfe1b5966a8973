"""A linear pool of whole paths: how many each member gives, and how they are laid side by side.

A path comes from one member for its whole horizon, so the steps of a path stay joint.
Shapes: B series, S sample paths, H steps, F=6 features.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import ModelError

__all__ = ["deal", "equal", "member_of", "pooled"]

Real = TypeVar("Real", bound=np.floating[Any])


def equal(names: tuple[str, ...]) -> dict[str, float]:
    """The weights of a pool without parameters."""
    return dict.fromkeys(names, 1 / len(names))


def deal(weights: Mapping[str, float], samples: int) -> dict[str, int]:
    """How many of S paths each member gives: by largest remainders, of equal ones the first; they sum to S."""
    shares = {name: weight * samples for name, weight in weights.items()}
    dealt = {name: math.floor(share + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: dealt[name] - round(shares[name], 9))
    for name in by_remainder[: samples - sum(dealt.values())]:
        dealt[name] += 1
    return dealt


def pooled(paths: Mapping[str, NDArray[Real]], dealt: Mapping[str, int]) -> NDArray[Real]:
    """The first paths (B, S, ...) of each member, as many as were dealt to it, taking turns.

    So the first paths of a pool are about as mixed as all of them, whoever looks at a few.
    """
    for name, wanted in dealt.items():
        found = paths[name].shape[1] if name in paths else 0
        if found < wanted:
            raise ModelError(f"expected {wanted} paths of {name} for the pool, found {found}; draw as many")
    joined = np.concatenate([paths[name][:, :count] for name, count in dealt.items() if count], axis=1)
    return joined[:, _turns(dealt)]


def member_of(dealt: Mapping[str, int]) -> NDArray[np.int64]:
    """Of each path of the pool (S,), which member it is from, by its place among the members."""
    members = np.repeat(np.arange(len(dealt)), list(dealt.values()))
    return np.asarray(members[_turns(dealt)])


def _turns(dealt: Mapping[str, int]) -> NDArray[np.int64]:
    """In which order paths that lie member by member are taken."""
    counts = [count for count in dealt.values() if count]
    turns = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.argsort(turns, kind="stable")
