"""S3 on loopback: moto's server, which we did not write, and machines that share a home on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import requests
from moto.server import ThreadedMotoServer

from flows.environment import open_home
from storage.layout import Home

__all__ = ["S3Server"]

_BUCKET = "quants"


class S3Server(logging.Handler):
    """A server with one empty bucket; it counts the requests that it answers."""

    url = f"s3://{_BUCKET}/kronos/btc"

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    @contextmanager
    def running(self) -> Iterator[S3Server]:
        """Answer, with this process's AWS_* variables pointing here."""
        log = logging.getLogger("werkzeug")
        handlers, propagates = log.handlers[:], log.propagate
        log.handlers, log.propagate = [self], False
        log.setLevel(logging.INFO)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "not-for-the-log",
            "AWS_REGION": "us-east-1",
        }
        try:
            with mock.patch.dict(os.environ, variables):
                self.empty()
                yield self
        finally:
            self._server.stop()
            log.handlers, log.propagate = handlers, propagates

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the server's log is one request."""
        line = record.getMessage()
        if '"' in line:
            self.requests.append(line.split('"')[1])

    def empty(self) -> None:
        """Begin anew."""
        with requests.Session() as session:
            session.trust_env = False
            session.post(f"{self.endpoint}/moto-api/reset").raise_for_status()
            session.put(f"{self.endpoint}/{_BUCKET}").raise_for_status()
        self.requests.clear()

    def machine(self, cache: Path, url: str = url) -> Home:
        """The home on a machine whose working copies are in `cache`."""
        with mock.patch.dict(os.environ, KRONOS_CACHE=str(cache)):
            return open_home(url)
