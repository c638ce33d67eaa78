"""A worker's counts reach Prometheus, and its JSON logs name what it was at."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import replace

from producer.control.installation import installation
from producer.control.metrics import make_registry
from tests.sites import Site
from tests.support import eventually

RUN = "0123456789ab"


def test_what_a_worker_does_is_told(site: Site) -> None:
    site = replace(site, settings=site.settings.model_copy(update={"log_format": "json"}))
    worker = site.start_worker("null")
    site.start(site.plan(RUN, "null", list(range(10)), chunk=5))
    site.wait(RUN)
    registry = make_registry(installation(site.settings), site.table)

    def told(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"imagemill_{name}", {"model": "null", **labels}) or 0

    done = {"status": "done", "code": ""}
    eventually(lambda: told("requests_total", **done) == 10, 10)
    assert told("batches_total") == 4  # of four and of one, twice
    assert told("slots_total") == 16
    assert told("model_loads_total") == 1
    assert told("serving_workers") == 1
    assert told("stored_bytes_total") > 0
    for stage in ("load", "render", "encode", "store"):
        assert told("stage_seconds_total", stage=stage) > 0
    assert told("outstanding_requests", kind="bulk") == 0
    worker.terminate()
    worker.wait()
    lines = [json.loads(line) for line in site.log(worker).splitlines()]
    assert any(line.get("run") == RUN for line in lines)
    command = [sys.executable, "-m", "producer", "exporter", "--port", "0"]
    options = ["--broker", site.settings.broker, "--models-file", str(site.settings.models)]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as exporter:
        assert exporter.stderr is not None
        try:
            (url,) = re.findall(r"http://\S+", exporter.stderr.readline())
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        finally:
            exporter.terminate()
        assert exporter.wait(10) == 0
    assert 'imagemill_requests_total{code="",model="null",status="done"} 10.0' in text
