"""What a night shows in the Prefect UI: tables, verdict, pictures, links."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from storage.schema import utc_text
from tasks.database import shown
from tasks.refs import IngestRef, PublishedRef, RunRef, VerdictRef
from tasks.reports.rendering import render

__all__ = [
    "leaderboard_artifact",
    "leaderboard_markdown",
    "show_ingest",
    "show_picture",
    "show_published",
    "show_run",
    "show_text",
]


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


def leaderboard_artifact(leaderboard: Sequence[Mapping[str, Any]], verdict: VerdictRef | None = None) -> None:
    """Leaderboard and, where a challenger was judged, the gate's decision with its reasons."""
    description = f"Gate: {verdict.verdict}" if verdict else "Scores on the test range"
    show_text(leaderboard_markdown(leaderboard, verdict), "leaderboard", description)


def leaderboard_markdown(rows: Sequence[Mapping[str, Any]], verdict: VerdictRef | None = None) -> str:
    """The gate's decision with its reasons, then the leaderboard over all series; errors in bps of log return."""
    pooled = [row for row in rows if row["series"] == "all"]
    return render("leaderboard.md", rows=pooled, verdict=verdict)


def show_text(text: str, key: str, description: str) -> None:
    """A sentence, or more in markdown."""
    create_markdown_artifact(text, key=key, description=description)


def show_picture(path: Path, key: str, description: str) -> None:
    """A PNG, embedded in markdown: an image artifact would print its whole data URL beside the picture."""
    data = base64.b64encode(path.read_bytes()).decode()
    show_text(f"![{description}](data:image/png;base64,{data})", key, description)


def show_run(run: RunRef) -> None:
    """Where the MLflow run is, from its beginning on."""
    if run.url:
        create_link_artifact(
            run.url, key="mlflow-run", link_text="MLflow run", description="This run in MLflow"
        )
    else:
        text = f"Run `{run.run_id}` in `{shown(run.uri)}`; `kronos ui mlflow` shows it on this machine."
        show_text(text, "mlflow-run", "Where the MLflow run is")


def show_published(published: Sequence[PublishedRef]) -> None:
    """Where the repositories are that were uploaded."""
    for one in published:
        if one.url:
            key = "hub-" + "".join(c if c.isalnum() else "-" for c in one.name.lower())
            create_link_artifact(
                one.url, key=key, link_text=one.name, description=f"Repository {one.name}, as published"
            )
