"""What callers ask of a facade, as Prometheus reads it: by route and status, and how long it takes.

Of this process alone, so scrape each facade. Routes are templates, never what a caller wrote.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import Scope

from jobs.broker.counters import OTHER

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120)
CUT_OFF = "none"  # stands for the status where the caller went before there was one


class Traffic:
    """The sums of one process. registry: what tells them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "imagemill_http_requests",
            "Requests that a facade has answered.",
            ("route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "imagemill_http_request_seconds",
            "Seconds from a request's first byte to its answer's last.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """A request has ended. scope: after it was routed; status: 0 if it has none."""
        route = getattr(scope.get("route"), "path_format", OTHER)
        self._requests.labels(route, str(status or CUT_OFF)).inc()
        self._seconds.labels(route).observe(seconds)
