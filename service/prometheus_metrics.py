"""What happens in the service, counted for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.champion_models import ChampionModels

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ORDERS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one service; safe to tell from any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "kronos_requests", "Answers", ["route", "method", "status"], registry=registry
        )
        self._latency = Histogram(
            "kronos_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self._waiting = Gauge(
            "kronos_forecasts_waiting", "Forecasts waiting or being drawn", registry=registry
        )
        self._drawn = Counter("kronos_forecasts_drawn", "Forecasts drawn by the sampler", registry=registry)
        self._batch = Histogram(
            "kronos_sampler_batch_forecasts",
            "Forecasts per call of the sampler",
            buckets=_ORDERS,
            registry=registry,
        )
        self._sampler = Histogram(
            "kronos_sampler_seconds", "Time of a call of the sampler", buckets=_SECONDS, registry=registry
        )
        self._loads = Counter(
            "kronos_model_loads", "Champions loaded", ["recipe", "outcome"], registry=registry
        )
        self._models = Gauge(
            "kronos_model_info", "Models that serve", ["recipe", "predictor", "tokenizer"], registry=registry
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request got its answer."""
        self._requests.labels(route, method, status).inc()
        self._latency.labels(route).observe(seconds)

    def waiting(self, count: int) -> None:
        """So many forecasts wait or are drawn."""
        self._waiting.set(count)

    def drawn(self, orders: int, seconds: float) -> None:
        """The sampler was called for so many forecasts."""
        self._drawn.inc(orders)
        self._batch.observe(orders)
        self._sampler.observe(seconds)

    def loaded(self, recipe: str, good: bool) -> None:
        """A champion was loaded, or could not be."""
        self._loads.labels(recipe, "loaded" if good else "failed").inc()

    def exposition(self, champion_models: ChampionModels) -> bytes:
        """Everything in Prometheus's text format."""
        self._models.clear()
        for one in champion_models.models:
            tokenizer, predictor = one.digests
            self._models.labels(one.recipe, predictor, tokenizer).set(1)
        return generate_latest(self._registry)
