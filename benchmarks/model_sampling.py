"""Sampling cases of benchmarks/model.py: Kronos-small, 400 bars of context, 112 of horizon, S paths."""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from benchmarks.harness import Case, peak_mb

__all__ = ["CASES", "forecast_ours", "forecast_peer", "ours", "pair"]

PRESET, CONTEXT, HORIZON = "small", 400, 112
QUICK_PRESET, QUICK_CONTEXT, QUICK_HORIZON = "mini", 64, 16
HOUR_MS = 3_600_000
START_MS = 1_717_200_000_000  # 2024-06-01 00:00 UTC
TEMPERATURE, TOP_P = 1.0, 0.9  # upstream's defaults of predict


def market(series: int, bars: int):
    """Seeded raw bars (B, C, 6) in float32 and their open times (B, C) in ms."""
    import numpy as np

    draw = np.random.default_rng(1)
    close = 100 * np.exp(draw.normal(0, 0.01, (series, bars)).cumsum(axis=1))
    opened = np.concatenate([np.full((series, 1), 100.0), close[:, :-1]], axis=1)
    high, low = np.maximum(opened, close) * 1.002, np.minimum(opened, close) * 0.998
    volume = draw.lognormal(8, 1, (series, bars))
    features = np.stack([opened, high, low, close, volume, volume * close], axis=-1).astype(np.float32)
    return features, np.tile(START_MS + HOUR_MS * np.arange(bars), (series, 1))


def pair(preset: str):
    """Our tokenizer and predictor with seeded weights."""
    import torch

    from kronos_model.config import PRESETS
    from kronos_model.predictor import Kronos
    from kronos_model.tokenizer import KronosTokenizer

    torch.manual_seed(7)
    return KronosTokenizer(PRESETS[preset].tokenizer), Kronos(PRESETS[preset].predictor)


def ours(
    *,
    samples: int,
    series: int = 1,
    device: str = "cpu",
    preset: str = PRESET,
    context: int = CONTEXT,
    horizon: int = HORIZON,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Callable[[int], float]:
    """Forecaster.paths over so many bars, at most `horizon`: the seconds that the call took."""
    from kronos_model.forecaster import Forecaster
    from kronos_model.normalise import Normaliser
    from kronos_model.sampling import SamplingConfig

    features, times = market(series, context + horizon)
    forecaster = Forecaster(*pair(preset), Normaliser(), device=device)
    config = SamplingConfig(temperature=TEMPERATURE, top_p=TOP_P, samples=samples, precision=precision)
    names = [f"spot:S{number}" for number in range(series)]

    def run(bars: int) -> float:
        began = time.perf_counter()
        found = forecaster.paths(
            features[:, :context],
            times[:, :context],
            times[:, context : context + bars],
            names,
            config=config,
            seed=1,
        )
        assert found.paths.shape == (series, samples, bars, 6)
        return time.perf_counter() - began

    return run


def forecast_ours(quick: bool, *, horizon: int = HORIZON, **options) -> dict:
    """Seconds of one call of Forecaster.paths, after a short one that warms up; options as `ours` takes them."""
    import kronos_model.forecaster  # noqa: F401, its memory counts as that of imports

    if quick:
        horizon = QUICK_HORIZON
        options |= {"preset": QUICK_PRESET, "context": QUICK_CONTEXT}
    imports_mb = peak_mb()
    run = ours(horizon=horizon, **options)
    run(2)
    return {"value": run(horizon), "imports_mb": imports_mb}


def forecast_peer(
    quick: bool,
    *,
    samples: int,
    series: int = 1,
    device: str = "cpu",
    preset: str = PRESET,
    context: int = CONTEXT,
    horizon: int = HORIZON,
) -> dict:
    """Seconds of one call of upstream's KronosPredictor, after a short one that warms up."""
    import model as upstream
    import pandas as pd

    from kronos_model.config import PRESETS

    if quick:
        preset, context, horizon = QUICK_PRESET, QUICK_CONTEXT, QUICK_HORIZON
    imports_mb = peak_mb()
    features, times = market(series, context + horizon)
    tokenizer, predictor = pair(preset)
    theirs = upstream.KronosTokenizer(**PRESETS[preset].tokenizer.to_dict()).eval()
    their_predictor = upstream.Kronos(**PRESETS[preset].predictor.to_dict()).eval()
    theirs.load_state_dict(tokenizer.state_dict())
    their_predictor.load_state_dict(predictor.state_dict())
    del tokenizer, predictor
    forecaster = upstream.KronosPredictor(their_predictor, theirs, device=device, max_context=512)
    columns = ["open", "high", "low", "close", "volume", "amount"]
    stamps = [pd.Series(pd.to_datetime(row, unit="ms")) for row in times]

    def run(bars: int) -> float:
        began = time.perf_counter()
        found = forecaster.predict_batch(
            [pd.DataFrame(row[:context], columns=columns) for row in features],
            [row[:context] for row in stamps],
            [row[context : context + bars] for row in stamps],
            pred_len=bars,
            T=TEMPERATURE,
            top_p=TOP_P,
            sample_count=samples,
            verbose=False,
        )
        assert [one.shape for one in found] == [(bars, 6)] * series
        return time.perf_counter() - began

    run(2)
    return {"value": run(horizon), "imports_mb": imports_mb}


def _case(
    samples: int, *, series: int = 1, gpu: bool = False, bfloat16: bool = False, peer_runs: int = 3
) -> Case:
    def side(run: Callable[..., dict]) -> Callable[[bool], dict]:
        return partial(run, samples=samples, series=series, device="cuda" if gpu else "cpu")

    order = ("ours", "peer") * peer_runs + ("ours",) * (3 - peer_runs)
    mine = side(forecast_ours)
    many = f"{series} series, " if series > 1 else ""
    return Case(
        title=f"{many}{samples} paths of {HORIZON} bars after {CONTEXT}, Kronos-{PRESET}{', ours in bf16' * bfloat16}",
        unit="s",
        peer_name="upstream's KronosPredictor",
        ours=partial(mine, precision="bfloat16") if bfloat16 else mine,
        peer=side(forecast_peer),
        order=order,
        gpu=gpu,
    )


CASES = {
    "sample_s1": _case(1),
    "sample_s1_bf16": _case(1, bfloat16=True),
    "sample_s8": _case(8, peer_runs=1),  # upstream takes minutes
    "sample_s30": _case(30, peer_runs=1),
    "sample_s1_gpu": _case(1, gpu=True),
    "sample_s8_gpu": _case(8, gpu=True),
    "sample_s30_gpu": _case(30, gpu=True),
    "sample_b64_s30_gpu": _case(30, series=64, gpu=True, peer_runs=1),
}
