"""From what the service knows to what it answers. S samples, H horizon."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from exchange.inventory import Inventory
from kronos_model.features import FEATURES
from kronos_model.outlook import outlook_of
from kronos_model.served_words import postprocess_in_words
from service import schemas
from service.candle_cache import CandleCache
from service.champion_models import ChampionModel, ChampionModels
from service.config import ServiceConfig
from service.follow import Follower
from service.sampling_queue import SamplingRequest
from storage.schema import SeriesKey

__all__ = ["facts_of", "forecast_answer", "pulse_of", "series_facts"]

_CLOSE = FEATURES.index("close")
_SHOWN_HOLES = 20
_DAY_MS = 86_400_000


def facts_of(one: ChampionModel) -> schemas.ModelFacts:
    """A champion."""
    champion = one.champion
    return schemas.ModelFacts(
        recipe=one.recipe,
        predictor=champion.predictor_digest,
        tokenizer=champion.tokenizer_digest,
        night=champion.night,
        since=champion.since,
        reasons=list(champion.reasons),
        interval=one.interval.name,
        lookback=one.lookback,
        horizon=one.horizon,
        series=list(one.series),
        normaliser=one.normaliser,
        weights=dict(one.served.weights),
        adds=one.adds,
        previous=champion.previous.predictor_digest if champion.previous else None,
        published=list(champion.published),
        loaded_ms=one.loaded_ms,
    )


def forecast_answer(
    order: SamplingRequest,
    paths: NDArray[np.float32],
    asked: schemas.ForecastRequest,
    *,
    config: ServiceConfig,
    behind: int,
) -> schemas.ForecastAnswer:
    """A forecast out of its paths (S, H, 6)."""
    past, key, levels = order.past, order.past.key, asked.quantiles
    serving = order.serving
    tokenizer, predictor = serving.digests if serving.model == "champion" else (None, None)
    sampling = serving.sampling(config)
    outlook = outlook_of(paths, past.last_close, levels=levels)
    return schemas.ForecastAnswer(
        symbol=key.name,
        interval=key.interval.name,
        model=serving.model,
        recipe=serving.recipe,
        predictor=predictor,
        tokenizer=tokenizer,
        trained_on_it=key.name in serving.series,
        weights=serving.served.shares(sampling),
        adds=serving.adds,
        postprocessing=list(postprocess_in_words(serving.served.applied(sampling))),
        origin_ms=past.origin_ms,
        last_close=past.last_close,
        horizon=len(past.future),
        samples=outlook.samples,
        seed=order.seed,
        behind=behind,
        outlook=schemas.HorizonEnd(
            end_ms=key.interval.close(int(past.future[-1])),
            median=float(outlook.median[-1]),
            mean=float(outlook.mean[-1]),
            expected_return=float(outlook.expected_return[-1]),
            volatility=float(outlook.volatility[-1]),
            probability_up=float(outlook.probability_up[-1]),
        ),
        fan=schemas.Fan(
            open_ms=past.future.tolist(),
            mean=outlook.mean.tolist(),
            quantiles={
                f"{level:g}": row.tolist() for level, row in zip(levels, outlook.quantiles, strict=True)
            },
        ),
        paths=paths[: asked.paths, :, _CLOSE].astype(np.float64).tolist(),
    )


def series_facts(held: Inventory, champion_models: ChampionModels) -> schemas.SeriesFacts:
    """A series with its holes and who can forecast it."""
    return schemas.SeriesFacts(
        symbol=held.key.name,
        interval=held.key.interval.name,
        rows=held.rows,
        first_ms=held.first_ms,
        last_ms=held.last_ms,
        behind=held.behind,
        source=held.last_source,
        open_holes=held.count("open"),
        outages=held.count("outage"),
        repaired=held.repaired,
        holes=[
            schemas.HoleFacts(**asdict(hole), name=held.names.get(hole.start_ms))
            for hole in held.holes[-_SHOWN_HOLES:]
        ],
        recipes=[one.recipe for one in champion_models.models if one.interval == held.key.interval],
    )


def pulse_of(
    key: SeriesKey, market: CandleCache, champion_models: ChampionModels, follower: Follower | None
) -> schemas.Pulse:
    """What is new of a series."""
    seen = follower.of(key) if follower else None
    newest = market.tail(key, 1).row(0, named=True)
    last_ms, now_ms = market.last_ms(key), market.now_ms()
    price = schemas.Price(value=newest["close"], at_ms=key.interval.close(last_ms), live=False)
    forming = None
    if seen and seen.forming and seen.forming.open_ms > last_ms:
        candle = seen.forming
        price = schemas.Price(value=candle.close, at_ms=now_ms, live=True)
        forming = schemas.Forming.model_validate(candle, from_attributes=True)
    serving = champion_models.offered(key)
    return schemas.Pulse(
        symbol=key.name,
        interval=key.interval.name,
        now_ms=now_ms,
        last_ms=last_ms,
        next_close_ms=key.interval.next(key.interval.floor(now_ms)),
        behind=market.behind(key, last_ms),
        price=price,
        forming=forming,
        change_24h=_change(key, market, price.value),
        following=seen.connection if seen else ("connecting" if follower else "off"),
        trouble=follower.trouble if follower else "",
        model=serving.model if serving else None,
        predictor=serving.champion.predictor_digest if isinstance(serving, ChampionModel) else None,
        recipe=serving.recipe if serving else None,
    )


def _change(key: SeriesKey, market: CandleCache, price: float) -> float | None:
    """Against the candle that closed 24 hours before the newest one; None where the lake has none."""
    opened = market.last_ms(key) - _DAY_MS
    before = market.tail(key, 1, end_ms=opened + 1)
    if before.is_empty() or before["open_time"].dt.epoch("ms")[0] != opened:
        return None
    return price / float(before["close"][0]) - 1
