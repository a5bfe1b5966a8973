"""The page about a night: everything is on it, nothing outside of it is needed, in the light and in the dark."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.strategy import StrategyConfig, backtest
from storage.evaluations import forecast_frame
from tasks.reports.chart_style import COLOURS, Chart
from tasks.reports.equity_chart import equity_chart
from tasks.reports.fan_charts import fan_chart
from tasks.reports.judgement_charts import (
    coverage_chart,
    leaderboard_chart,
    pit_chart,
    postprocessing_chart,
    reliability_chart,
    skill_chart,
)
from tasks.reports.loss_chart import loss_chart
from tasks.reports.night_report import NightPage, write_page
from tests.support.scores import HOUR_MS, planted_scores


@pytest.fixture(scope="module")
def scores() -> Scores:
    rng = np.random.default_rng(0)
    loss = rng.uniform(0.01, 0.03, 60)
    models = {"challenger": loss, "base": loss * 1.3, "last_value": loss * 1.2, "drift": loss * 1.25}
    return planted_scores(models | {"blend": loss[::-1]}, series=2)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that got better until step 20 and worse after."""
    folder = tmp_path_factory.mktemp("job")
    lines = [{"phase": "train", "step": step, "loss": 2 - step / 100} for step in range(1, 41)]
    losses = ((0, 2.2), (10, 2.0), (20, 1.9), (30, 1.95), (40, 2.09))
    lines += [{"phase": "validation", "step": step, "loss": loss} for step, loss in losses]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def charts(scores: Scores, job: Path) -> list[Chart]:
    return [
        leaderboard_chart(leaderboard(scores)),
        loss_chart({"tokenizer": job, "predictor": job}),
        _extremes(scores),
        skill_chart(scores, "blend"),
        coverage_chart(scores, "blend"),
        pit_chart(scores, "blend"),
        reliability_chart(scores, "blend"),
        _equity(scores),
    ]


@pytest.fixture(scope="module")
def page(scores: Scores, charts: list[Chart], tmp_path_factory: pytest.TempPathFactory) -> str:
    report = NightPage(
        title="demo, night <1>",
        subtitle="judged 2024-09-07 00:31 UTC",
        verdict="reject",
        reasons=["challenger & base differ"],
        notes=["read with care"],
        facts={"dataset": "e28cdebe"},
        leaderboard=leaderboard(scores),
        charts=charts,
        settings={"predictor.epochs": 3, "series": ("um:A", "um:B"), "start": None},
    )
    return write_page(report, tmp_path_factory.mktemp("page") / "report.html").read_text()


def _equity(scores: Scores) -> Chart:
    chart = equity_chart(scores, StrategyConfig())
    assert chart is not None
    return chart


def _extremes(scores: Scores) -> Chart:
    """Forecasts that are the last close, for every origin of the blend."""
    count, horizon = scores.realised.shape
    closes = np.full((1, count, horizon), 100.0)
    table = forecast_frame(
        models=["blend"],
        series=[scores.series[index] for index in scores.series_index],
        origin_ms=scores.origin_ms,
        open_time=scores.origin_ms[:, None] + HOUR_MS * np.arange(1, horizon + 1),
        quantiles=closes[..., None] * np.linspace(0.98, 1.02, 5),
        levels=(0.05, 0.25, 0.5, 0.75, 0.95),
        mean=closes,
        realised=closes[0],
    )

    def past(name: str, origin_ms: int, bars: int) -> tuple[np.ndarray, np.ndarray]:
        return origin_ms - HOUR_MS * np.arange(bars - 1, -1, -1), np.full(bars, 100.0)

    return fan_chart(scores, "blend", table, past)


class _Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    tags = _Reader(page).tags
    assert not {"img", "link", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    outside = [found for found in re.findall(r"url\((.{1,12})", page) if not found.startswith("#")]
    assert outside == []
    assert "@import" not in page


def test_what_was_given_is_on_the_page_and_is_text_there(page: str, scores: Scores) -> None:
    text = _Reader(page).text
    for shown in (
        "demo, night <1>",
        "challenger & base differ",
        "read with care",
        "e28cdebe",
        "um:A, um:B",
        "reject",
    ):
        assert shown in text
    for row in leaderboard(scores):
        assert row["model"].replace("_", " ") in text
        assert f"{row['crps_bps']:.1f}" in text
    assert "predictor.epochs" in text


def test_hostile_text_is_shown_and_neither_runs_nor_reaches_a_terminal(
    scores: Scores, tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m\" onload='x' \u202e"
    report = NightPage(
        title=hostile,
        subtitle=hostile,
        verdict=hostile,
        reasons=[hostile],
        notes=[hostile],
        facts={hostile: hostile},
        leaderboard=[{**row, "series": hostile, "model": hostile} for row in leaderboard(scores)[:2]]
        + leaderboard(scores),
        charts=[Chart("pit", hostile, hostile, pit_chart(scores, "blend").figure)],
        settings={hostile: hostile, "series": (hostile,)},
    )
    page = write_page(report, tmp_path / "report.html").read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", page)
    reader = _Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1, "that of the button"
    assert {name for _, attributes in reader.tags for name in attributes if name.startswith("on")} == {
        "onclick"
    }
    shown = hostile.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert reader.text.count(shown) == 16


def test_every_picture_is_on_the_page_with_its_words_as_text(page: str, charts: list[Chart]) -> None:
    reader = _Reader(page)
    named = [attributes["aria-label"] for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert named == [chart.title for chart in charts]
    assert [tag for tag, _ in reader.tags].count("svg") == len(charts)
    for words in ("optimizer step", "CRPS skill against the last value", "stated P(up)", "what happened"):
        assert words in reader.text


def test_no_two_pictures_share_an_id_and_every_reference_is_to_one(page: str) -> None:
    ids = [attributes["id"] for _, attributes in _Reader(page).tags if attributes.get("id")]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert referred <= set(ids)


def test_colours_are_named_so_that_a_dark_page_has_its_own(page: str) -> None:
    body = page.partition("</style>")[2]
    for name, (light, dark) in COLOURS.items():
        assert light not in body
        assert f"--{name}:{light}" in page
        assert page.count(f"--{name}:{dark}") == 2, "by the system's wish and by the button"
    assert "var(--blue)" in body


def test_the_best_of_a_column_is_marked(page: str) -> None:
    first = page.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", first, flags=re.S)
    marked = [name for row in rows if "<td class=best>" in row for name in re.findall(r"row\">([^<]+)<", row)]
    assert "challenger" in marked


def test_a_model_far_below_all_others_is_an_arrow_at_the_edge_and_squeezes_no_other() -> None:
    skills = {"challenger": 0.02, "last_value": 0.0, "base": -0.04, "drift": -0.01, "base_raw": -3.2}
    rows = [
        {
            "series": "all",
            "model": name,
            "skill": skill,
            "skill_low": skill - 0.005,
            "skill_high": skill + 0.005,
        }
        for name, skill in skills.items()
    ]
    (axis,) = leaderboard_chart(rows).figure.axes
    left, right = axis.get_xlim()
    assert -0.06 < left < -0.045
    assert 0.025 < right < 0.04
    marks = {line.get_marker(): line for line in axis.lines if len(line.get_xdata()) == 1}
    assert marks["<"].get_xdata() == [left]
    assert sum(line.get_marker() == "<" for line in axis.lines) == 1
    assert "-3.200" in [text.get_text() for text in axis.texts]


def test_two_models_are_shown_whole_however_far_apart() -> None:
    rows = [
        {"series": "all", "model": name, "skill": skill}
        for name, skill in (("last_value", 0.0), ("base", -3.2))
    ]
    (axis,) = leaderboard_chart(rows).figure.axes
    assert axis.get_xlim()[0] < -3.2
    assert "<" not in [line.get_marker() for line in axis.lines]


def test_the_extremes_are_the_origins_with_the_lowest_the_middle_and_the_highest_crps(scores: Scores) -> None:
    losses = np.sort(scores.crps[scores.index("blend")].mean(axis=1)) * 10_000
    titles = [axis.get_title() for axis in _extremes(scores).figure.axes]
    for title, word, loss in zip(titles, ("best", "median", "worst"), losses[[0, 30, -1]], strict=True):
        assert title.startswith(f"{word}: um:COIN")
        assert title.endswith(f"UTC, CRPS {loss:.0f} bps")


def test_every_chart_shows_what_is_served_first_and_says_which_it_is(charts: list[Chart]) -> None:
    drawn = {chart.name: chart for chart in charts}
    for name in ("fans_extremes", "skill", "coverage", "pit", "reliability"):
        assert "served (blend)" in drawn[name].caption, name
    for name in ("skill", "pit", "reliability"):
        (legend,) = drawn[name].figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        models = [one for one in labels if one in ("served: blend", "challenger", "base")]
        assert models == ["served: blend", "challenger", "base"], name


def test_the_kept_step_and_what_lies_beyond_it_are_marked(job: Path) -> None:
    (axis,) = loss_chart({"predictor": job}).figure.axes
    words = [text.get_text() for text in axis.texts]
    assert "kept: step 20, 1.9000" in words
    assert "+10.00 % at the end" in words
    (shaded,) = [patch for patch in axis.patches if patch.get_label() == "overfitting"]
    corners = shaded.get_path().vertices if not hasattr(shaded, "get_x") else None
    left = shaded.get_x() if corners is None else corners[:, 0].min()
    assert left == 20


def test_a_png_is_written_whole_and_the_svg_after_it_is_the_same_as_before(
    scores: Scores, tmp_path: Path
) -> None:
    path = pit_chart(scores, "blend").png(tmp_path)
    assert path == tmp_path / "pit.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert pit_chart(scores, "blend").svg() == pit_chart(scores, "blend").svg()


def test_the_strategy_is_marked_an_illustration_and_its_curve_is_the_mean_of_the_series(
    scores: Scores,
) -> None:
    chart = _equity(scores)
    assert chart.title.startswith("Illustration")
    assert "No part of the gate" in chart.caption
    tested = [backtest(scores, "challenger", name, StrategyConfig()) for name in scores.series]
    (axis,) = chart.figure.axes
    drawn = {line.get_label(): line for line in axis.lines}["challenger"]
    assert len(set(map(len, [one.time_ms for one in tested]))) == 1, "the planted series share their times"
    np.testing.assert_allclose(drawn.get_ydata(), np.mean([one.equity for one in tested], axis=0))
    for one in tested:
        assert f"{one.series} {100 * (one.equity[-1] - 1):+.1f} %" in chart.caption


def test_the_chart_of_post_processing_shows_each_step_against_the_references_and_no_outlier_squeezes_it():
    crps = np.random.default_rng(1).uniform(0.009, 0.011, 80)
    plain = planted_scores({"challenger": crps, "base": crps, "references": crps})
    assert postprocessing_chart(plain) is None
    steps = np.stack([np.repeat(factor * crps[:, None], 4, axis=1) for factor in (5.0, 1.02, 0.99, 0.98)])
    staged = replace(plain, stages=("raw", "location", "blend", "spread"), stage_crps=steps)
    chart = postprocessing_chart(staged)
    assert chart is not None
    (axis,) = chart.figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()][::-1] == [
        "as the network draws",
        "location shrunk",
        "pooled with the references",
        "spread scaled",
    ]
    told = [text.get_text() for text in axis.texts]
    assert told == ["+0.020", "+0.010", "-0.020", "-4.000"]
    assert axis.get_xlim()[0] > -0.5
