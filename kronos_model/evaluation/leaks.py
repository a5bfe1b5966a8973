"""Two ways in which a backtest lies, found before it is believed: a test range that was trained on, and a competitor
that looks at the future.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from kronos_model.errors import DataError
from kronos_model.evaluation.competitors import Competitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.walk_forward import Forecasts, walk_forward
from kronos_model.windows import WindowDataset

__all__ = ["check_not_trained_on", "find_peekers"]


def check_not_trained_on(dataset: WindowDataset, trained_until_ms: Mapping[str, int]) -> None:
    """Refuse a test range in which a model has trained: times by model, of the last candle it trained on."""
    first = int(dataset.start_ms("test").min()) + dataset.lookback * dataset.interval_ms
    own = dataset.last_ms("train")
    for name, until in {"this dataset's training range": own, **trained_until_ms}.items():
        if until is not None and until >= first:
            raise DataError(
                f"expected a test range after what was trained on, found that {name} reaches to {_utc(until)} and "
                f"the first candle to be forecast opens at {_utc(first)}; set purge=true, or use a later range"
            )


def find_peekers(
    dataset: WindowDataset,
    build: Callable[[WindowDataset], Sequence[Competitor]],
    config: EvaluationConfig,
) -> list[str]:
    """Names of the competitors whose forecasts change when only candles after the origin change.

    `build` makes the competitors from a dataset, as they are made in earnest: first from the real one, then for
    each origin from a copy whose candles after it are others. Costs two forecasts per origin.
    """
    peekers: dict[str, None] = {}
    origins = np.unique(dataset.start_ms("test"))
    origins = origins[np.linspace(0, len(origins) - 1, min(config.origins, len(origins))).round().astype(int)]
    for start in origins.tolist():
        known_until = start + (dataset.lookback - 1) * dataset.interval_ms
        only = dataset.at("test", start)
        before, after = (
            _forecasts(one, build(one), config) for one in (only, only.with_other_future(known_until))
        )
        for model in before:
            if not np.array_equal(before[model], after[model]):
                peekers[model] = None
    return list(peekers)


def _forecasts(
    dataset: WindowDataset, competitors: Sequence[Competitor], config: EvaluationConfig
) -> dict[str, np.ndarray]:
    kept: list[Forecasts] = []
    walk_forward(dataset, competitors, config, keep=lambda batch, forecasts: kept.append(forecasts))
    return {
        model: np.concatenate([one.quantiles[at] for one in kept]) for at, model in enumerate(kept[0].models)
    }


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
