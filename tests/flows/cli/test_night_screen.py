"""What the terminal says of forecasts of few paths: nothing that those paths cannot tell."""

import pytest

from flows.cli.night_screen import show_forecasts
from tasks.refs import ForecastRef


def told(samples: int) -> ForecastRef:
    return ForecastRef(
        series="um:DOGEUSDT", interval="1h", model_digest="ab" * 8, path="", figure="", origin_ms=0, last_close=0.2,
        horizon_end_ms=3_600_000, close_mean=0.21, close_low=0.1875, close_high=0.2625, probability_up=0.75,
        expected_return=0.05, volatility=0.0625, model="champion since 2024-06-06", samples=samples, made=True,
    )  # fmt: skip


FIGURES = ("0.1875 to 0.2625", "0.75", "6.25 %")


@pytest.mark.parametrize(
    ("samples", "shown", "note"),
    [
        (1, False, "One path has an end and nothing else"),
        (18, True, "18 paths do not reach 5 and 95 %, which takes 19: their lowest and highest are shown"),
        (19, True, ""),
        (100, True, ""),
    ],
)
def test_what_few_paths_cannot_tell_is_not_shown(
    samples: int, shown: bool, note: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show_forecasts([told(samples)])
    said = " ".join(capsys.readouterr().out.split())
    assert "+5.00 %" in said
    assert [figure in said for figure in FIGURES] == [shown] * 3
    assert note in said
    assert ("note:" in said) == bool(note)
