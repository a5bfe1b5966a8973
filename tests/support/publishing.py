"""A night that ran as a process of its own and published to a loopback Hub."""

from dataclasses import dataclass
from pathlib import Path

from storage.layout import Home
from storage.registry import Champion, read_champion
from tests.support.loopback_hub import LoopbackHub
from tests.support.nights import quick_settings, write_klines
from tests.support.terminal import Outcome, finish, start

__all__ = ["PublishedNight", "publish_a_night"]


@dataclass(frozen=True)
class PublishedNight:
    """Where it left things, and what it said."""

    home: Home
    klines: Path
    outcome: Outcome

    def options(self, **others: object) -> list[str]:
        """The settings of a small night over these klines as --set options."""
        return [f"--set={name}={value}" for name, value in quick_settings(self.klines, **others).items()]

    @property
    def arguments(self) -> list[str]:
        """What was typed."""
        return ["run", *self.options(**{"publish.namespace": "tester"})]

    @property
    def champion(self) -> Champion:
        champion = read_champion(self.home, "demo")
        assert champion is not None
        return champion


def publish_a_night(root: Path, hub: LoopbackHub) -> PublishedNight:
    """Run it, embedded Prefect server and all; the home is `root`/home."""
    write_klines(root / "klines")
    night = PublishedNight(Home(root / "home"), root / "klines", Outcome(0, "", ""))
    outcome = finish(start(night.home.root, *night.arguments, **hub.environment(root / "hub")))
    assert outcome.code == 0, outcome.err
    return PublishedNight(night.home, night.klines, outcome)
