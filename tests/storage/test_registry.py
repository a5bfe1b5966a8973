"""Who served, and the records of nights, also after their home was moved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from storage import registry
from storage.errors import LockedError
from storage.layout import Home
from storage.registry import (
    Champion,
    changing_champion,
    read_history,
    read_night,
    read_nights,
    read_recorded,
    write_champion,
    write_night,
)


def night(root: Path, elsewhere: Path) -> dict[str, Any]:
    """A summary whose paths lie below `root`, but for weights that were taken from elsewhere."""
    return {
        "night": "n1",
        "reasons": [f"weights of {root}/x were compared with those of {root}", f"{root}/report.html"],
        "warnings": [f"um:DOGEUSDT: see {root}/lake"],
        "dataset": {"path": f"{root}/datasets/abc", "digest": "abc"},
        "stages": [
            {"stage": name, "job": f"{root}/jobs/{name}", "best": f"{root}/jobs/{name}/best"}
            for name in ("tokenizer", "predictor")
        ],
        "challenger": {
            "tokenizer": f"{elsewhere}/tokenizer",
            "predictor": f"{root}/jobs/predictor/best",
            "origin": f"{root}/jobs/predictor",
        },
        "report": f"{root}/jobs/evaluate-1/report.html",
        "published": [{"name": "kronos", "path": f"{root}/hub/kronos", "url": f"file://{root}/hub"}],
        "forecasts": [{"series": "um:DOGEUSDT", "path": f"{root}/forecasts/a", "figure": f"{root}/a.png"}],
        "not_forecast": [{"series": "um:BTCUSDT", "reason": f"expected candles in {root}/lake, found none"}],
    }


PATHS = (
    ("report",), ("dataset", "path"), ("challenger", "predictor"), ("published", 0, "path"),
    ("forecasts", 0, "path"), ("forecasts", 0, "figure"),
    *(("stages", at, name) for at in (0, 1) for name in ("job", "best")),
)  # fmt: skip


def moved(summary: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """The same with the paths alone below `new`."""
    copy: dict[str, Any] = json.loads(json.dumps(summary))
    for *way, last in PATHS:
        entry: Any = copy
        for key in way:
            entry = entry[key]
        entry[last] = entry[last].replace(str(old), str(new), 1)
    return copy


@pytest.mark.parametrize("name", ["home", "other", 'with " and ü'])
def test_a_night_of_a_moved_home_has_its_paths_where_they_are_now_and_its_text_as_it_was(
    tmp_path: Path, name: str
) -> None:
    old, new = Home.at(tmp_path / "mnt" / "home"), Home(tmp_path / name)
    # It merely contains the old home's path, as a backup of a whole disk does, or begins like it.
    for number, elsewhere in enumerate((tmp_path / f"backup{old.root}", Path(f"{old.root}-2"))):
        told = night(old.root, elsewhere)
        write_night(old, "demo", str(number), told)
        assert read_night(old, "demo", str(number)) == told
    shutil.copytree(old.root, new.root)
    assert [read_night(new, "demo", str(number)) for number in (0, 1)] == [
        moved(night(old.root, elsewhere), old.root, new.root)
        for elsewhere in (tmp_path / f"backup{old.root}", Path(f"{old.root}-2"))
    ]
    assert {one["night"] for one in read_nights(new, "demo")} == {"n1"}


def test_a_night_recorded_before_homes_could_be_moved_is_read_as_it_is(tmp_path: Path) -> None:
    home, told = Home.at(tmp_path / "home"), night(tmp_path / "old", tmp_path)
    path = home.models / "demo" / "nights" / "n1.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(told))
    assert read_night(home, "demo", "n1") == told


def test_while_somebody_changes_a_champion_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_PATIENCE_S", 0.0)
    home = Home.at(tmp_path)
    with changing_champion(home, "demo"):
        with pytest.raises(LockedError, match=r"expected the champion of demo to be free, found process \d+"):
            changing_champion(home, "demo").__enter__()
        with changing_champion(home, "other"):
            pass
    with changing_champion(home, "demo"):
        pass


def champion(*paths: Path, previous: Champion | None = None, night: str = "n1") -> Champion:
    """One that was published into these folders."""
    return Champion(
        tokenizer="models/demo/x/tokenizer", tokenizer_digest="cd" * 8, predictor="models/demo/x/predictor",
        predictor_digest="ab" * 8, night=night, mlflow_run="r", since=f"2024-01-01T00:00:00+00:00 {night}", reasons=(),
        published=tuple({"name": path.name, "path": str(path)} for path in paths), previous=previous,
    )  # fmt: skip


def test_where_a_champion_was_published_is_found_again_after_its_home_was_moved(tmp_path: Path) -> None:
    old, new, elsewhere = Home.at(tmp_path / "old"), Home(tmp_path / "new"), tmp_path / "elsewhere"
    before = champion(old.hub / "one")
    write_champion(old, "demo", before)
    now = champion(old.hub / "two", elsewhere, previous=before, night="n2")
    write_champion(old, "demo", now)
    assert read_recorded(old, "demo") == now
    kept = [
        path.read_text() for path in (old.models / "demo").iterdir() if path.suffix in (".json", ".jsonl")
    ]
    assert len(kept) == 2
    assert all(str(old.root) not in text for text in kept)
    shutil.copytree(old.root, new.root)
    found = read_recorded(new, "demo")
    assert found == champion(new.hub / "two", elsewhere, previous=champion(new.hub / "one"), night="n2")
    assert [one.champion.published[0]["path"] for one in read_history(new, "demo")] == [
        str(new.hub / "one"),
        str(new.hub / "two"),
    ]


def test_a_champion_recorded_with_whole_paths_is_read_as_it_is(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    write_champion(home, "demo", champion(home.hub / "one"))
    record = home.models / "demo" / "champion.json"
    told = json.loads(record.read_text())
    assert told["published"][0]["path"] == "hub/one"
    told["published"][0]["path"] = str(home.hub / "one")
    record.write_text(json.dumps(told))
    assert read_recorded(home, "demo") == champion(home.hub / "one")
