"""A short drill: a night killed while it trains, the next in a storm of the exchange. `make drills` runs thirty."""

import random
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from tests.drills.faults import FAULTS
from tests.drills.nights import broken, plan, run_nights
from tests.drills.site import drill_site


def test_a_plan_of_thirty_nights_has_every_fault_and_begins_and_ends_undisturbed() -> None:
    kinds = plan(30, random.Random(0))
    assert len(kinds) == 30
    assert set(kinds) == set(FAULTS)
    assert kinds[0] == kinds[-1] == "nothing"


def test_after_bad_nights_candles_champion_registry_hub_and_service_agree(
    tmp_path: Path, prefect_api: None
) -> None:
    kinds = ("kill-training", "exchange-storm")
    url = str(PREFECT_API_URL.value())
    with drill_site(tmp_path, nights=len(kinds), prefect=url) as site:
        records = list(run_nights(site, kinds, random.Random(1), tidy=False))
        assert [one.end for one in records] == ["killed", "promote"]
        assert broken(site, records) == []
