"""A home with candles and untrained champions, and the service over it on a port of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import requests
import uvicorn

from kronos_model.config import PRESETS
from kronos_model.files import model_digest
from kronos_model.hub import scratch_pair, write_metadata
from kronos_model.postprocess import PostProcess
from kronos_model.spread import Spread
from service.api import Service, application
from service.config import ServiceConfig
from service.follow import Follower
from storage.dataset import DatasetConfig
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from storage.registry import Champion, read_champion, write_champion, write_night
from storage.schema import SeriesKey
from tests.support.candles import HOUR_MS, JUNE_MS, asked, full_candles
from tests.support.datasets import build

__all__ = [
    "BLEND",
    "BTC",
    "CANDLES",
    "DOGE",
    "HORIZON",
    "LAST_MS",
    "LOOKBACK",
    "NOW_MS",
    "Site",
    "crown",
    "keep_forecast",
    "make_home",
    "night_made_for",
    "serving",
]

BTC, DOGE = SeriesKey.parse("spot:BTCUSDT", "1h"), SeriesKey.parse("um:DOGEUSDT", "1h")
CANDLES, LOOKBACK, HORIZON = 120, 24, 4
LAST_MS = JUNE_MS + (CANDLES - 1) * HOUR_MS
NOW_MS = LAST_MS + HOUR_MS + 60_000  # the newest candle closed a minute ago


def make_home(root: Path, *, champion: bool = True) -> Home:
    """Two series of 1h and, unless told otherwise, a champion of recipe demo with its night."""
    home = Home.at(root)
    lake = Lake(home.lake)
    for seed, key in enumerate((BTC, DOGE)):
        lake.upsert(key, full_candles(CANDLES, seed=seed), source=Source("rest", "example.org"))
    if champion:
        crown(home, seed=0)
        summary = {
            "recipe": "demo",
            "night": "n0",
            "verdict": "promote",
            "reasons": ["challenger is better than base"],
            "leaderboard": [{"model": "challenger", "series": "all", "origins": 80, "crps_bps": 109.4}],
        }
        write_night(home, "demo", "n0", summary)
    return home


BLEND = PostProcess(
    horizon=HORIZON,
    lookback=LOOKBACK,
    interval="1h",
    temperature=0.8,
    top_k=0,
    top_p=0.9,
    location=(0.5, 0.0),
    members=("network", "ewma", "bootstrap"),
    weights=(0.5, 0.3, 0.2),
    spread=Spread(levels=(0.5, 0.9), factors=((1.1,) * HORIZON, (1.3,) * HORIZON)),
    spread_alone=None,
    origins=40,
    samples=20,
)


def crown(home: Home, *, seed: int, recipe: str = "demo", postprocess: PostProcess | None = None) -> Champion:
    """Let the untrained tiny model of that seed serve, with the post-processing given."""
    pair = scratch_pair(PRESETS["tiny"], home.models / "scratch" / str(seed), seed)
    if postprocess is not None:
        postprocess.save(pair.predictor)
    told = {"interval": "1h", "lookback": LOOKBACK, "horizon": HORIZON, "training": {"series": [BTC.name]}}
    write_metadata(pair.predictor, told)
    champion = Champion(
        tokenizer=str(pair.tokenizer.relative_to(home.root)),
        tokenizer_digest=model_digest(pair.tokenizer),
        predictor=str(pair.predictor.relative_to(home.root)),
        predictor_digest=model_digest(pair.predictor),
        night=f"n{seed}",
        mlflow_run="",
        since=f"2024-06-06T0{seed % 10}:00:00+00:00",
        reasons=("challenger is better than base",),
        previous=read_champion(home, recipe),
    )
    write_champion(home, recipe, champion)
    return champion


def night_made_for(home: Home, *, lookback: int, horizon: int, recipe: str = "demo") -> None:
    """A finished night of a recipe that promoted nobody, with the dataset it was made from."""
    candles = {BTC.name: full_candles(400, seed=0)}
    dataset = build(candles, DatasetConfig(lookback=lookback, horizon=horizon), home.root / "datasets")
    summary = {
        "recipe": recipe,
        "night": "n0",
        "verdict": "reject",
        "reasons": ["challenger is worse than the references"],
        "dataset": {"path": str(dataset.path)},
        "leaderboard": [{"model": "challenger", "series": "all", "origins": 80, "crps_bps": 109.4}],
    }
    write_night(home, recipe, "n0", summary)


@dataclass(frozen=True)
class Site:
    """A service that runs."""

    url: str
    service: Service

    def get(self, path: str, *, token: str | None = None, **query: Any) -> requests.Response:
        """Ask."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(self.url + path, params=query, headers=headers, timeout=60)

    def forecast(self, **asked: Any) -> dict[str, Any]:
        """A forecast that must succeed."""
        answer = requests.post(f"{self.url}/forecast", json={"symbol": BTC.name, **asked}, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def serving(
    home: Home,
    config: ServiceConfig | None = None,
    *,
    token: str | None = None,
    follower: Follower | None = None,
    now_ms: int = NOW_MS,
    port: int = 0,
) -> Iterator[Site]:
    """The service in a thread, with its clock stopped, until the block ends."""
    app = application(home, config, token=token, follower=follower, now_ms=lambda: now_ms)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    ready = threading.Event()
    started = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await started(sockets)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        assert ready.wait(60), "the service did not start"
        try:
            yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service)
        finally:
            server.should_exit = True
            thread.join(30)


def keep_forecast(home: Home, key: SeriesKey, *, origin_ms: int, digest: str = "d" * 16) -> None:
    """A forecast on record: HORIZON candles, every quantile a level times 100."""
    opened = [origin_ms + HOUR_MS * step for step in range(1, HORIZON + 1)]
    levels = [5 * step for step in range(1, 20)]
    frame = pl.DataFrame(
        {
            "open_time": pl.Series(opened).cast(pl.Datetime("ms", "UTC")),
            "step": list(range(1, HORIZON + 1)),
            "close_mean": [100.0] * HORIZON,
            **{f"close_q{level:02d}": [float(level)] * HORIZON for level in levels},
        }
    )
    facts = {"last_close": 99.0, "probability_up": 0.6}
    ForecastStore(home.forecasts).save(asked(key, origin_ms, digest), frame, facts)
