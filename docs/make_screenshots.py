"""Take the pictures of docs/first-night.md anew: a whole night in a browser, from the form to the dashboard.

`.venv/bin/python docs/make_screenshots.py` starts `kronos up` over a new home, with a Hub on the loopback to publish
to, and leads a headless Chromium through it. Most of its minutes are the night of recipe demo.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import Page, browsing  # noqa: E402
from tests.support.loopback_hub import LoopbackHub  # noqa: E402
from tests.support.ports import free_ports  # noqa: E402

WIDTH = 1200
_FIND = """
window.shown = (text, kinds) => [...document.querySelectorAll(kinds)]
    .find(e => e.innerText?.trim() === text && e.getClientRects().length);
window.field = name => {
    let e = [...document.querySelectorAll('label')].find(e => e.innerText.trim().startsWith(name + ' '));
    while (e && !e.querySelector('input, textarea')) e = e.parentElement;
    return e?.querySelector('input, textarea');
};
"""
_AS_USED = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
"""  # MLflow's assistant is closed and its pages are those for training


class Visitor:
    """A browser before a site, and the pictures it takes."""

    def __init__(self, page: Page, pictures: Path, ports: list[int]) -> None:
        self.page, self.pictures = page, pictures
        self.prefect, self.mlflow, self.service = (f"http://127.0.0.1:{port}" for port in ports)
        self._session = requests.Session()
        self._session.trust_env = False

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """An answer of Prefect's API."""
        return self._session.post(f"{self.prefect}/api/{path}", json=body, timeout=60).json()

    def soon(self, path: str, body: dict[str, Any]) -> Any:
        """What Prefect answers once that is not empty."""
        while not (found := self.ask(path, body)):
            self.page.run("0")  # take what the browser tells meanwhile, or its line is cut
            time.sleep(1)
        return found

    def go(self, url: str, until: str, *, height: int = 900) -> None:
        """Open an address and wait for a text."""
        self.page.size(WIDTH, height)
        self.page.go("about:blank")
        self.page.go(url)
        self.page.until(f"document.body?.innerText.includes({json.dumps(until)})")
        time.sleep(3)  # what is drawn afterwards
        self.page.run(_FIND)

    def click(self, text: str, kinds: str = "button") -> None:
        """Press what bears this text, as a mouse does."""
        self._press(f"shown({json.dumps(text)}, {json.dumps(kinds)})")

    def fill(self, name: str, value: str) -> None:
        """Type into the field of that name, in place of what is there."""
        self._press(f"field({json.dumps(name)})")
        self.page.run(f"field({json.dumps(name)}).select()")
        self.page.call("Input.insertText", text=value)

    def shot(self, name: str, *, top: int = 0, height: int | None = None) -> None:
        """first-night-NAME.png in 128 colours: the window, or a part of it."""
        time.sleep(1)
        path = self.pictures / f"first-night-{name}.png"
        self.page.shot(path)
        image = Image.open(path).convert("RGB")
        part = image.crop((0, top, image.width, top + height)) if height else image
        part.quantize(128).save(path, optimize=True)
        _tell(f"{path.name}, {path.stat().st_size / 1e3:.0f} kB")

    def _press(self, find: str) -> None:
        self.page.until(find)
        self.page.run(f"{find}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.4)
        box = self.page.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({find}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.page.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1
            )
        time.sleep(0.6)


def start_a_run(visitor: Visitor, user: str) -> str:
    """From the list of deployments through the form; the id of the run."""
    visitor.go(visitor.prefect, until="Deployments")
    visitor.click("Deployments", "a")
    visitor.page.until("document.body.innerText.includes('nightly')")
    visitor.shot("deployments")
    visitor.click("nightly", "a")
    visitor.click("Run")
    visitor.click("Custom run", "[role=menuitem], a")
    visitor.page.until("document.body.innerText.includes('Submit')")
    visitor.page.size(WIDTH, 1000)
    time.sleep(2)
    visitor.click("doge_1h")
    visitor.click("demo", "[role=option]")
    visitor.page.run("document.querySelector('label').scrollIntoView({block: 'end'})")
    visitor.shot("form")
    visitor.click("dataset")
    visitor.fill("lookback", "1")
    visitor.page.size(
        WIDTH, 4000
    )  # so that nothing scrolls, and the label stays beside what is said of its field
    visitor.click("Submit")
    place = visitor.page.run("Math.round(field('lookback').getBoundingClientRect().top)")
    visitor.shot("refused", top=place - 200, height=500)
    visitor.page.size(WIDTH, 1000)
    visitor.fill("lookback", "64")
    visitor.click("publish")
    visitor.fill("namespace", user)
    visitor.shot("settings")
    visitor.click("Submit")
    (run,) = visitor.soon("flow_runs/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    return str(run["id"])


def look_at_the_run(visitor: Visitor, run: str) -> None:
    """While it trains, and when it is done, with its artifacts."""
    page, training = f"{visitor.prefect}/v2/runs/flow-run/{run}", {"key": {"like_": "train-%"}}
    visitor.soon("artifacts/filter", {"artifacts": {**training, "flow_run_id": {"any_": [run]}}})
    visitor.go(page, until="Task Runs")
    visitor.click("Task Runs", "[role=tab]")
    time.sleep(8)
    visitor.shot("started")
    visitor.page.go("about:blank")  # drawing the run's graph takes a core from the night
    ended = {
        "flow_runs": {"id": {"any_": [run]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
    }
    (done,) = visitor.soon("flow_runs/filter", ended)
    if done["state_type"] != "COMPLETED":
        raise SystemExit(f"Expected a completed night, found {done['state']}; its log says why.")
    _tell(f"the night took {done['total_run_time']:.0f} s")
    visitor.go(page, until="Completed")
    visitor.click("Artifacts", "[role=tab]")
    visitor.shot("finished")
    (board,) = visitor.ask(
        "artifacts/filter", {"artifacts": {"key": {"any_": ["leaderboard"]}, "flow_run_id": {"any_": [run]}}}
    )
    visitor.go(f"{visitor.prefect}/v2/artifacts/artifact/{board['id']}", until="Verdict")
    visitor.shot("leaderboard")
    (link,) = visitor.ask(
        "artifacts/filter", {"artifacts": {"key": {"any_": ["mlflow-run"]}, "flow_run_id": {"any_": [run]}}}
    )
    visitor.page.go(visitor.mlflow)
    time.sleep(3)
    visitor.page.run(_AS_USED)
    where, _, query = link["data"].partition("](")[2].rstrip(")").partition("?")
    visitor.go(f"{where}/artifacts/figures/fans.png?{query}", until="fans.png")
    visitor.shot("mlflow")


def look_at_the_champion(visitor: Visitor, hub: LoopbackHub) -> None:
    """In MLflow, on the Hub and on the dashboard."""
    visitor.go(f"{visitor.mlflow}/#/models/kronos-demo", until="champion", height=800)
    visitor.shot("champion")
    visitor.page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Bearer {hub.token}"})
    visitor.go(f"{hub.url}/api/models/{hub.user}/demo-kronos-predictor/refs", until="champion", height=240)
    visitor.shot("hub", height=96)
    visitor.page.call("Network.setExtraHTTPHeaders", headers={})
    visitor.go(visitor.service, until="Promoted")
    visitor.shot("dashboard")


@contextmanager
def site(kronos: Path, home: Path, hub: LoopbackHub) -> Iterator[list[int]]:
    """`kronos up`, its schedules paused, until the end of the block."""
    ports = free_ports(3)
    options = [
        f"--{name}-port={port}" for name, port in zip(("prefect", "mlflow", "service"), ports, strict=True)
    ]
    environment = {**os.environ, **hub.environment(home / "hf"), "KRONOS_HOME": str(home / ".kronos")}
    command = [str(kronos), "up", "--no-schedules", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        try:
            for line in up.stdout:
                _tell(line.rstrip())
                if line.startswith("worker"):
                    break
            yield ports
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def main() -> None:
    """Every picture, in the order of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kronos", type=Path, default=ROOT / ".venv/bin/kronos", help="the program to show")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs/images", help="where they go")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LoopbackHub() as hub,
        site(chosen.kronos, Path(folder), hub) as ports,
        browsing() as page,
    ):
        visitor = Visitor(page, chosen.pictures, ports)
        look_at_the_run(visitor, start_a_run(visitor, hub.user))
        look_at_the_champion(visitor, hub)


def _tell(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
