"""One forecast is told as one set of numbers: in the store, on the terminal, by the service, by the served MLflow
model, and in the picture."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.cli import night_screen
from kronos_model.outlook import Outlook
from kronos_model.sampling import SamplingConfig
from service.config import ServiceConfig
from storage.lake import Lake
from storage.layout import Home
from storage.past import Past
from tasks import forecast as forecasting
from tasks.pyfunc_model import KronosModel
from tasks.refs import ForecastRef, PairRef
from tests.support.serving import BTC, HORIZON, LOOKBACK, crown, make_home, serving

SAMPLES, SEED = 9, 4
LEVELS = (0.05, 0.5, 0.95)


class Told:
    """What each place said."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        home = make_home(root)
        champion = crown(home, seed=3)
        pair = PairRef(
            tokenizer=str(home.root / champion.tokenizer),
            tokenizer_digest=champion.tokenizer_digest,
            predictor=str(home.root / champion.predictor),
            predictor_digest=champion.predictor_digest,
            origin="champion since 2024-06-06",
        )
        self.drawn: list[Outlook] = []
        draw = forecasting.draw_forecast

        def seen(past: Past, outlook: Outlook, target: Path) -> Path:
            self.drawn.append(outlook)
            return draw(past, outlook, target)

        patch.setattr(forecasting, "draw_forecast", seen)
        (self.stored,) = self._store(home, pair)
        self.service = self._ask(home)
        self.served = self._predict(home, pair)

    def _store(self, home: Home, pair: PairRef) -> tuple[ForecastRef, ...]:
        config = SamplingConfig(samples=SAMPLES)
        return forecasting.forecast.fn(
            home, [BTC], pair, config, lookback=LOOKBACK, horizon=HORIZON, seed=SEED
        ).forecasts

    def _ask(self, home: Home) -> dict[str, Any]:
        with serving(home, ServiceConfig()) as site:
            return site.forecast(samples=SAMPLES, seed=SEED, quantiles=list(LEVELS))

    def _predict(self, home: Home, pair: PairRef) -> pd.DataFrame:
        candles = Lake(home.lake).read(BTC).tail(LOOKBACK)
        table = {name: candles[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
        times = candles["open_time"].to_numpy().astype("datetime64[ms]")
        rows = pd.DataFrame(
            {"series": BTC.name, "open_time": times, **table, "amount": candles["quote_volume"].to_numpy()}
        )
        model = KronosModel()
        context: Any = SimpleNamespace(artifacts={"tokenizer": pair.tokenizer, "predictor": pair.predictor})
        model.load_context(context)
        return model.predict(context, rows, {"samples": SAMPLES, "seed": SEED})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    with pytest.MonkeyPatch.context() as patch:
        return Told(tmp_path_factory.mktemp("told"), patch)


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
    np.testing.assert_array_equal(drawn.quantile(0.5), told.served["q50"])
