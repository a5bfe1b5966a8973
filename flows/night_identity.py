"""What identifies a night, and its MLflow run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.config import RunConfig, config_digest, knobs
from storage.layout import Home
from tasks.code_digest import code_digest
from tasks.refs import BuiltDataset, PairRef, RunRef
from tasks.reports.prefect_artifacts import show_run
from tasks.tracking.runs import begin_run, end_dead_runs, end_run, log_dataset, system_metrics
from tasks.tracking.store import tolerant

__all__ = ["Night", "night_identity", "tracked"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """A night under way: where, with which settings and candles, what identifies it, and where it is recorded."""

    home: Home
    config: RunConfig
    dataset: BuiltDataset
    identity: str
    run: RunRef


def night_identity(config: RunConfig, dataset: BuiltDataset, base: PairRef) -> str:
    """Sixteen hex digits of all that decides a night: candles, settings, starting weights, code."""
    parts = (
        dataset.digest,
        config_digest(config),
        base.tokenizer_digest,
        base.predictor_digest,
        code_digest(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def tracked(
    home: Home, config: RunConfig, dataset: BuiltDataset, identity: str, *, alone: bool = True
) -> Iterator[RunRef]:
    """The MLflow run of this identity, begun or resumed; FINISHED, FAILED or, when cancelled, KILLED at the end.

    Who is not `alone` leaves other running runs of the home as they are: those of the nights beside it.
    """
    if alone:
        end_dead_runs(home)
    run = begin_run(
        home,
        experiment=f"kronos-{config.recipe}",
        name=flow_run.name,
        identity=identity,
        params={knob.path: knob.value for knob in knobs(config)},
        tags={
            "kronos.recipe": config.recipe,
            "kronos.dataset_digest": dataset.digest,
            "kronos.config_digest": config_digest(config),
            "kronos.version": version("kronos-nightly"),
            "kronos.code_digest": code_digest(),
            "prefect.flow_run_id": flow_run.id,
            "prefect.flow_run_url": url_for("flow-run", obj_id=flow_run.id) or "",
        },
    )
    show_run(run)
    try:
        log_dataset(run, path=str(dataset.path), digest=dataset.digest, name=config.recipe)
        with system_metrics(run):
            yield run
    except (TerminationSignal, KeyboardInterrupt):
        with tolerant("the end of the run"):  # the next run closes it; the cause is what matters
            end_run(run, "KILLED")
        raise
    except BaseException:
        with tolerant("the end of the run"):
            end_run(run, "FAILED")
        raise
    end_run(run, "FINISHED")
