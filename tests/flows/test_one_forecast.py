"""One forecast is told as one set of numbers: in the store, on the terminal, by the service, by the served MLflow
model, and in the picture; whether a blended champion serves, one that draws alone, or the references."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.cli import night_screen
from kronos_model.context import history_bars
from kronos_model.features import CLOSE
from kronos_model.outlook import Outlook
from kronos_model.postprocess import PostProcess
from kronos_model.references import make_references, references_pool
from kronos_model.sampling import SamplingConfig
from kronos_model.served import context_of
from service.config import ServiceConfig
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.past import Past, newest_past
from tasks import forecast as forecasting
from tasks.pyfunc_model import KronosModel
from tasks.refs import ForecastRef, PairRef
from tests.support.quantiles import path_quantiles
from tests.support.serving import (
    BLEND,
    BTC,
    CANDLES,
    HORIZON,
    LOOKBACK,
    crown,
    make_home,
    night_made_for,
    serving,
)

SAMPLES, SEED = 9, 4
LEVELS = (0.05, 0.5, 0.95)
WHO = {"blended": BLEND, "alone": None, "references": None}


class Told:
    """What each place said."""

    def __init__(self, root: Path, who: str, patch: pytest.MonkeyPatch) -> None:
        self.home = home = make_home(root, champion=False)
        self.drawn: list[Outlook] = []
        draw = forecasting.draw_forecast

        def seen(past: Past, outlook: Outlook, target: Path) -> Path:
            self.drawn.append(outlook)
            return draw(past, outlook, target)

        patch.setattr(forecasting, "draw_forecast", seen)
        pair = None if who == "references" else self._crown(home, WHO[who])
        if pair is None:
            night_made_for(home, lookback=LOOKBACK, horizon=HORIZON)
        (self.stored,) = self._store(home, pair)
        self.service = self._ask(home)
        self.served = None if pair is None else self._predict(home, pair)

    def _crown(self, home: Home, postprocess: PostProcess | None) -> PairRef:
        champion = crown(home, seed=3, postprocess=postprocess)
        return PairRef(
            tokenizer=str(home.root / champion.tokenizer),
            tokenizer_digest=champion.tokenizer_digest,
            predictor=str(home.root / champion.predictor),
            predictor_digest=champion.predictor_digest,
            origin="champion since 2024-06-06",
        )

    def _store(self, home: Home, pair: PairRef | None) -> tuple[ForecastRef, ...]:
        config = SamplingConfig(samples=SAMPLES)
        return forecasting.forecast.fn(
            home, [BTC], pair, config, lookback=LOOKBACK, horizon=HORIZON, seed=SEED
        ).forecasts

    def _ask(self, home: Home) -> dict[str, Any]:
        with serving(home, ServiceConfig()) as site:
            return site.forecast(samples=SAMPLES, seed=SEED, quantiles=list(LEVELS))

    def _predict(self, home: Home, pair: PairRef) -> pd.DataFrame:
        candles = Lake(home.lake).read(BTC).tail(CANDLES)
        table = {name: candles[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
        times = candles["open_time"].to_numpy().astype("datetime64[ms]")
        rows = pd.DataFrame(
            {"series": BTC.name, "open_time": times, **table, "amount": candles["quote_volume"].to_numpy()}
        )
        model = KronosModel()
        context: Any = SimpleNamespace(artifacts={"tokenizer": pair.tokenizer, "predictor": pair.predictor})
        model.load_context(context)
        return model.predict(context, rows, {"samples": SAMPLES, "seed": SEED})


@pytest.fixture(scope="module", params=list(WHO))
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    with pytest.MonkeyPatch.context() as patch:
        return Told(tmp_path_factory.mktemp("told"), request.param, patch)


def test_the_service_says_what_is_stored(told: Told) -> None:
    stored, said = told.stored, told.service["outlook"]
    assert (said["probability_up"], said["mean"], said["end_ms"]) == (
        stored.probability_up,
        stored.close_mean,
        stored.horizon_end_ms,
    )
    assert said["expected_return"] == pytest.approx(stored.expected_return, rel=1e-12)
    assert said["volatility"] == pytest.approx(stored.volatility, rel=1e-12)
    fan = told.service["fan"]["quantiles"]
    assert (fan["0.05"][-1], fan["0.95"][-1]) == (stored.close_low, stored.close_high)


def test_the_served_mlflow_model_says_it_too(told: Told) -> None:
    if told.served is None:
        pytest.skip("the references are no registered model")
    end, stored = told.served.iloc[-1], told.stored
    for column, figure in (
        ("mean", stored.close_mean),
        ("q05", stored.close_low),
        ("q95", stored.close_high),
        ("probability_up", stored.probability_up),
        ("expected_return", stored.expected_return),
        ("volatility", stored.volatility),
    ):
        assert end[column] == pytest.approx(figure, rel=1e-12), column


def test_the_terminal_shows_it(
    told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    night_screen.show_forecasts([told.stored])
    shown, stored = capsys.readouterr().out, told.stored
    for figure in (
        f"{stored.probability_up:.2f}",
        f"{100 * stored.expected_return:+.2f} %",
        f"{100 * stored.volatility:.2f} %",
    ):
        assert figure in shown


def test_the_picture_is_drawn_from_it(told: Told) -> None:
    (drawn,), stored = told.drawn, told.stored
    assert (drawn.quantile(0.05)[-1], drawn.quantile(0.95)[-1]) == (stored.close_low, stored.close_high)
    np.testing.assert_array_equal(drawn.quantile(0.5), told.service["fan"]["quantiles"]["0.5"])


def test_everybody_names_who_forecasts(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    night_screen.show_forecasts([told.stored])
    shown, said = " ".join(capsys.readouterr().out.split()), told.service
    sentence = "spot:BTCUSDT by the references: no network has earned a place yet."
    kept = ForecastStore(told.home.forecasts).list(BTC)[-1]
    assert kept.summary["weights"] == said["weights"]
    if told.served is None:
        assert (told.stored.model, told.stored.model_digest) == ("references", "references")
        assert (said["model"], said["predictor"]) == ("references", None)
        assert said["weights"] == {"ewma": 0.5, "bootstrap": 0.5}
        assert sentence in shown
    else:
        assert told.stored.model == "champion since 2024-06-06"
        assert (said["model"], said["predictor"]) == ("champion", told.stored.model_digest)
        assert sentence not in shown


def test_the_references_are_those_of_the_evaluation(told: Told) -> None:
    if told.stored.model != "references":
        pytest.skip("a network is in it")
    history = history_bars(LOOKBACK, BTC.interval.next(0))
    past = newest_past(
        Lake(told.home.lake), Ledger(told.home.lake), BTC, lookback=LOOKBACK, horizon=HORIZON, history=history
    )
    members, _ = make_references(LOOKBACK, samples=SAMPLES, seed=SEED)
    pool = references_pool({name: one.forecast(context_of([past])).paths for name, one in members.items()})
    close = pool.paths[0, :, :, CLOSE].astype(np.float64)
    for level in LEVELS:
        expected = path_quantiles(close, level)
        np.testing.assert_allclose(told.service["fan"]["quantiles"][f"{level:g}"], expected, rtol=1e-12)
