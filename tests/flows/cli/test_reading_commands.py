"""Commands that only read answer at once, from a home that nobody may write to, and leave it as it was."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.lake import Lake
from storage.ledger import Source
from storage.schema import SeriesKey
from tests.support.candles import full_candles
from tests.support.snapshots import snapshot
from tests.support.terminal import ROOT, closed_url

SERIES = "um:DOGEUSDT"
HEAVY = {
    *("torch", "prefect", "mlflow", "scipy", "scoringrules", "matplotlib", "pandas", "pyarrow"),
    *("huggingface_hub", "requests", "httpx", "sqlalchemy", "fastapi", "pydantic", "numpy", "polars"),
}
SETTINGS = {"pydantic", "numpy", "polars"}  # bounds, datasets and series have theirs
MAY_IMPORT = {
    "--help": set[str](),
    "recipes": SETTINGS,
    "recipes doge_1h": SETTINGS,
    "candles": {"polars"},
    "export {out} --series um:DOGEUSDT": SETTINGS,
    "verify --sample 0": SETTINGS,
    "gc": SETTINGS,
    "scores": {*SETTINGS, "scipy", "scoringrules"},
    "doctor": {"numpy", "polars", "requests", "torch"},
}
ON_A_HOME = {"candles", "export {out} --series um:DOGEUSDT", "verify --sample 0", "doctor", "gc"}

# Root may write anywhere, so what writes below the home is refused by an audit hook.
RUN = """
import errno, json, os, sys

home, read_only, heavy = sys.argv[1], sys.argv[2] == "read-only", set(sys.argv[3].split())
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chmod", "os.truncate", "sqlite3.connect"}


def refuse(event, arguments):
    if (event == "open" and arguments[2] & WRITES) or event in CHANGES:
        if str(arguments[0]).startswith(home):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))


if read_only:
    may = os.access
    os.access = lambda path, mode: may(path, mode) and not (mode & os.W_OK and str(path).startswith(home))
    sys.addaudithook(refuse)
sys.argv = ["kronos", "--home", home, *sys.argv[4:]]
from flows.cli.program import main

code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code
print(json.dumps({"code": code, "imported": sorted(heavy & set(sys.modules))}))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Lake(tmp_path / "home" / "lake").upsert(
        SeriesKey.parse(SERIES, "1h"), full_candles(900), source=Source(kind="import", detail="test")
    )
    return tmp_path / "home"


class Answer:
    """What a command in a process of its own said, how it ended, and which heavy packages it imported."""

    def __init__(self, home: Path, typed: str, *, read_only: bool = False) -> None:
        words = typed.format(out=home.parent / "out.csv").split()
        away = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), closed_url())
        away |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        away |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "KRONOS_", "HF_"))
        }
        how = "read-only" if read_only else "as it is"
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(home), how, " ".join(HEAVY), *words],
            cwd=ROOT,
            env=inherited | away,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        *said, last = done.stdout.splitlines()
        self.out, self.err = "\n".join(said), done.stderr
        self.code, self.imported = json.loads(last)["code"], set(json.loads(last)["imported"])


@pytest.mark.parametrize("typed", MAY_IMPORT)
def test_what_only_reads_imports_no_more_than_it_needs_and_leaves_the_home_as_it_was(
    typed: str, home: Path
) -> None:
    before = snapshot(home)
    answer = Answer(home, typed)
    assert answer.imported <= MAY_IMPORT[typed]
    assert answer.code == (1 if typed == "scores" else 0), answer.err  # there is no champion
    if typed != "scores":
        assert snapshot(home) == before


@pytest.mark.parametrize("typed", sorted(ON_A_HOME))
def test_what_only_reads_answers_from_a_home_that_cannot_be_written(typed: str, home: Path) -> None:
    before = snapshot(home)
    answer = Answer(home, typed, read_only=True)
    assert snapshot(home) == before
    if typed == "doctor":
        assert answer.code == 1
        assert f"{home}cannotbewritten" in re.sub(r"[│\s]+", "", answer.out)
        return
    assert (answer.code, answer.err) == (0, "")
    assert typed == "gc" or "900" in answer.out or f"{SERIES}:1h: sound" in answer.out


@pytest.mark.parametrize("typed", sorted(ON_A_HOME))
def test_what_only_reads_makes_no_home(typed: str, tmp_path: Path) -> None:
    answer = Answer(tmp_path / "nowhere", typed)
    assert not (tmp_path / "nowhere").exists()
    assert answer.code == (0 if typed in ("doctor", "gc") else 1)
    assert "Traceback" not in answer.err


def test_a_comparison_with_the_exchange_leaves_the_home_as_it_was(home: Path, tmp_path: Path) -> None:
    (tmp_path / "klines").mkdir()
    Answer(home, f"export {tmp_path}/klines/um_DOGEUSDT_1h.parquet --series {SERIES}")
    before = snapshot(home)
    answer = Answer(home, f"verify --klines {tmp_path}/klines", read_only=True)
    assert snapshot(home) == before
    assert answer.code == 0, answer.err
    assert "3 pages and zips of each compared with the exchange: nothing wrong" in answer.out


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_a_comparison_with_the_exchange_writes_the_budget_that_processes_share_and_nothing_else(
    home: Path, tmp_path: Path, read_only: bool
) -> None:
    (tmp_path / "klines").mkdir()
    Answer(home, f"export {tmp_path}/klines/um_DOGEUSDT_1h.parquet --series {SERIES}")
    assert Answer(home, f"ingest --klines {tmp_path}/klines --series {SERIES}").code == 0
    shutil.rmtree(home / "prefect")
    before = snapshot(home)
    assert "lake/.budget/um.json" in before
    answer = Answer(home, f"verify --klines {tmp_path}/klines", read_only=read_only)
    assert "compared with the exchange: nothing wrong" in answer.out
    after = snapshot(home)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert read_only or changed
    assert {name for name in changed if not name.startswith("lake/.budget")} == set()
    assert not read_only or not changed


def test_a_comparison_with_the_exchange_makes_no_home(tmp_path: Path) -> None:
    answer = Answer(tmp_path / "nowhere", "verify --sample 2")
    assert answer.code == 1
    assert not (tmp_path / "nowhere").exists()


def test_the_help_of_no_command_imports_what_the_command_needs(tmp_path: Path) -> None:
    code = (
        "import sys, click; from flows.cli.program import cli\n"
        "for command in cli.commands.values(): command.get_help(click.Context(command))\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
