"""What a night shows in the Prefect UI: tables, verdict, pictures, links."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from storage.schema import utc_text
from tasks.refs import IngestRef, PublishedRef, RunRef, VerdictRef

__all__ = ["leaderboard_markdown", "show_ingest", "show_leaderboard", "show_links", "show_picture"]

_COLUMNS = {
    "model": "model",
    "origins": "origins",
    "mae_bps": "MAE (bps)",
    "rmse_bps": "RMSE (bps)",
    "crps_bps": "CRPS (bps)",
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
    text = f"## Leaderboard\n\n{leaderboard_markdown(leaderboard)}"
    if verdict is not None:
        reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
        text = f"## Verdict: {verdict.verdict}\n\n{reasons}\n\n{text}"
    create_markdown_artifact(
        text, key="leaderboard", description=f"Gate: {verdict.verdict}" if verdict else None
    )


def leaderboard_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard over all series as a markdown table; skill is against the last value, higher is better."""
    lines = ["| " + " | ".join(_COLUMNS.values()) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        if row["series"] == "all":
            lines.append("| " + " | ".join(_cell(row[name]) for name in _COLUMNS) + " |")
    return "\n".join(lines)


def show_picture(path: Path, key: str, description: str) -> None:
    """A PNG, embedded."""
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    create_image_artifact(image_url=url, key=key, description=description)


def show_links(run: RunRef, published: Sequence[PublishedRef]) -> None:
    """Links to the MLflow run and to the repositories."""
    if run.url:
        create_link_artifact(run.url, key="mlflow-run", link_text="MLflow run")
    for one in published:
        if one.url:
            key = "hub-" + "".join(c if c.isalnum() else "-" for c in one.name.lower())
            create_link_artifact(one.url, key=key, link_text=one.name)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
