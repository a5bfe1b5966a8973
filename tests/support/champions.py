"""A home with finished nights whose models are tiny and untrained: who serves is all that matters here."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kronos_model.config import PRESETS
from kronos_model.files import model_digest
from kronos_model.hub import scratch_pair, write_metadata
from kronos_model.normalise import Normaliser
from kronos_model.publish_config import PublishConfig
from kronos_model.sampling import SamplingConfig
from storage.dataset import BuiltDataset, DatasetConfig
from storage.layout import Home
from storage.registry import Champion, read_champion, write_night
from tasks.promotion import promote, register
from tasks.refs import PairRef, PublishedRef, RunRef, VerdictRef
from tasks.tracking.runs import begin_run
from tests.support.databases import lend_mlflow
from tests.support.datasets import build, make_candles

__all__ = ["RECIPE", "Nights"]

RECIPE = "demo"


@dataclass(frozen=True)
class Nights:
    """Nights of one recipe, finished one after another by `finish`."""

    home: Home
    dataset: BuiltDataset

    @classmethod
    def at(cls, root: Path) -> Nights:
        candles = {"um:DOGEUSDT": make_candles(300, seed=1), "um:BTCUSDT": make_candles(300, seed=2)}
        dataset = build(candles, DatasetConfig(lookback=16, horizon=4), root / "datasets")
        home = Home.at(root / "home")
        lend_mlflow(home)
        return cls(home, dataset)

    def copy(self, root: Path) -> Nights:
        """The same nights under another root."""
        shutil.copytree(self.home.root, root, ignore=shutil.ignore_patterns("mlartifacts"))
        for path in (root / "models").glob("*/nights/*.json"):
            path.write_text(path.read_text().replace(str(self.home.root), str(root)))
        return Nights(Home(root), self.dataset)

    def train(self, number: int) -> PairRef:
        """The challenger of a night, as its jobs leave it."""
        folder = self.home.jobs / f"night-{number}"
        pair = scratch_pair(PRESETS["tiny"], folder, 10 * number)
        if not (pair.predictor / "kronos_nightly.json").exists():
            metadata = {
                "interval": "1h",
                "lookback": 16,
                "horizon": 4,
                "max_context": 16,
                "s2_decode": "trained",
                "normaliser": Normaliser().to_dict(),
                "tokenizer_digest": pair.tokenizer_digest,
            }
            write_metadata(pair.predictor, metadata)
        return PairRef(
            tokenizer=str(pair.tokenizer),
            tokenizer_digest=pair.tokenizer_digest,
            predictor=str(pair.predictor),
            predictor_digest=model_digest(pair.predictor),
            origin=f"night {number}",
        )

    def run(self, number: int) -> RunRef:
        name = f"night {number}"
        return begin_run(self.home, experiment=RECIPE, name=name, identity=name, params={}, tags={})

    def register(self, number: int, verdict: VerdictRef) -> str:
        return register.fn(
            self.home,
            RECIPE,
            self.train(number),
            self.run(number),
            night=night_id(number),
            verdict=verdict,
            dataset=self.dataset,
            config_digest="c" * 16,
            sampling=SamplingConfig(samples=8),
            seed=0,
        )

    def finish(
        self, number: int, *, promoted: bool = True, published: tuple[PublishedRef, ...] = ()
    ) -> PairRef:
        """Register the challenger of a night, promote it where the gate said so, and write the night's summary."""
        model, run = self.train(number), self.run(number)
        verdict = VerdictRef(
            verdict="promote" if promoted else "reject", reasons=(f"gate of night {number}",)
        )
        self.register(number, verdict)
        serving = read_champion(self.home, RECIPE)
        if promoted:
            promote.fn(
                self.home,
                RECIPE,
                model,
                night=night_id(number),
                mlflow_run=run.run_id,
                verdict=verdict,
                published=published,
                judged_against=serving and replace(serving, previous=None),
                serving=serving,
                config=PublishConfig(),
            )
        told = {"night": night_id(number), "mlflow_run": run.run_id, "published": []}
        summary = told | {"challenger": asdict(model)}
        write_night(self.home, RECIPE, night_id(number), summary)
        return model

    def champion(self) -> Champion:
        champion = read_champion(self.home, RECIPE)
        assert champion is not None
        return champion


def night_id(number: int) -> str:
    """Sixteen digits that begin differently."""
    return f"{number}{'0' * 15}"
