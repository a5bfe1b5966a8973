"""The MLflow run of a night that ends badly."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from flows import night_identity as tracked_module
from flows.night_identity import tracked
from flows.recipes import configure
from storage.layout import Home


@contextmanager
def _block(_: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_why_a_night_ended_is_told_also_where_mlflow_does_not_answer_any_more(
    cause: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise MlflowException("connection refused")

    for name in ("end_dead_runs", "begin_run", "show_run", "log_dataset", "url_for"):
        monkeypatch.setattr(tracked_module, name, lambda *_, **__: None)
    monkeypatch.setattr(tracked_module, "system_metrics", _block)
    monkeypatch.setattr(tracked_module, "end_run", away)
    home: Any = Home.__new__(Home)
    dataset: Any = SimpleNamespace(path="dataset", digest="0" * 16)
    with pytest.raises(type(cause)) as caught, tracked(home, configure("demo"), dataset, "night"):
        raise cause
    assert caught.value is cause
    assert "MLflow did not take the end of the run (connection refused)" in caplog.text
