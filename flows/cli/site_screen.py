"""What the terminal shows of a site: its processes, its deployments, the doctor's findings, what is old."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from flows.cli.screen import console, lines

if TYPE_CHECKING:
    from flows.site.deploy import Deployed
    from flows.site.doctor import CheckResult
    from flows.site.processes import ServerProcess
    from storage.layout import Home
    from storage.retention import Expired

__all__ = ["show_deployed", "show_expired", "show_findings", "show_ready"]

_MARKS = {"ok": Text("ok", "green"), "note": Text("note", "yellow"), "bad": Text("missing", "red")}


def show_expired(found: Sequence[Expired], home: Home, *, deleted: bool) -> None:
    """What is, or would be, forgotten, by kind."""
    table = Table(
        "kind", "files and folders", "MB", "oldest, days", title="Deleted" if deleted else "Expired"
    )
    for kind in dict.fromkeys(one.kind for one in found):
        some = [one for one in found if one.kind == kind]
        size = sum(one.size for one in some) / 1e6
        table.add_row(kind, f"{len(some):,}", f"{size:,.1f}", f"{max(one.age_days for one in some):,.0f}")
    screen = console()
    if not found:
        screen.print(f"Nothing in {home.root} is older than it may be.", highlight=False, soft_wrap=True)
        return
    screen.print(table)
    if not deleted:
        screen.print("Nothing was deleted; `kronos gc --yes` does it.")


def show_findings(findings: Sequence[CheckResult]) -> None:
    """What the doctor found."""
    table = Table("", "what", Column("found", overflow="fold"), show_header=False)
    for finding in findings:
        table.add_row(_MARKS[finding.state], finding.what, finding.found)
    console().print(table)


def show_deployed(done: Sequence[Deployed]) -> None:
    """What a deployment changed, and what was so already."""
    for one in done:
        lines().print(f"{'deployed ' if one.changed else 'unchanged'}  {one.what}", highlight=False)


def show_ready(service: ServerProcess) -> None:
    """Where people find a process of the site, or what it does."""
    from flows.site.processes import POOL

    told = service.url or f"runs what is due in {POOL}; Ctrl-C stops everything that was started here"
    lines().print(f"{service.name:<9}  {told}", highlight=False)
