"""What a night shows in the Prefect UI: tables, verdict, pictures, links."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from storage.schema import utc_text
from tasks.database import shown
from tasks.refs import IngestRef, PublishedRef, RunRef, VerdictRef

__all__ = [
    "leaderboard_markdown",
    "show_ingest",
    "show_leaderboard",
    "show_picture",
    "show_published",
    "show_run",
    "show_text",
    "verdict_markdown",
]

_COLUMNS = {
    "model": "model",
    "origins": "origins",
    "mae_bps": "MAE",
    "rmse_bps": "RMSE",
    "crps_bps": "CRPS",
    "skill": "skill",
    "direction": "direction",
    "coverage_50": "cover 50",
    "coverage_90": "cover 90",
}


def show_ingest(ingested: IngestRef) -> None:
    """Table of what the lake holds after the ingest, what failed, and the picture of what was new."""
    rows: list[dict[str, Any]] = [
        {
            "series": one.series,
            "interval": one.interval,
            "candles": one.rows,
            "from (UTC)": utc_text(one.first_ms),
            "to (UTC)": utc_text(one.last_ms),
            "new": one.added,
            "requests": one.requests,
            "zips": one.zips,
            "holes": one.holes,
        }
        for one in ingested.series
    ]
    rows += [{"series": one.series, "failed": one.reason} for one in ingested.failures]
    create_table_artifact(table=rows, key="candles", description="Candles in the lake after this ingest")
    if ingested.picture:
        show_picture(Path(ingested.picture), "ingest", "The latest candles, and how complete each month is")


def show_leaderboard(leaderboard: Sequence[Mapping[str, Any]], verdict: VerdictRef | None = None) -> None:
    """Leaderboard and, where a challenger was judged, the gate's decision with its reasons."""
    text = verdict_markdown(leaderboard, verdict) if verdict else leaderboard_markdown(leaderboard)
    description = f"Gate: {verdict.verdict}" if verdict else "Scores on the test range"
    create_markdown_artifact(text, key="leaderboard", description=description)


def verdict_markdown(leaderboard: Sequence[Mapping[str, Any]], verdict: VerdictRef) -> str:
    """The gate's decision with its reasons, then the leaderboard."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    return f"## Verdict: {verdict.verdict}\n\n{reasons}\n\n{leaderboard_markdown(leaderboard)}"


def leaderboard_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard over all series as a markdown table; errors in basis points of log return."""
    lines = ["| " + " | ".join(_COLUMNS.values()) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        if row["series"] == "all":
            lines.append("| " + " | ".join(_cell(name, row[name]) for name in _COLUMNS) + " |")
    return "\n".join(lines)


def show_text(text: str, key: str, description: str) -> None:
    """A sentence."""
    create_markdown_artifact(text, key=key, description=description)


def show_picture(path: Path, key: str, description: str) -> None:
    """A PNG, embedded in markdown: an image artifact would print its whole data URL beside the picture."""
    data = base64.b64encode(path.read_bytes()).decode()
    create_markdown_artifact(
        f"![{description}](data:image/png;base64,{data})", key=key, description=description
    )


def show_run(run: RunRef) -> None:
    """Where the MLflow run is, from its beginning on."""
    if run.url:
        create_link_artifact(
            run.url, key="mlflow-run", link_text="MLflow run", description="This run in MLflow"
        )
    else:
        text = f"Run `{run.run_id}` in `{shown(run.uri)}`; `kronos ui mlflow` shows it on this machine."
        create_markdown_artifact(text, key="mlflow-run", description="Where the MLflow run is")


def show_published(published: Sequence[PublishedRef]) -> None:
    """Where the repositories are that were uploaded."""
    for one in published:
        if one.url:
            key = "hub-" + "".join(c if c.isalnum() else "-" for c in one.name.lower())
            create_link_artifact(
                one.url, key=key, link_text=one.name, description=f"Repository {one.name}, as published"
            )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if column.endswith("_bps") else f"{value:.3f}"
