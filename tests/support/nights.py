"""Small nights: a folder of synthetic klines, and settings that train for seconds."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from exchange.replay import synthetic_market
from storage.candle_files import write_candles
from storage.schema import SeriesKey

__all__ = ["CANDLES", "SERIES", "START_MS", "nested", "quick_settings", "write_klines"]

SERIES = ("spot:BTCUSDT", "um:DOGEUSDT")
START_MS = int(datetime(2024, 7, 1, tzinfo=UTC).timestamp() * 1000)
CANDLES = 700


def write_klines(folder: Path, *, count: int = CANDLES) -> dict[SeriesKey, pl.DataFrame]:
    """Files such as um_DOGEUSDT_1h.parquet; a larger count keeps the earlier candles as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [SeriesKey.parse(name, "1h") for name in SERIES]
    candles = dict(synthetic_market(keys, start_ms=START_MS, count=count, seed=7))
    for key, frame in candles.items():
        write_candles(frame, folder / f"{key.market}_{key.symbol}_{key.interval}.parquet")
    return candles


def quick_settings(klines: Path, **others: Any) -> dict[str, Any]:
    """Recipe demo cut down to seconds."""
    stage = {"epochs": 1, "steps_per_epoch": 12, "batch_size": 16, "validation_windows": 16}
    return {
        "replay": str(klines),
        "dataset.lookback": 24,
        "dataset.horizon": 4,
        **{f"tokenizer.{name}": value for name, value in stage.items()},
        **{f"predictor.{name}": value for name, value in stage.items()},
        "evaluation.origins": 20,
        "evaluation.samples": 4,
        "evaluation.postprocess_origins": 10,
        "evaluation.sampling_origins": 0,
        "evaluation.postprocess": False,  # what is served is then the network as it draws, whatever a cone would do
        "gate.coverage_low": 0.0,  # a dozen steps make no model whose raw fan is wide enough,
        "gate.reference_margin": "",  # nor one that earns a place
        "forecast.samples": 8,
        **others,
    }


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted settings by section, as a form sends them."""
    found: dict[str, Any] = {}
    for path, value in settings.items():
        section, dot, name = path.partition(".")
        value = None if value == "" else value  # what `--set` says by nothing
        if dot:
            found.setdefault(section, {})[name] = value
        else:
            found[path] = value
    return found
