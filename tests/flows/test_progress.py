"""The progress of an ingest: one line for all, bars where there is a terminal, and a way to stop."""

import io
import logging
import threading

import pytest
from rich.console import Console
from rich.progress import Progress

from tasks import progress as progress_module
from tasks.progress import IngestProgress, _DrawnProgress, ingest_progress


def weight() -> str:
    return "um 240 of 2,400"


def test_the_line_counts_series_candles_speed_weight_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = IngestProgress(4, weight)
    with progress.of("one") as report:
        report(500, 1_000)
        report(1_000, 1_000)
    with progress.of("two") as report:
        report(1_000, 2_000)
        now[0] += 10
        assert progress.line == (
            "1 of 4 series, 2,000 candles, 200 candles/s, weight um 240 of 2,400, 20 s left"
        )


def test_reports_from_many_threads_add_up() -> None:
    progress = IngestProgress(8, lambda: "")

    def work(label: str) -> None:
        with progress.of(label) as report:
            for done in range(0, 1_001, 10):
                report(done, 1_000)

    threads = [threading.Thread(target=work, args=(f"series {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.line.startswith("8 of 8 series, 8,000 candles")


def test_stopping_ends_what_is_under_way_at_its_next_report() -> None:
    progress = IngestProgress(1, weight)
    with progress.of("one") as report:
        report(1, 2)
        progress.stop()
        with pytest.raises(KeyboardInterrupt):
            report(2, 2)


def test_a_terminal_shows_the_series_under_way_and_the_line() -> None:
    screen = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = _DrawnProgress(2, weight, Progress(console=screen))
    with progress.of("um:BTCUSDT:1m") as report:
        report(1, 2)
        screen.print(progress)
    screen.print(progress)
    first, _, last = screen.file.getvalue().partition("0 of 2 series")  # type: ignore[attr-defined]
    assert "um:BTCUSDT:1m" in first
    assert "um:BTCUSDT:1m" not in last.partition("weight")[2]
    assert "1 of 2 series" in last


def test_without_a_terminal_there_are_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_module, "_LOG_EVERY_S", 0.0)
    with (
        caplog.at_level(logging.INFO),
        ingest_progress(1, weight=weight) as progress,
        progress.of("one") as report,
    ):
        report(5, 10)
    assert any("0 of 1 series, 5 candles" in record.message for record in caplog.records)
