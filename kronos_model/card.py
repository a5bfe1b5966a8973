"""The model card: what a published model is, what it was judged on, and how to load it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData

from kronos_model.evaluation.config import PRETRAINING_END_MS

__all__ = ["CardFacts", "model_card"]

ALL_SERIES = "all"
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
    base_models: tuple[str, ...]
    """Hub ids of the weights that training started from; empty where it started from scratch."""
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
    picture: str | None = None
    """File name, in the repository, of a picture of forecasts."""


def model_card(facts: CardFacts) -> str:
    """README.md of a repository, metadata included."""
    sections = [
        _introduction(facts),
        _data(facts),
        _evaluation(facts),
        _loading(facts),
        _table(("setting", "value"), list(facts.settings.items()), title="Settings"),
        "No forecast here is financial advice. Licence: MIT, as upstream Kronos (shiyu-coder/Kronos).",
    ]
    return f"---\n{_metadata(facts).to_yaml()}\n---\n" + "\n\n".join(sections) + "\n"


def _metadata(facts: CardFacts) -> ModelCardData:
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if facts.base_models else {}
    symbols = [name.split(":")[-1].lower() for name in facts.series[:5]]
    return ModelCardData(
        license="mit",
        library_name="kronos-nightly",
        pipeline_tag="time-series-forecasting",
        base_model=list(facts.base_models) or None,
        tags=["kronos", "finance", "candlestick", "binance", facts.part, facts.interval, *symbols],
        **relation,
    )


def _introduction(facts: CardFacts) -> str:
    start = " and ".join(facts.base_models)
    origin = f"fine-tuned from {start}" if start else "trained from scratch"
    other = facts.predictor_repo if facts.part == "tokenizer" else facts.tokenizer_repo
    counterpart = "predictor" if facts.part == "tokenizer" else "tokenizer"
    picture = f"\n\n![Forecasts over the test range]({facts.picture})" if facts.picture else ""
    return (
        f"# {facts.recipe}: Kronos {facts.part}\n\n"
        f"The {facts.part} of a Kronos model for Binance candles, {origin} by Kronos Nightly "
        f"(recipe `{facts.recipe}`). It belongs to the {counterpart} `{other}` and to no other.{picture}"
    )


def _data(facts: CardFacts) -> str:
    rows = [
        ("series", ", ".join(facts.series)),
        ("interval", facts.interval),
        ("candles", f"{_day(facts.first_ms)} to {_day(facts.last_ms)}, UTC"),
        ("test range", f"{_day(facts.test_from_ms)} to {_day(facts.last_ms)}, never trained on here"),
        ("window", f"{facts.lookback} candles seen, {facts.horizon} forecast, context {facts.max_context}"),
        ("normaliser", facts.normaliser),
        ("dataset digest", f"`{facts.dataset_digest}`"),
    ]
    return _table(("data", ""), rows, title="Data")


def _evaluation(facts: CardFacts) -> str:
    reasons = "\n".join(f"- {reason}" for reason in facts.reasons)
    parts = [f"## Evaluation\n\nThe gate's verdict: **{facts.verdict}**.\n\n{reasons}".rstrip()]
    if facts.base_models and facts.test_from_ms < PRETRAINING_END_MS:
        parts.append(
            f"> **Contaminated:** the test range starts before {_day(PRETRAINING_END_MS)}, so it overlaps "
            "the data that the base checkpoint was pre-trained on; scores there flatter both models."
        )
    names = list(dict.fromkeys(str(row["series"]) for row in facts.leaderboard))
    # One series says the same as all of them.
    for name in names if len(names) > 2 else names[:1]:
        rows = [[_cell(row, key) for key in _COLUMNS] for row in facts.leaderboard if row["series"] == name]
        heading = "All series" if name == ALL_SERIES else name
        parts.append(_table(tuple(_COLUMNS.values()), rows, title=heading, level=3))
    return "\n\n".join([*parts, _LEGEND])


def _loading(facts: CardFacts) -> str:
    ours = f"tokenizer = {_folder(facts.tokenizer_repo)}\npredictor = {_folder(facts.predictor_repo)}"
    if facts.normaliser == UPSTREAM_NORMALISER:
        note = "With ours, which draw sample paths instead of their mean:"
    else:
        note = (
            "Upstream normalises by the mean and deviation of the window, but this model was trained with "
            f"`{facts.normaliser}`: `kronos_nightly.json` records it, and only our classes apply it:"
        )
    return (
        "## Use\n\n"
        "With upstream's classes (its repository on the Python path):\n\n"
        "```python\n"
        "from model import Kronos, KronosPredictor, KronosTokenizer\n\n"
        f'tokenizer = KronosTokenizer.from_pretrained("{facts.tokenizer_repo}").eval()\n'
        f'predictor = Kronos.from_pretrained("{facts.predictor_repo}").eval()\n'
        f"model = KronosPredictor(predictor, tokenizer, max_context={facts.max_context}, "
        'device="cpu")\n'
        "```\n\n"
        f"{note}\n\n"
        "```python\n"
        "from pathlib import Path\n\n"
        "from huggingface_hub import snapshot_download\n\n"
        "from kronos_model import Forecaster\n\n"
        f"{ours}\n"
        "forecaster = Forecaster.load(tokenizer, predictor)\n"
        "```"
    )


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
