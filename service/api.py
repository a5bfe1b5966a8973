"""The application: routes, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from kronos_model.errors import DataError
from kronos_model.evaluation.stored_scores import score_stored
from kronos_model.hub import check_horizon
from service import responses, schemas, track_record
from service.candle_cache import CandleCache
from service.champion_models import ChampionModels
from service.config import ServiceConfig
from service.errors import Refused
from service.follow import Follower, wall_ms
from service.middleware import Guard
from service.prometheus_metrics import Metrics
from service.sampling_queue import SamplingQueue, SamplingRequest
from storage.errors import StorageError
from storage.layout import Home
from storage.scoreboard import Scoreboard

__all__ = ["Service", "application"]

logger = logging.getLogger(__name__)

WEB = Path(__file__).resolve().parent / "web"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": schemas.Problem,
        "description": "The request cannot be answered; the sentence says why.",
    },
    "5XX": {
        "model": schemas.Problem,
        "description": "The service cannot answer now; Retry-After says when to ask again.",
    },
}


class Service:
    """What the routes use. `living` starts and stops it."""

    def __init__(
        self,
        home: Home,
        config: ServiceConfig,
        token: str | None,
        follower: Follower | None,
        now_ms: Callable[[], int],
    ) -> None:
        self.home, self.config, self.token, self.follower = home, config, token, follower
        self.watch = Metrics()
        self.champion_models = ChampionModels(home, config.recipes, loaded=self.watch.loaded)
        self.market = CandleCache(home, now_ms=follower.now_ms if follower else now_ms)
        self.scoreboard = Scoreboard(home, score_stored)
        self.sampler = SamplingQueue(config, self.watch)
        self.began = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def living(self, app: FastAPI) -> AsyncIterator[None]:
        """The models loaded, the sampler drawing, the watcher watching."""
        await run_in_threadpool(self.champion_models.refresh)
        self._tasks = [
            asyncio.create_task(_lasting(work)) for work in (self.sampler.run(), self._watch_models())
        ]
        if self.follower:
            self.follower.start()
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self.follower:
                await run_in_threadpool(self.follower.stop)

    async def _watch_models(self) -> None:
        while True:
            await asyncio.sleep(self.config.watch_s)
            await run_in_threadpool(self.champion_models.refresh)

    def health(self) -> schemas.Health:
        """Whether everything that should run runs."""
        dead = any(task.done() for task in self._tasks) or (self.follower and not self.follower.alive)
        models, problems = len(self.champion_models.models), self.champion_models.problems
        return schemas.Health(
            status="failing" if dead else "degraded" if problems else "ok" if models else "empty",
            version=version("kronos-nightly"),
            uptime_s=round(time.monotonic() - self.began, 1),
            models=models,
            waiting=self.sampler.waiting,
            token=self.token is not None,
        )

    def order(self, asked: schemas.ForecastRequest) -> SamplingRequest:
        """What a request wants drawn. Raises Refused where it is too much, or where something is missing."""
        key = self.market.resolve(asked.symbol, asked.interval)
        served = self.champion_models.choose(key, asked.recipe)
        horizon, samples = asked.horizon or served.horizon, asked.samples or self.config.sampling.samples
        for name, value, most in (
            ("horizon", horizon, self.config.max_horizon),
            ("samples", samples, self.config.max_samples),
            ("horizon times samples", horizon * samples, self.config.max_points),
        ):
            if value > most:
                raise Refused(422, f"Expected {name} of at most {most:,}, found {value:,}; ask for less.")
        try:
            check_horizon(horizon, served.horizon)
        except DataError as error:
            raise Refused(422, str(error)) from error
        past = self.market.past(key, lookback=served.lookback, horizon=horizon, origin_ms=asked.origin_ms)
        return SamplingRequest(served, past, samples, asked.seed)

    async def forecast(self, asked: schemas.ForecastRequest) -> schemas.ForecastAnswer:
        """Draw, or take what was drawn for the same question."""
        order = await run_in_threadpool(self.order, asked)
        paths = await self.sampler.paths(order)
        behind = self.market.behind(order.past.key, order.past.origin_ms)
        calibrated = order.served.calibrated(self.config)
        return responses.forecast_answer(order, paths, asked, calibrated=calibrated, behind=behind)

    def candles(self, asked: schemas.CandlesQuery) -> schemas.Candles:
        """Columns of closed candles."""
        if asked.limit > self.config.max_candles:
            raise Refused(
                422,
                f"Expected a limit of at most {self.config.max_candles:,}, found {asked.limit:,}; page by end_ms.",
            )
        key = self.market.resolve(asked.symbol, asked.interval)
        frame = self.market.tail(key, asked.limit, end_ms=asked.end_ms)
        columns = {name: frame[name].to_list() for name in ("open", "high", "low", "close", "volume")}
        opened = frame["open_time"].dt.epoch("ms").to_list()
        return schemas.Candles(symbol=key.name, interval=key.interval.name, open_ms=opened, **columns)


def application(
    home: Home,
    config: ServiceConfig | None = None,
    *,
    token: str | None = None,
    follower: Follower | None = None,
    now_ms: Callable[[], int] = wall_ms,
) -> FastAPI:
    """The service over a home; with a token, only who sends it is answered."""
    config = config or ServiceConfig()
    service = Service(home, config, token, follower, now_ms)
    app = FastAPI(
        title="Kronos Nightly",
        version=version("kronos-nightly"),
        description='Forecasts of candles by the model that last passed its gate. Errors are `{"error": sentence}`.',
        lifespan=service.living,
        docs_url=None,  # its pages come from another host
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, config=config, watch=service.watch, token=token)
    _answers_to_errors(app)
    _service_routes(app, service)
    _market_routes(app, service)
    _page(app)
    return app


def _service_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["service"], responses=_REFUSALS)
    async def health(response: Response) -> schemas.Health:
        """Whether the service does its work; 503 where it does not."""
        found = service.health()
        response.status_code = 503 if found.status == "failing" else 200
        return found

    @app.get("/models", tags=["service"], responses=_REFUSALS)
    async def models() -> schemas.Models:
        """Which models serve."""
        return schemas.Models(
            models=[responses.facts_of(one) for one in service.champion_models.models],
            problems=service.champion_models.problems,
        )

    @app.get("/metrics", tags=["service"], response_class=Response, responses=_REFUSALS)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.watch.exposition(service.champion_models), media_type=CONTENT_TYPE_LATEST)


def _market_routes(app: FastAPI, service: Service) -> None:
    home, market, champion_models = service.home, service.market, service.champion_models

    @app.get("/forecast", tags=["forecast"], responses=_REFUSALS)
    async def forecast(asked: Annotated[schemas.ForecastRequest, Query()]) -> schemas.ForecastAnswer:
        """Forecast the next candles of a series."""
        return await service.forecast(asked)

    @app.post("/forecast", tags=["forecast"], responses=_REFUSALS)
    async def forecast_of_body(asked: schemas.ForecastRequest) -> schemas.ForecastAnswer:
        """The same, asked in JSON."""
        return await service.forecast(asked)

    @app.get("/history", tags=["forecast"], responses=_REFUSALS)
    def history(asked: Annotated[schemas.HistoryQuery, Query()]) -> schemas.History:
        """What was said before, and what came."""
        key = market.resolve(asked.symbol, asked.interval)
        past = track_record.history(home, market, key, hours=asked.hours)
        return schemas.History(symbol=key.name, interval=key.interval.name, forecasts=past)

    @app.get("/scores", tags=["forecast"], responses=_REFUSALS)
    def scores(asked: Annotated[schemas.ScoresQuery, Query()]) -> schemas.NightScores:
        """The leaderboard of the last night, and the gate's verdict with its reasons."""
        return track_record.night_scores(service.scoreboard, champion_models, asked.recipe)

    @app.get("/series", tags=["candles"], responses=_REFUSALS)
    def series() -> schemas.SeriesList:
        """What the lake has, how fresh and whole it is, and who can forecast it."""
        held = [responses.series_facts(market.inventory(key), champion_models) for key in market.series()]
        return schemas.SeriesList(now_ms=market.now_ms(), series=held)

    @app.get("/candles", tags=["candles"], responses=_REFUSALS)
    def candles(asked: Annotated[schemas.CandlesQuery, Query()]) -> schemas.Candles:
        """Closed candles."""
        return service.candles(asked)

    @app.get("/pulse", tags=["candles"], responses=_REFUSALS)
    def pulse(asked: Annotated[schemas.SeriesQuery, Query()]) -> schemas.Pulse:
        """The price now, the newest candle, the model: little, to be asked often."""
        key = market.resolve(asked.symbol, asked.interval)
        return responses.pulse_of(key, market, champion_models, service.follower)


def _page(app: FastAPI) -> None:
    app.mount("/assets", StaticFiles(directory=WEB), name="assets")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html")


def _answers_to_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _in_words(error.errors()[0])}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        found = f"{request.method} {request.url.path[:80]}"
        sentence = f"Expected an address that exists, found {found}; /openapi.json lists them."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(StorageError)
    async def damaged(request: Request, error: StorageError) -> JSONResponse:
        logger.error("%s", error)
        return JSONResponse({"error": str(error)}, 500)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "Expected an answer, found a defect; the service's log has it."}, 500)


def _in_words(error: dict[str, Any]) -> str:
    """The first thing wrong with a request, as a sentence."""
    place = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
    found = "nothing" if error["type"] == "missing" else ascii(error.get("input"))[:60]
    if error["type"] == "json_invalid":
        return f"Expected JSON in the body, found otherwise ({error['ctx']['error']}); /openapi.json has examples."
    what = {"extra_forbidden": "no such field", "missing": "a value"}.get(error["type"], _lower(error["msg"]))
    return f"Expected {place}: {what}, found {found}; /openapi.json describes the request."


def _lower(text: str) -> str:
    return (text[:1].lower() + text[1:]).removeprefix("input ").removeprefix("value error, ")


async def _lasting(work: Coroutine[Any, Any, None]) -> None:
    """Work that should never end: its defect is logged, and /health says that it is gone."""
    try:
        await work
    except Exception:
        logger.exception("A part of the service stopped; restart it.")
        raise
