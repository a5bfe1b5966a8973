"""What is asked and answered, as OpenAPI shows it. Times are ms since 1970 UTC; columns are lists of one length."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LATEST_MS = 253_402_300_799_000  # year 9999


def _split(value: Any) -> Any:
    """`0.1,0.9` in an address is a list, as `quantiles=0.1&quantiles=0.9` is."""
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, list):
        return [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]
    return value


_SYMBOL = "BTCUSDT, or um:BTCUSDT where the lake has it of several markets."
_INTERVAL = "Candle interval; may be left out where the lake has one only."
_RECIPE = "Whose champion; left out: the best fit for the series, or the references where none fits."
Symbol = Annotated[str, Field(min_length=1, max_length=60, description=_SYMBOL, examples=["um:DOGEUSDT"])]
IntervalName = Annotated[str, Field(max_length=4, description=_INTERVAL, examples=["1h"])]
# A name, not a path: it stands for a folder of the home.
Recipe = Annotated[str, Field(max_length=60, pattern=r"^\w[\w-]*$", description=_RECIPE, examples=["demo"])]
Level = Annotated[float, Field(gt=0, lt=1)]


class Query(BaseModel):
    """A request; what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SeriesQuery(Query):
    """One series of the lake."""

    symbol: Symbol
    interval: IntervalName | None = None


class CandlesQuery(SeriesQuery):
    """A stretch of candles."""

    limit: int = Field(300, ge=1, description="How many candles, the newest of the range.", examples=[300])
    end_ms: int | None = Field(
        None, ge=0, le=LATEST_MS, description="Only candles that open before this time."
    )


class HistoryQuery(SeriesQuery):
    """Forecasts on record."""

    hours: float = Field(72, gt=0, le=24 * 366, description="How far back their origins may lie, in hours.")


class ScoresQuery(Query):
    """Which recipe."""

    recipe: Recipe | None = None


class ForecastRequest(SeriesQuery):
    """What to forecast, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"symbol": "um:DOGEUSDT", "interval": "1h"},
                {
                    "symbol": "BTCUSDT",
                    "interval": "1h",
                    "horizon": 4,
                    "samples": 200,
                    "quantiles": [0.05, 0.5, 0.95],
                    "seed": 7,
                },
            ]
        }
    )

    recipe: Recipe | None = None
    horizon: int | None = Field(
        None,
        ge=1,
        description="Candles to forecast, at most what the model was trained for; left out: as many.",
    )
    samples: int | None = Field(None, ge=1, description="Paths to draw; left out: the service's default.")
    quantiles: Annotated[list[Level], BeforeValidator(_split)] = Field(
        [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95],
        min_length=1,
        max_length=99,
        description="Levels of the quantiles of the close.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gets the same paths.")
    origin_ms: int | None = Field(
        None,
        ge=0,
        le=LATEST_MS,
        description="Forecast after the candle that opens then, from what was known; left out: the newest.",
    )
    paths: int = Field(0, ge=0, le=100, description="How many of the sampled paths of the close to return.")


class OfSeries(BaseModel):
    """An answer about one series."""

    symbol: str
    interval: str


class Problem(BaseModel):
    """Any answer but 200."""

    error: str = Field(
        examples=["Expected a symbol that the lake has (um:DOGEUSDT), found 'DOGUSDT'; /series lists them."]
    )


class Health(BaseModel):
    """Whether the service does its work."""

    status: Literal["ok", "empty", "degraded", "failing"] = Field(
        description="empty: no champion yet; degraded: a champion could not be loaded, the one before serves; "
        "failing (503): restart it."
    )
    version: str
    uptime_s: float
    models: int
    waiting: int = Field(description="Forecasts waiting or being drawn.")
    token: bool = Field(description="Whether the other addresses want a token.")


class ModelFacts(BaseModel):
    """A champion."""

    model_config = ConfigDict(protected_namespaces=())

    recipe: str
    predictor: str = Field(description="Digest of the predictor's files.")
    tokenizer: str
    night: str
    since: str
    reasons: list[str]
    interval: str
    lookback: int
    horizon: int
    series: list[str] = Field(description="What it was trained on.")
    normaliser: str
    weights: dict[str, float] = Field(
        description="What its network and each of the references give to what is served."
    )
    adds: str = Field(description="What the network adds to the references, in a sentence.")
    previous: str | None = Field(description="Digest of the predictor that it replaced.")
    published: list[dict[str, Any]]
    loaded_ms: int


class Models(BaseModel):
    """The champions that serve, and why others do not."""

    models: list[ModelFacts]
    problems: dict[str, str]


class HoleFacts(BaseModel):
    """Candles that are missing."""

    start_ms: int
    end_ms: int
    candles: int
    status: str
    name: str | None = Field(description="The publicly known outage behind it.")


class SeriesFacts(OfSeries):
    """One series of the lake."""

    rows: int
    first_ms: int
    last_ms: int
    behind: int = Field(description="Candles that have closed since the newest one.")
    source: str = Field(description="Where the newest candle came from.")
    open_holes: int
    outages: int
    repaired: int
    holes: list[HoleFacts] = Field(description="The newest of those that are not repaired.")
    recipes: list[str] = Field(description="Whose champion can forecast it.")


class SeriesList(BaseModel):
    """What there is."""

    now_ms: int
    series: list[SeriesFacts]


class Candles(OfSeries):
    """Closed candles, oldest first."""

    open_ms: list[int]
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]


class Fan(BaseModel):
    """A forecast of the close, candle by candle."""

    open_ms: list[int]
    mean: list[float]
    quantiles: dict[str, list[float]] = Field(description="By level, such as 0.05.")


class HorizonEnd(BaseModel):
    """The end of the horizon."""

    end_ms: int
    median: float
    mean: float
    expected_return: float = Field(description="Mean close of the paths / last close - 1.")
    volatility: float = Field(description="Standard deviation over the paths of ln(close / last close).")
    probability_up: float


class ForecastAnswer(OfSeries):
    """A forecast made now."""

    model: Literal["champion", "references"] = Field(
        description="references: forecasters without a network, which serve where none has earned a place yet."
    )
    recipe: str | None = Field(
        description="Whose champion; null for references that no recipe was named for."
    )
    predictor: str | None = Field(description="Digest of the champion's predictor.")
    tokenizer: str | None
    trained_on_it: bool
    weights: dict[str, float] = Field(
        description="What the network and each of the references give to the paths."
    )
    adds: str = Field(description="What the network adds to the references, in a sentence.")
    postprocessing: list[str] = Field(
        description="What happened to the paths between their drawing and this answer; empty: nothing."
    )
    origin_ms: int = Field(description="Open time of the last candle that the model saw.")
    last_close: float
    horizon: int
    samples: int
    seed: int
    behind: int = Field(description="Candles that have closed since that candle.")
    outlook: HorizonEnd
    fan: Fan
    paths: list[list[float]]


class PastForecast(BaseModel):
    """A forecast on record, and what came."""

    predictor: str
    origin_ms: int
    made_ms: int
    last_close: float
    probability_up: float
    fan: Fan
    came: list[float | None] = Field(description="The closes that came; null where none has yet.")


class History(OfSeries):
    """Forecasts on record, oldest first."""

    forecasts: list[PastForecast]


class LiveScores(OfSeries):
    """How the forecasts on record did, of everyone who ever served the recipe; pooled over their steps."""

    scored: int
    waiting: int = Field(description="Forecasts whose truth has not come yet.")
    estimator: str | None = Field(
        description="What the CRPS of all that were scored was estimated from: paths, as in the leaderboard, or, of "
        "forecasts from before paths were kept, quantiles, which reads 5 to 8 % higher."
    )
    apart: int = Field(description="Scored by the other estimator, and in none of the numbers.")
    crps_bps: float | None
    last_value_bps: float | None = Field(description="The CRPS of saying that the price stays.")
    skill: float | None = Field(description="1 - crps / last value; above 0 is better.")
    skill_low: float | None = Field(
        description="Lower end of the skill's 90 % interval, from a block bootstrap over origins; null where they are "
        "too few for one."
    )
    skill_high: float | None
    against: str = Field(
        description="What that interval says of what was served beside the last value, in words."
    )
    coverage_50: float | None
    coverage_90: float | None


class NightScores(BaseModel):
    """What the last night found, and how the forecasts on record did since."""

    recipe: str
    night: str
    finished_ms: int
    verdict: str
    reasons: list[str]
    leaderboard: list[dict[str, Any]]
    live: list[LiveScores]
    champion: ModelFacts | None


class Forming(BaseModel):
    """The candle that is open, as far as the exchange's stream told."""

    open_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Price(BaseModel):
    """The price now."""

    value: float
    at_ms: int
    live: bool = Field(description="From the exchange's stream; else the last close.")


class Pulse(OfSeries):
    """What changes from minute to minute: ask often."""

    now_ms: int
    last_ms: int = Field(description="Open time of the newest closed candle.")
    next_close_ms: int = Field(description="When the next candle closes.")
    behind: int
    price: Price
    forming: Forming | None
    change_24h: float | None = Field(
        description="As a share of the close 24 hours before the newest one; null where the lake has none."
    )
    following: str = Field(description="off, connecting, streaming, polling or stopped.")
    trouble: str = Field(description="What kept the service from following; empty if nothing did.")
    model: Literal["champion", "references"] | None = Field(
        description="What would forecast; null where that is refused."
    )
    predictor: str | None = Field(description="The champion that would forecast; null where there is none.")
    recipe: str | None
