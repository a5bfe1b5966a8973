"""Time case of benchmarks/forecast.py: drawing paths, fitting post-processing to them, applying it.

Kronos-small of seeded weights, 8 series x 40 origins x 30 paths; one series is drawn and its time counted eight times,
for rows are independent. Applied to 8 series x 100 paths.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from kronos_model.evaluation.fit_postprocess import fit_to_returns
from kronos_model.evaluation.metrics import log_returns
from kronos_model.features import CLOSE, FEATURES
from kronos_model.postprocess import NETWORK
from kronos_model.references import REFERENCES
from kronos_model.sampling_config import SamplingConfig

__all__ = ["times"]

SERIES, ORIGINS, SAMPLES, LOOKBACK, HORIZON, SERVED = 8, 40, 30, 400, 48, 100
QUICK = 2, 16, 8, 64, 8, 8
MOVE = 0.01  # standard deviation of one bar's log return
HOUR_MS = 3_600_000
LAST = 100.0

Floats = np.ndarray[Any, np.dtype[np.float64]]


def times(*, quick: bool) -> list[dict[str, Any]]:
    """Seconds of drawing (once), fitting and applying (medians)."""
    series, origins, samples, lookback, horizon, served = (
        QUICK if quick else (SERIES, ORIGINS, SAMPLES, LOOKBACK, HORIZON, SERVED)
    )
    returns, realised, seconds = drawn(quick, origins, samples, lookback, horizon)
    drawing, count = series * seconds, series * origins
    rng = np.random.default_rng(0)
    members = {name: walks(rng, count, samples, horizon) for name in REFERENCES}
    fit = partial(
        fit_to_returns,
        {NETWORK: np.tile(returns, (series, 1, 1)), **members},
        np.tile(realised, (series, 1)),
        np.tile(np.arange(origins, dtype=np.int64) * HOUR_MS * horizon, series),
        sampling=SamplingConfig(samples=samples),
        lookback=lookback,
        interval="1h",
    )
    fitting, fitted = _median_seconds(fit, runs=3)
    applying, _ = _median_seconds(
        partial(fitted.blend, prepared(rng, served, horizon), np.full(SERIES, LAST)), runs=21
    )
    size = f"{series} series x {origins} origins x {samples} paths x {horizon} steps"
    whole = f"{SERIES} series x {served} paths x {horizon} steps, per series"
    share = round(fitting / drawing, 4)
    return [
        {"case": "draw", "what": size, "value": round(drawing, 2), "unit": "s"},
        {"case": "fit", "what": size, "value": round(fitting, 3), "unit": "s", "share_of_drawing": share},
        {"case": "apply", "what": whole, "value": round(1000 * applying / SERIES, 3), "unit": "ms"},
    ]


def drawn(
    quick: bool, origins: int, samples: int, lookback: int, horizon: int
) -> tuple[Floats, Floats, float]:
    """Log returns of the network's paths (N, S, H) at the origins of one series, the realised ones, the seconds."""
    from benchmarks.model_sampling import market, pair
    from kronos_model.forecaster import Forecaster
    from kronos_model.normalise import Normaliser

    features, open_time = market(origins, lookback + horizon)
    network = Forecaster(*pair("tiny" if quick else "small"), Normaliser())
    began = time.perf_counter()
    forecast = network.paths(
        features[:, :lookback],
        open_time[:, :lookback],
        open_time[:, lookback:],
        [f"spot:S{at}" for at in range(origins)],
        config=SamplingConfig(samples=samples),
        seed=1,
    )
    seconds = time.perf_counter() - began
    last = features[:, lookback - 1, CLOSE].astype(np.float64)
    realised = log_returns(features[:, lookback:, CLOSE], last)
    return log_returns(forecast.paths[..., CLOSE], last), realised, seconds


def walks(rng: np.random.Generator, *shape: int) -> Floats:
    """Log returns along random walks, the last axis the steps."""
    return np.asarray(rng.normal(0, MOVE, shape).cumsum(axis=-1))


def prepared(rng: np.random.Generator, samples: int, horizon: int) -> dict[str, np.ndarray]:
    """Paths of bars (B, S, H, F) of every member."""
    return {
        name: np.repeat(
            LAST * np.exp(walks(rng, SERIES, samples, horizon))[..., None], len(FEATURES), -1
        ).astype(np.float32)
        for name in (NETWORK, *REFERENCES)
    }


def _median_seconds(run: Callable[[], Any], *, runs: int) -> tuple[float, Any]:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result
