"""Traces of a facade and its worker, as a collector gets them: OTLP over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs import traces
from jobs.errors import UsageError
from tests.collector import Collector, collecting
from tests.facades import make_premises, stop
from tests.support import Cli, circles, eventually

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"inputs", "load", "render", "encode", "store"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


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


def test_the_last_spans_of_a_run_are_sent(
    cli: Cli, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEMILL_TRACES", collector.url)
    cli("run", cli.manifest(*circles(8)), "--out", "out", "--model", "null")
    (chunk,) = collector.named("chunk")  # without waiting: `run` has ended
    assert collector.below(chunk) == STAGES | {"end"}


def test_those_of_a_facade_and_its_worker_are_sent(tmp_path: Path, collector: Collector) -> None:
    premises = make_premises(tmp_path)
    process, url = premises.serve("up", "--models", "null", IMAGEMILL_TRACES=collector.url)
    httpx.post(f"{url}/v1/images/generations", json={"prompt": "a circle"}, timeout=60)
    stop(process, premises.log("up"))
    assert collector.named("call")
    (calls,) = collector.named("calls")
    assert collector.below(calls) == STAGES


def test_a_collector_that_does_not_answer_holds_nobody_up() -> None:
    code = """
import sys, time
from jobs import traces
traces.set_up(sys.argv[1], "here")
with traces.span("a"):
    pass
started = time.monotonic()
traces.flush()
print(time.monotonic() - started)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    waited = float(done.stdout)
    assert traces.FLUSH_SECONDS <= waited < traces.FLUSH_SECONDS + 2


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
