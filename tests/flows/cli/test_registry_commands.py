"""`kronos promote`, `kronos rollback` and `kronos doctor --repair` as they are typed."""

from pathlib import Path

import pytest

from storage.registry import read_champion
from tasks.tracking.registered import move_alias
from tests.support.champions import RECIPE, Nights, night_id
from tests.support.terminal import Terminal


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    nights = Nights.at(tmp_path_factory.mktemp("commands"))
    nights.finish(1)
    nights.finish(2)
    nights.finish(3, promoted=False)
    return nights


@pytest.fixture
def kronos(nights: Nights, tmp_path: Path, terminal: Terminal) -> Terminal:
    terminal.home = nights.copy(tmp_path / "copy").home.root
    return terminal


def _serving(kronos: Terminal, nights: Nights) -> str:
    champion = read_champion(type(nights.home)(kronos.home), RECIPE)
    assert champion is not None
    return champion.night


def test_a_rollback_and_a_promotion_are_one_line_each_and_show_who_served_and_why(
    kronos: Terminal, nights: Nights
) -> None:
    outcome = kronos("rollback", "--recipe", RECIPE, "--reason", "the fan was too narrow")
    assert outcome.code == 0, outcome.err
    assert _serving(kronos, nights) == night_id(1)
    rows = [line for line in outcome.out.splitlines() if "000000" in line]
    assert [("kronos run" in row, "kronos rollback" in row) for row in rows] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert "the fan was too narrow" in rows[-1]
    assert kronos("promote", "-r", RECIPE, "--to", "3000", "--reason", "we want it").code == 0
    assert _serving(kronos, nights) == night_id(3)


def test_a_run_that_nobody_knows_and_a_change_without_a_reason_are_refused(kronos: Terminal) -> None:
    assert "none that begins with 'feed'" in kronos.refused(
        "rollback", "-r", RECIPE, "--to", "feed", "--reason", "x"
    )
    assert "Missing option '--reason'" in kronos.refused("rollback", "-r", RECIPE)
    assert "Expected a recipe among" in kronos.refused("rollback", "-r", "dema", "--reason", "x")


def test_the_doctor_finds_an_alias_that_shows_somebody_else_and_repairs_it(
    kronos: Terminal, nights: Nights
) -> None:
    move_alias(type(nights.home)(kronos.home), RECIPE, "champion", "1")
    sick = kronos("doctor")
    assert sick.code == 1
    assert "version 1, should be version 2" in " ".join(sick.out.replace("│", " ").split())
    mended = kronos("doctor", "--repair")
    assert mended.code == 0, mended.out
    assert f"champion of demo is back at night {night_id(2)}" in mended.err
    assert kronos("doctor").code == 0
