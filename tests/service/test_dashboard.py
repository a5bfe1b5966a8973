"""The dashboard in a real browser: it loads alone, switches, lives, and says kindly what is wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from tests.support.browser import Page, browsing
from tests.support.candles import HOUR_MS, full_candles
from tests.support.serving import (
    BLEND,
    BTC,
    CANDLES,
    DOGE,
    HORIZON,
    LAST_MS,
    LOOKBACK,
    NOW_MS,
    Site,
    crown,
    keep_forecast,
    make_home,
    night_made_for,
    serving,
)

TOKEN = "0123456789abcdef-not-a-secret"
READY = "document.documentElement.dataset.state === 'ready'"
LOOK = "document.dispatchEvent(new Event('visibilitychange'))"  # as a tab does that comes to the front
LABEL = "document.querySelector('#chart').getAttribute('aria-label')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browsing() as page:
        page.size(1440, 900)
        yield page


@pytest.fixture
def page(browser: Page) -> Page:
    browser.go("about:blank")
    browser.errors.clear()
    return browser


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path)


def load(page: Page, site: Site, *, until: str = READY) -> None:
    page.go(site.url)
    page.run("localStorage.clear(), sessionStorage.clear()")
    page.go(f"{site.url}/?")
    page.until(until)


def test_it_loads_by_itself_and_shows_what_the_api_says(page: Page, home: Home) -> None:
    keep_forecast(home, BTC, origin_ms=LAST_MS - 24 * HOUR_MS)
    with serving(home) as site:
        load(page, site)
        said = site.get("/forecast", symbol=BTC.name, quantiles="0.5").json()
        label = page.run(LABEL)
        fetched = page.run("performance.getEntriesByType('resource').map(one => one.name)")
        page.until("document.querySelector('#chart').width > 0")
        painted = page.run(
            "(() => { const c = document.querySelector('#chart'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; return d.some(v => v) })()"
        )
    assert f"{CANDLES} candles to 2024-06-05T23:00" in label
    assert f"median {said['outlook']['median']:.3f}" in label
    assert painted
    assert fetched
    assert all(one.startswith(site.url) for one in fetched)
    assert "6 Jun 2024, 04:00 UTC" in page.text("#ahead")
    assert "an earlier model, on record" in page.text("#past")
    assert f"of {HORIZON} candles" in page.text("#past")
    assert "Promoted" in page.text("#gate")
    assert "challenger is better than base" in page.text("#gate")
    assert "109.4" in page.text("#scores")
    assert "no forecast on record yet" in page.text("#scores")
    assert "up to date" in page.text("#data")
    assert page.errors == []


def test_the_other_symbol_is_a_choice_away_and_in_the_address(page: Page, home: Home) -> None:
    with serving(home) as site:
        load(page, site)
        page.choose("#symbol", DOGE.name)
        page.until(f"{READY} && {LABEL}.includes('{DOGE.name}')")
        assert page.text("#name") == "DOGEUSDT"
        assert page.run("decodeURIComponent(location.hash)") == f"#{DOGE.name}/1h"
        assert page.text("#price") == f"{Lake(home.lake).read(DOGE)['close'][-1]:.3f}"
        page.go("about:blank")
        page.go(f"{site.url}/#{DOGE.name}/1h")
        page.until(f"{READY} && {LABEL}.includes('{DOGE.name}')")
    assert page.errors == []


def test_a_new_candle_appears_without_reload_and_the_forecast_at_the_next_refresh(
    page: Page, home: Home
) -> None:
    with serving(home, now_ms=NOW_MS + HOUR_MS) as site:
        load(page, site)
        page.run("window.stays = true")
        longer = full_candles(CANDLES + 1, seed=0)
        Lake(home.lake).upsert(BTC, longer[CANDLES:], source=Source("rest", "x"))
        page.run(LOOK)
        page.until(f"{LABEL}.includes('{CANDLES + 1} candles to 2024-06-06T00:00')")
        assert page.text("#price") == f"{longer['close'][-1]:.3f}"
        assert "04:00 UTC" in page.text("#ahead")
        page.run("document.querySelector('#now').click()")
        page.until("document.querySelector('#ahead').innerText.includes('05:00 UTC')")
        assert page.run("window.stays") is True
    assert page.errors == []


def test_a_new_champion_is_taken_without_reload(page: Page, home: Home) -> None:
    with serving(home) as site:
        load(page, site)
        new = crown(home, seed=1).predictor_digest
        site.service.champion_models.refresh()
        page.run(LOOK)
        page.until(f"document.querySelector('#model').innerText.includes('{new}')")
    assert page.errors == []


def test_stale_candles_are_called_stale(page: Page, home: Home) -> None:
    with serving(home, now_ms=NOW_MS + 50 * HOUR_MS) as site:
        load(page, site)
    assert "Stale candles" in page.text("#banners")
    assert "closed 2 days ago and 50 are missing" in page.text("#banners")
    assert "50 candles behind" in page.text("#data")


def test_without_a_model_it_shows_candles_and_what_to_do(page: Page, tmp_path: Path) -> None:
    with serving(make_home(tmp_path, champion=False)) as site:
        load(page, site)
    assert "No model yet" in page.text("#banners")
    assert "kronos run" in page.text("#banners")
    assert f"{CANDLES} candles" in page.run(LABEL)
    assert "no forecast" in page.run(LABEL)
    assert page.errors == []


def test_where_no_network_has_earned_a_place_the_references_forecast_by_name(
    page: Page, tmp_path: Path
) -> None:
    home = make_home(tmp_path, champion=False)
    night_made_for(home, lookback=LOOKBACK, horizon=HORIZON)
    with serving(home) as site:
        load(page, site)
    assert "what the references say" in page.text("#banners")
    said = page.text("#model")
    assert "references" in said
    assert "by the references: no network has earned a place yet" in said
    assert "ewma 50 %, bootstrap 50 %" in said
    assert f"forecast of {HORIZON} candles" in page.run(LABEL)
    assert "the references, recomputed" in page.text("#past")
    assert page.errors == []


def test_a_pooled_champion_shows_what_its_network_gives_and_adds(page: Page, tmp_path: Path) -> None:
    home = make_home(tmp_path, champion=False)
    crown(home, seed=0, postprocess=BLEND)
    with serving(home) as site:
        load(page, site)
    said = page.text("#model")
    assert "network 50 %, ewma 30 %, bootstrap 20 %" in said
    assert "the network adds 50 % of the paths" in said
    assert "0 to 50 % of the network's median move is kept" in said
    assert page.errors == []


def test_an_empty_lake_says_what_to_do_and_fills_by_itself(page: Page, tmp_path: Path) -> None:
    with serving(Home.at(tmp_path)) as site:
        load(page, site, until="document.documentElement.dataset.state === 'empty'")
        assert "kronos ingest" in page.text("#veil")
        make_home(tmp_path)
        site.service.champion_models.refresh()
        page.until(READY)
    assert page.run("document.querySelector('#veil').hidden") is True


def test_a_service_that_is_gone_is_said_and_forgiven(page: Page, home: Home) -> None:
    with serving(home) as site:
        load(page, site)
    page.run(LOOK)
    page.until("document.querySelector('#banners').innerText.includes('cannot be reached')")
    assert f"{CANDLES} candles" in page.run(LABEL)
    with serving(home, port=int(site.url.rpartition(":")[2])):
        page.run(LOOK)
        page.until("document.querySelector('#banners').innerText === ''")
    assert page.errors == []


def test_a_token_is_asked_for_until_it_fits(page: Page, home: Home) -> None:
    with serving(home, token=TOKEN) as site:
        load(page, site, until="document.querySelector('#ask').open")
        for given in ("wrong", TOKEN):
            page.run(
                f"document.querySelector('#token').value = '{given}'; document.querySelector('#ask button').click()"
            )
            page.until(READY if given == TOKEN else "document.querySelector('#ask').open")
        assert page.text("#name") == "BTCUSDT"
    assert TOKEN not in page.run("document.documentElement.outerHTML")


def test_the_keyboard_reads_candle_by_candle(page: Page, home: Home) -> None:
    closes = Lake(home.lake).read(BTC)["close"]
    with serving(home) as site:
        load(page, site)
        page.run("document.querySelector('#chart').focus()")
        page.press("ArrowLeft")
        assert f"C {closes[-2]:.3f}" in page.text("#readout")
        assert f"C {closes[-2]:.3f}" in page.run("document.querySelector('#spoken').textContent")
        for _ in range(3):
            page.press("ArrowRight")
        assert "median" in page.text("#readout")
        assert "90 %" in page.text("#readout")


def test_times_are_in_utc_and_local_and_the_theme_follows_the_system_or_the_choice(
    page: Page, home: Home
) -> None:
    page.call("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
    page.scheme("dark")
    with serving(home) as site:
        load(page, site)
        assert page.run("document.documentElement.dataset.theme") == "dark"
        assert "6 Jun 2024, 04:00 UTC" in page.text("#ahead")
        assert "6 Jun 2024, 13:00 local" in page.text("#ahead")
        page.run("document.querySelector('#zone').click(), document.querySelector('#theme').click()")
        assert page.text("#asof").endswith("6 Jun 2024, 09:00 local (00:00 UTC)")
        assert page.run("document.documentElement.dataset.theme") == "light"
    page.call("Emulation.setTimezoneOverride", timezoneId="UTC")


def test_the_refresh_interval_is_1_to_1440_minutes(page: Page, home: Home) -> None:
    with serving(home) as site:
        load(page, site)
        for given, kept in (("0", "15"), ("5000", "1440"), ("2", "2")):
            page.choose("#every", given)
            assert page.run("document.querySelector('#every').value") == kept
        page.until("/^(2:00|1:5)/.test(document.querySelector('#countdown').innerText)")


def test_what_is_said_of_the_forecast_stays_inside_its_panel(page: Page, home: Home) -> None:
    """Between the widths of a phone and a wide window, too."""
    with serving(home) as site:
        load(page, site)
        widest = (
            "Math.max(...[...document.querySelectorAll('.fact')].map(e => e.getBoundingClientRect().right))"
        )
        outside = []
        for width in (1440, 1200, 1000, 730):
            page.size(width, 900)
            border = page.run("document.querySelector('.stage').getBoundingClientRect().right")
            outside += [width] * (page.run(widest) > border)
    page.size(1440, 900)
    assert outside == []


def test_a_phone_needs_no_sideways_scrolling(page: Page, home: Home) -> None:
    page.size(390, 844, scale=2, touch=True)
    with serving(home, now_ms=NOW_MS + 50 * HOUR_MS) as site:
        load(page, site)
        wide = page.run("document.documentElement.scrollWidth")
        small = page.run(
            "[...document.querySelectorAll('button, select, input[type=number]')].filter(e => e.offsetParent"
            " && e.getBoundingClientRect().height < 36).map(e => e.id)"
        )
    page.size(1440, 900)
    assert wide <= 390
    assert small == []
