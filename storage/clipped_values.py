"""What a manifest says of values beyond the normaliser's clip, in words: a model neither sees nor says them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["LARGEST_SHARE", "WARNED_SHARE", "clipping_warnings", "too_much_clipped"]

WARNED_SHARE = 0.01
"""Share of a series' prices beyond the clip, in any split, above which a reader is told."""
LARGEST_SHARE = 0.05
"""Share in the test split above which no model of this dataset may be promoted."""


def clipping_warnings(manifest: Mapping[str, Any]) -> list[str]:
    """One sentence per series whose prices are cut too often."""
    return [
        f"{name}: {_percent(found)} of its prices lie beyond the clip of {manifest['normaliser']['clip']:g}, where the "
        f"model can neither see nor forecast them; {_remedy(manifest['normaliser'])}."
        for name, found in _above(manifest["series"], WARNED_SHARE)
    ]


def too_much_clipped(manifest: Mapping[str, Any]) -> list[str]:
    """One sentence per series whose prices in the test split are cut so often that no promotion may follow.

    Datasets that were made before shares were measured say nothing and forbid nothing.
    """
    return [
        f"{name}: {100 * found['test']:.1f} % of its prices in the test range lie beyond the clip of "
        f"{manifest['normaliser']['clip']:g}, at most {100 * LARGEST_SHARE:g} % may for a promotion; "
        f"{_remedy(manifest['normaliser'])}"
        for name, found in _above(manifest["series"], LARGEST_SHARE)
        if "test" in found
    ]


def _above(series: Sequence[Mapping[str, Any]], share: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and shares by split of each series that is above, the splits that are above alone."""
    for one in series:
        prices = {split: shares["prices"] for split, shares in one.get("clipped", {}).items()}
        if found := {split: value for split, value in prices.items() if value > share}:
            yield one["key"], found


def _percent(shares: Mapping[str, float]) -> str:
    return " and ".join(f"{100 * share:.1f} % ({split})" for split, share in shares.items())


def _remedy(normaliser: Mapping[str, Any]) -> str:
    if normaliser["kind"] == "global_robust":
        return "set dataset.normaliser to window_zscore, or raise dataset.clip"
    return "raise dataset.lookback or dataset.clip, or forecast a shorter horizon"
