"""A real headless Chromium, driven over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

__all__ = ["Page", "browsing"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_S = 60.0


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._sent = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            self._note(message)
            if message.get("id") == self._sent:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] in (
            "security",
            "javascript",
        ):
            self.errors.append(message["params"]["entry"]["text"])

    def size(self, width: int, height: int, *, scale: float = 1, touch: bool = False) -> None:
        """The window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=touch,
        )

    def scheme(self, name: str) -> None:
        """What the system prefers: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def go(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of an expression, a promise's awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Return once an expression is true in the page."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            found = self.call("Runtime.evaluate", expression=f"Boolean({condition})", returnByValue=True)
            if found["result"].get("value") is True:
                return
        raise AssertionError(f"never true: {condition}; the page says {self.text()!r}, errors {self.errors}")

    def text(self, selector: str = "body") -> str:
        """What an element shows."""
        found: str = self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return found

    def choose(self, selector: str, value: str) -> None:
        """Pick an option or fill a field, as a user does."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def shot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browsing() -> Iterator[Page]:
    """A fresh tab; the test is skipped where no Chromium is."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no {' or '.join(_NAMES)} on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            found, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--no-proxy-server", "--lang=en-GB",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                browser = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
                with connect(browser, max_size=None, proxy=None, compression=None) as socket:
                    target = _first_page(socket)
                host = browser.split("/devtools/")[0]
                with connect(
                    f"{host}/devtools/page/{target}", max_size=None, proxy=None, compression=None
                ) as socket:
                    yield Page(socket)
            finally:
                process.kill()


def _first_page(socket: ClientConnection) -> str:
    while True:
        socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        while (message := json.loads(socket.recv())).get("id") != 1:
            pass
        for one in message["result"]["targetInfos"]:
            if one["type"] == "page":
                target: str = one["targetId"]
                return target
