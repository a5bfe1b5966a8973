"""Who served, and the records of nights, also after their home was moved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from storage import registry
from storage.errors import LockedError
from storage.layout import Home
from storage.registry import changing_champion, read_night, read_nights, write_night


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
