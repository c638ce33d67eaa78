"""Traces of a facade and its worker, as a collector gets them: OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from jobs import traces
from jobs.errors import UsageError
from tests.facades import make_premises, stop
from tests.support import eventually

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"inputs", "load", "render", "encode", "store"}


@dataclass
class Collector:
    """url: where it listens; spans: what it got, with the service that each is of."""

    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (
                one.value.string_value
                for one in resource.resource.attributes
                if one.key == "service.name"
            )
            self.spans += [(service, span) for some in resource.scope_spans for span in some.spans]

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]

    def below(self, parent: Span) -> set[str]:
        return {span.name for _, span in self.spans if span.parent_span_id == parent.span_id}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_small = self.headers.get("Content-Encoding") == "gzip"
            found.take(gzip.decompress(body) if is_small else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(tmp_path: Path, collector: Collector) -> Iterator[str]:
    """Of a facade whose traces the collector gets, as its worker's."""
    premises = make_premises(tmp_path)
    process, url = premises.serve("up", "--models", "null", IMAGEMILL_TRACES=collector.url)
    yield url
    stop(process, premises.log("up"))


def test_a_call_is_one_trace_from_its_caller_to_the_store(url: str, collector: Collector) -> None:
    answer = httpx.post(
        f"{url}/v1/images/generations",
        json={"prompt": "a secret"},
        headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (call,) = eventually(lambda: collector.named("call"))
    (calls,) = eventually(lambda: collector.named("calls"))
    assert eventually(lambda: collector.below(calls) == STAGES)
    assert call.parent_span_id.hex() == CALLER
    assert calls.parent_span_id == call.span_id
    assert calls.start_time_unix_nano >= call.start_time_unix_nano
    ours = [(service, span) for service, span in collector.spans if span.trace_id.hex() == TRACE]
    assert {service for service, _ in ours} == {"imagemill-facade", "imagemill-worker"}
    for _, span in ours:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert "secret" not in str(span)


def test_a_chunk_is_a_trace(url: str, collector: Collector) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations"}
    content = json.dumps(line | {"body": {"prompt": "a secret"}})
    form = {"purpose": "batch"}
    sent = httpx.post(f"{url}/openai/v1/files", data=form, files={"file": ("in.jsonl", content)})
    asked = {"endpoint": "/v1/images/generations", "completion_window": "24h"}
    httpx.post(f"{url}/openai/v1/batches", json=asked | {"input_file_id": sent.json()["id"]})
    (chunk,) = eventually(lambda: collector.named("chunk"))
    assert not chunk.parent_span_id
    assert {one.key for one in chunk.attributes} == {"run", "shard", "chunk"}
    assert eventually(lambda: collector.below(chunk) == STAGES | {"end"})
    assert "secret" not in str(collector.spans)


def test_nothing_is_made_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    traces.set_up(None, "here")
    with traces.span("a", ["b"], c=1):
        traces.past(("d", 1.0))
        assert traces.current() == ""
    traces.flush()
    assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(UsageError, match=r"opentelemetry\.sdk\.resources is not installed"):
        traces.set_up("http://collector", "here")
