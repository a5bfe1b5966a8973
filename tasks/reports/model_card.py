"""The model card: what a published model is, what it was judged on, and how to load it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from kronos_model.calibration import Calibration
from kronos_model.evaluation.config import PRETRAINING_END_MS

__all__ = ["PICTURES", "CardFacts", "calibration_in_words", "model_card"]


PICTURES = {
    "fans.png": "Forecasts over what then happened, test range",
    "skill.png": "CRPS skill against the last value by step, test range",
    "losses.png": "Loss of both training stages; what was kept is marked",
}
ALL_SERIES = "all"
CHALLENGER = "challenger"
UPSTREAM_NORMALISER = "window_zscore"
_COLUMNS = {
    "model": "model",
    "origins": "origins",
    "crps_bps": "CRPS (bps)",
    "skill": "skill vs last value",
    "mae_bps": "MAE (bps)",
    "rmse_bps": "RMSE (bps)",
    "direction": "direction",
    "coverage_50": "coverage 50 %",
    "coverage_90": "coverage 90 %",
    "violation_rate": "broken bars",
}
_RESULTS = (  # column of the leaderboard, the metric's type and name, factor
    ("crps_bps", "crps", "CRPS of the log-return (bps)", 1),
    ("mae_bps", "mae", "MAE of the log-return (bps)", 1),
    ("rmse_bps", "rmse", "RMSE of the log-return (bps)", 1),
    ("direction", "directional_accuracy", "Right sign at the last step (%)", 100),
    ("coverage_50", "coverage", "Coverage of the 50 % interval (%)", 100),
    ("coverage_90", "coverage", "Coverage of the 90 % interval (%)", 100),
)
_PERCENT = ("direction", "coverage_50", "coverage_90", "violation_rate")
_LEGEND = (
    "Scores are of the log-return of the close from the last known candle, over all origins and steps; 1 bps "
    "is 0.01 %. CRPS is the fair estimator over sample paths, lower is better; skill is 1 - CRPS / CRPS of "
    "the last value, higher is better; MAE is of the median, RMSE of the mean; direction is the share of "
    "correct signs at the last step, with its 95 % interval; broken bars are those made consistent (high "
    "below close and the like)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """All that the card says."""

    part: Literal["tokenizer", "predictor"]
    recipe: str
    night: str
    series: tuple[str, ...]
    interval: str
    first_ms: int
    last_ms: int
    test_from_ms: int
    dataset_digest: str
    lookback: int
    horizon: int
    max_context: int
    normaliser: str
    base_models: Mapping[str, str]
    """Hub ids of the weights that training started from, with their revisions; empty where it started from scratch."""
    calibration: str
    """What is done to the spread of the paths, in words; empty where nothing is."""
    settings: Mapping[str, object]
    """Training and sampling settings, in the order they are to be read."""
    leaderboard: Sequence[Mapping[str, Any]]
    """Rows of evaluation.leaderboard."""
    verdict: str
    reasons: tuple[str, ...]
    tokenizer_repo: str
    """Hub id, or the absolute path of a folder."""
    predictor_repo: str
    """Hub id, or the absolute path of a folder."""
    of_kronos: bool = False
    """Whether the weights descend from a checkpoint of Kronos's own, also by way of other fine-tunings."""
    pictures: tuple[str, ...] = ()
    """File names, in the repository, of the pictures to show: those of PICTURES are told what they are."""

    @property
    def contaminated(self) -> bool:
        """Whether the test range overlaps what the weights were once pre-trained on."""
        return (self.of_kronos or bool(self.base_models)) and self.test_from_ms < PRETRAINING_END_MS

    @property
    def name(self) -> str:
        """What a reader calls the model."""
        return f"{self.recipe} Kronos {self.part}"


def model_card(facts: CardFacts) -> str:
    """README.md of a repository, metadata included."""
    sections = [
        _introduction(facts),
        _picture(facts, "fans.png"),
        _loading(facts),
        _evaluation(facts),
        _picture(facts, "skill.png"),
        _data(facts),
        _table(("setting", "value"), list(facts.settings.items()), title="Training"),
        _picture(facts, "losses.png"),
        "No forecast here is financial advice. Licence: MIT, as upstream Kronos (shiyu-coder/Kronos).",
    ]
    return f"---\n{_metadata(facts).to_yaml()}\n---\n" + "\n\n".join(filter(None, sections)) + "\n"


def calibration_in_words(predictor: Path) -> str:
    """What serving does to the spread of the paths of this model folder; empty where it is not calibrated."""
    told = Calibration.load(predictor)
    if told is None:
        return ""
    factors = [factor for row in told.factors for factor in row]
    return (
        f"the spread of the paths is scaled by {min(factors):.2f} to {max(factors):.2f}, by step and distance from "
        f"the median, so that bands up to {100 * told.level:.0f} % cover what they say: fitted on {told.origins} "
        f"validation origins at temperature {told.temperature:g}, top-k {told.top_k}, top-p {told.top_p:g}"
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if facts.base_models else {}
    symbols = [name.split(":")[-1].lower() for name in facts.series[:5]]
    return ModelCardData(
        license="mit",
        library_name="kronos-nightly",
        pipeline_tag="time-series-forecasting",
        base_model=list(facts.base_models) or None,
        model_name=facts.name,
        eval_results=_eval_results(facts),
        tags=["kronos", "finance", "candlestick", "binance", facts.part, facts.interval, *symbols],
        **relation,
        kronos_nightly={
            "recipe": facts.recipe,
            "night": facts.night,
            "series": list(facts.series),
            "interval": facts.interval,
            "data_from": _day(facts.first_ms),
            "data_to": _day(facts.last_ms),
            "test_from": _day(facts.test_from_ms),
            "dataset_digest": facts.dataset_digest,
            "base_revisions": dict(facts.base_models),
            "calibrated": bool(facts.calibration),
            "contaminated": facts.contaminated,
            "verdict": facts.verdict,
        },
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """The challenger's scores over all series, and its skill against each of the others."""
    rows = {row["model"]: row for row in facts.leaderboard if row["series"] == ALL_SERIES}
    ours = rows[CHALLENGER]
    values = [
        (kind, name, ours[key] * scale) for key, kind, name, scale in _RESULTS if ours.get(key) is not None
    ]
    values += [
        (
            "crps_skill",
            f"CRPS skill against {model.replace('_', ' ')}",
            1 - ours["crps_bps"] / row["crps_bps"],
        )
        for model, row in rows.items()
        if model != CHALLENGER and row["crps_bps"] > 0
    ]
    return [
        EvalResult(
            task_type="time-series-forecasting",
            task_name=f"Walk-forward, {facts.horizon} steps of {facts.interval}, {ours['origins']} origins",
            dataset_type="binance-klines",
            dataset_name=f"Binance klines, {', '.join(facts.series)}",
            dataset_config=facts.interval,
            dataset_split=f"{_day(facts.test_from_ms)} to {_day(facts.last_ms)}",
            dataset_revision=facts.dataset_digest,
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(value), 6),
        )
        for kind, name, value in values
    ]


def _introduction(facts: CardFacts) -> str:
    start = " and ".join(
        f"{name} (revision `{revision[:12]}`)" for name, revision in facts.base_models.items()
    )
    origin = f"fine-tuned from {start}" if start else "trained from scratch"
    other = facts.predictor_repo if facts.part == "tokenizer" else facts.tokenizer_repo
    counterpart = "predictor" if facts.part == "tokenizer" else "tokenizer"
    return (
        f"# {facts.name}\n\n"
        f"The {facts.part} of a Kronos model for Binance candles ({', '.join(facts.series)}, {facts.interval}), "
        f"{origin} by Kronos Nightly in night `{facts.night}` of recipe `{facts.recipe}`. It belongs to the "
        f"{counterpart} `{other}` of the same night and to no other. The tag `night-{facts.night}` names both; the "
        "tag `champion` names the pair that serves now."
    )


def _picture(facts: CardFacts, name: str) -> str:
    return f"![{PICTURES[name]}]({name})" if name in facts.pictures else ""


def _data(facts: CardFacts) -> str:
    rows = [
        ("series", ", ".join(facts.series)),
        ("interval", facts.interval),
        ("candles", f"{_day(facts.first_ms)} to {_day(facts.last_ms)}, UTC"),
        ("test range", f"{_day(facts.test_from_ms)} to {_day(facts.last_ms)}, never trained on here"),
        ("window", f"{facts.lookback} candles seen, {facts.horizon} forecast, context {facts.max_context}"),
        ("normaliser", f"`{facts.normaliser}`"),
        ("calibration", facts.calibration or "none: the paths are as the model draws them"),
        ("dataset digest", f"`{facts.dataset_digest}`"),
    ]
    return _table(("data", ""), rows, title="Data")


def _evaluation(facts: CardFacts) -> str:
    reasons = "\n".join(f"- {reason}" for reason in facts.reasons)
    parts = [f"## Evaluation\n\nThe gate's verdict: **{facts.verdict}**.\n\n{reasons}".rstrip()]
    if facts.contaminated:
        parts.append(
            f"> **Contaminated:** the test range starts before {_day(PRETRAINING_END_MS)}, so it overlaps "
            "the data that Kronos was pre-trained on; scores there flatter both models."
        )
    names = list(dict.fromkeys(str(row["series"]) for row in facts.leaderboard))
    # One series says the same as all of them.
    for name in names if len(names) > 2 else names[:1]:
        rows = [[_cell(row, key) for key in _COLUMNS] for row in facts.leaderboard if row["series"] == name]
        heading = "All series" if name == ALL_SERIES else name
        parts.append(_table(tuple(_COLUMNS.values()), rows, title=heading, level=3))
    return "\n\n".join([*parts, _LEGEND])


def _loading(facts: CardFacts) -> str:
    if facts.normaliser == UPSTREAM_NORMALISER:
        note = "With Kronos Nightly's, which draw sample paths instead of their mean:"
    else:
        note = (
            "Upstream normalises by the mean and deviation of the window, but this model was trained with "
            f"`{facts.normaliser}`: `kronos_nightly.json` records it, and only our classes apply it:"
        )
    if facts.calibration:
        note += " (the calibration, too, is applied by ours alone)"
    return (
        "## Use\n\n"
        f"`candles.csv` holds the newest closed candles, at least {facts.lookback}, as `kronos export` writes "
        "them. With upstream's classes (its repository on the Python path):\n\n"
        f"```python\n{_upstream_code(facts)}\n```\n\n{note}\n\n```python\n{_our_code(facts)}\n```"
    )


def _upstream_code(facts: CardFacts) -> str:
    return f'''\
import pandas as pd
from model import Kronos, KronosPredictor, KronosTokenizer

tokenizer = KronosTokenizer.from_pretrained("{facts.tokenizer_repo}").eval()
predictor = Kronos.from_pretrained("{facts.predictor_repo}").eval()
model = KronosPredictor(predictor, tokenizer, max_context={facts.max_context}, device="cpu")

{_candles_code(facts)}
forecast = model.predict(
    candles[columns],
    candles["open_time"],
    future,
    pred_len={facts.horizon},
    T=1.0,
    top_p=1.0,
    sample_count=10,
)'''


def _our_code(facts: CardFacts) -> str:
    return f'''\
from pathlib import Path

import pandas as pd
from huggingface_hub import snapshot_download

from kronos_model import Forecaster
from kronos_model.sampling import SamplingConfig

tokenizer = {_folder(facts.tokenizer_repo)}
predictor = {_folder(facts.predictor_repo)}
forecaster = Forecaster.load(tokenizer, predictor)

{_candles_code(facts)}
forecast = forecaster.paths(
    candles[columns].to_numpy("float32")[None],
    candles["open_time"].to_numpy("datetime64[ms]").astype("int64")[None],
    future.to_numpy("datetime64[ms]").astype("int64")[None],
    ["{facts.series[0]}"],
    config=SamplingConfig(samples=10),
    seed=0,
)
paths = forecast.paths[0]  # 10 samples, {facts.horizon} candles, 6 columns'''


def _candles_code(facts: CardFacts) -> str:
    return f'''\
columns = ["open", "high", "low", "close", "volume", "amount"]
candles = pd.read_csv("candles.csv", parse_dates=["open_time"]).tail({facts.lookback})
candles = candles.rename(columns={{"quote_volume": "amount"}}).reset_index(drop=True)
last = candles["open_time"].iloc[-1]
times = pd.date_range(last, periods={facts.horizon + 1}, freq="{_frequency(facts.interval)}")
future = pd.Series(times[1:])'''


def _frequency(interval: str) -> str:
    """The interval as pandas spells it."""
    count, unit = int(interval[:-1]), interval[-1]
    names = {"s": "s", "m": "min", "h": "h", "d": "D", "M": "MS"}
    return f"{7 * count}D" if unit == "w" else f"{count}{names[unit]}"


def _folder(repo: str) -> str:
    """The expression that yields a repository's folder."""
    return f'Path("{repo}")' if Path(repo).is_absolute() else f'Path(snapshot_download("{repo}"))'


def _table(header: tuple[str, ...], rows: Sequence[Sequence[object]], *, title: str, level: int = 2) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return f"{'#' * level} {title}\n\n" + "\n".join(cells)


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "n/a"
    if key == "direction":
        low, high = 100 * row["direction_low"], 100 * row["direction_high"]
        return f"{100 * value:.1f} % ({low:.1f} to {high:.1f})"
    if key in _PERCENT:
        return f"{100 * value:.1f} %"
    if key == "skill":
        return f"{value:+.4f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _day(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, tz=UTC).strftime("%Y-%m-%d")
