"""An update is not "nothing new": code that determines results is part of what a night, a job, an evaluation is."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kronos_model
from flows.night_identity import night_identity
from flows.recipes import configure
from kronos_model.evaluation.config import EvaluationConfig
from tasks import code_digest as module
from tasks import evaluate, train
from tasks.code_digest import code_digest, sources
from tasks.refs import PairRef

PAIR = PairRef(tokenizer="t", tokenizer_digest="1" * 16, predictor="p", predictor_digest="2" * 16, origin="x")
DATASET: Any = SimpleNamespace(path="dataset", digest="3" * 64)


@pytest.fixture
def fresh() -> Iterator[None]:
    code_digest.cache_clear()
    yield
    code_digest.cache_clear()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> list[tuple[str, Path]]:
    """The sources as files that a test may change."""
    copies = []
    for number, (name, path) in enumerate(sources()):
        (tmp_path / f"{number}.py").write_bytes(path.read_bytes())
        copies.append((name, tmp_path / f"{number}.py"))
    monkeypatch.setattr(module, "sources", lambda: copies)
    return copies


def test_every_file_of_the_model_counts_and_what_prepares_and_judges_it(fresh: None) -> None:
    names = {path.resolve() for _, path in sources()}
    assert {path.resolve() for path in Path(str(kronos_model.__file__)).parent.rglob("*.py")} <= names
    outside = {name for name, path in sources() if "/" not in name and "\\" not in name}
    assert {"storage.past", "storage.dataset", "storage.splits", "tasks.evaluate", "flows.judge"} <= outside
    assert {"storage.clipped_values", "tasks.dataset", "tasks.train"} <= outside


def test_any_change_of_any_of_them_changes_it(copied: list[tuple[str, Path]]) -> None:
    seen = {code_digest()}
    for _, path in copied:
        with path.open("a") as file:
            file.write("X = 1\n")
        code_digest.cache_clear()
        seen.add(code_digest())
    assert len(seen) == len(copied) + 1


def test_how_lines_end_is_no_change(copied: list[tuple[str, Path]]) -> None:
    before = code_digest()
    for _, path in copied:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    code_digest.cache_clear()
    assert code_digest() == before


def test_an_update_makes_another_night_another_job_and_another_evaluation(
    copied: list[tuple[str, Path]],
) -> None:
    def identities() -> list[str]:
        config = configure("demo")
        job = train._job("tokenizer", DATASET, PAIR, config.tokenizer, 0, None)
        return [
            night_identity(config, DATASET, PAIR),
            train._identity(job),
            evaluate._digest(DATASET, {"base": PAIR}, EvaluationConfig(), 0),
        ]

    before, again = identities(), identities()
    assert before == again
    copied[0][1].write_text("X = 1\n")
    code_digest.cache_clear()
    assert not set(before) & set(identities())
