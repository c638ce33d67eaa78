"""OpenTelemetry traces: its one door. Nothing, at no cost, in a process that was not set up.

A span is below the one around it, or below one of another process, which its W3C traceparent names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

from jobs.errors import UsageError

DELAY_MILLISECONDS = 500  # until spans are sent
FLUSH_SECONDS = 2.0  # a process that ends does not wait longer for a collector

_SDK = "opentelemetry.sdk.trace"  # imported where traces are on, and nowhere else
_NAME = "imagemill"


def set_up(collector: str | None, service: str) -> None:
    """Send the spans of this process to a collector's OTLP over HTTP; None: make none.

    Once in a process, after it has forked for the last time.

    Raises:
        UsageError: the extra `traces` is not installed.
    """
    if collector is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(
            f"traces were asked for, and {error.name} is not installed",
            "pip install 'imagemill[traces]', or leave IMAGEMILL_TRACES out.",
        ) from error
    from opentelemetry import trace

    # At exit the SDK would wait for as long as an export may take; `flush` does not.
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
    batches = BatchSpanProcessor(exporter, schedule_delay_millis=DELAY_MILLISECONDS)
    provider.add_span_processor(batches)
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Send what is left, before a process ends; waits for FLUSH_SECONDS at most."""
    if _SDK in sys.modules:
        from opentelemetry import trace

        provider: Any = trace.get_tracer_provider()
        # In a thread: force_flush takes a timeout and heeds none (open-telemetry/
        # opentelemetry-python#4568).
        flushing = Thread(target=provider.force_flush, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)


@contextmanager
def span(name: str, parents: Sequence[str] = (), **attributes: str | int) -> Iterator[None]:
    """A span around the block. parents: traceparents; the first is above it, others are linked."""
    if _SDK not in sys.modules:
        yield
        return
    from opentelemetry import trace

    contexts = [_context(parent) for parent in parents if parent]
    links = [trace.Link(trace.get_current_span(one).get_span_context()) for one in contexts[1:]]
    with trace.get_tracer(_NAME).start_as_current_span(
        name, contexts[0] if contexts else None, attributes=attributes, links=links
    ):
        yield


def current() -> str:
    """The traceparent of the span around; "" if there is none."""
    if _SDK not in sys.modules:
        return ""
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return carrier.get("traceparent", "")


def past(*spans: tuple[str, float]) -> None:
    """Spans of so many seconds each that came one after the other, and have just ended."""
    if _SDK not in sys.modules:
        return
    from opentelemetry import trace

    at = time.time_ns() - sum(round(1e9 * seconds) for _, seconds in spans)
    for name, seconds in spans:
        one = trace.get_tracer(_NAME).start_span(name, start_time=at)
        at += round(1e9 * seconds)
        one.end(at)


def _context(traceparent: str) -> Any:
    return _propagator().extract({"traceparent": traceparent})


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
