"""Windows the pandas-and-pickle way, after the first DOGE fine-tuning project; for comparison only.

Every window is cut out as two DataFrames (stride 1), each split is scaled by the median and MAD of all its
windows laid end to end, and each split is pickled as one list of dictionaries.
"""

import pickle
from pathlib import Path

import pandas as pd

__all__ = ["prepare"]

PRICES = ["open", "high", "low", "close"]
VOLUMES = ["volume", "amount"]


def prepare(candles: pd.DataFrame, folder: Path, *, lookback: int, horizon: int) -> dict[str, int]:
    """Write train.pkl, val.pkl and test.pkl (70/15/15) and return their numbers of windows."""
    frame = candles.copy()
    frame["amount"] = frame["volume"] * frame[PRICES].mean(axis=1)
    for name in ("minute", "hour", "weekday", "day", "month"):
        frame[name] = getattr(frame["timestamps"].dt, name)
    windows = [
        {
            "history": frame.iloc[start : start + lookback].copy(),
            "future": frame.iloc[start + lookback : start + lookback + horizon].copy(),
            "start": start,
        }
        for start in range(len(frame) - lookback - horizon + 1)
    ]
    first, second = int(len(windows) * 0.7), int(len(windows) * (0.7 + 0.15))
    splits = {"train": windows[:first], "val": windows[first:second], "test": windows[second:]}
    scaled = {name: _scaled(part) for name, part in splits.items()}
    for name, part in scaled.items():
        with (folder / f"{name}.pkl").open("wb") as file:
            pickle.dump(part, file)
    return {name: len(part) for name, part in scaled.items()}


def _scaled(windows: list[dict]) -> list[dict]:
    """Each window by the statistics of the whole split, later bars included (the leak of that project)."""
    combined = pd.concat([window["history"] for window in windows])
    groups = []
    for columns in (PRICES, VOLUMES):
        median = combined[columns].median()
        groups.append((columns, median, 1.4826 * combined[columns].sub(median).abs().median()))
    scaled = []
    for window in windows:
        new = {**window, "stats": groups}
        for part in ("history", "future"):
            values = window[part].copy()
            for columns, median, scale in groups:
                values[columns] = ((values[columns] - median) / scale.clip(lower=1e-8)).clip(-5, 5)
            new[part] = values
        scaled.append(new)
    return scaled
