"""What is served, in words: on screens, in answers, on cards. Free of torch."""

from collections.abc import Mapping, Sequence

from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.spread import Spread

__all__ = ["BY_REFERENCES", "REFERENCES_MODEL", "adds", "postprocess_in_words"]

REFERENCES_MODEL = "references"
"""What the references' pool is called where a model is named."""
BY_REFERENCES = "by the references: no network has earned a place yet"
_ADDS = "the network adds"
_TOLD = (_ADDS, "the network harms", "what the network adds")  # how a verdict's sentence about it begins


def adds(weights: Mapping[str, float], reasons: Sequence[str] = ()) -> str:
    """What a network adds to the references, in a sentence.

    As the verdict that made it champion says it (`reasons`), or else by what it gives to the pool (`weights`).
    """
    told = next((one for one in reasons if one.startswith(_TOLD)), None)
    if told is not None:
        return told
    share = weights.get(NETWORK, 0.0)
    if not share:
        return f"{_ADDS} nothing yet: every path is one of the references"
    if share == 1:
        return f"{_ADDS} all: no path is one of the references"
    return f"{_ADDS} {_percent(share)} of the paths; the others are the references'"


def postprocess_in_words(known: PostProcess | None) -> tuple[str, ...]:
    """What happens to paths before they are served, a part for each step that does something."""
    if known is None:
        return ()
    parts = []
    if any(share < 1 for share in known.location):
        parts.append(f"{_range(known.location)} of the network's median move is kept")
    if known.weights[0] < 1:
        shares = ", ".join(f"{name} {_percent(share)}" for name, share in known.pool.items() if share)
        parts.append(f"paths are pooled: {shares}")
    if known.spread is not None:
        parts.append(_scaled(known.spread))
    return tuple(parts)


def _scaled(spread: Spread) -> str:
    factors = [factor for row in spread.factors for factor in row]
    return (
        f"the spread of the paths is scaled by {min(factors):.2f} to {max(factors):.2f}, by step and distance from "
        f"the median, so that bands up to {_percent(spread.levels[-1])} cover what they say"
    )


def _range(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return _percent(low) if low == high else f"{100 * low:.0f} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
