"""A fleet renders samples of a finished run again, and its metrics tell what came out."""

from __future__ import annotations

import orjson

from jobs.output.layout import METADATA
from producer.control.installation import installation
from producer.control.metrics import make_registry
from tests.sites import Site
from tests.support import Cli, eventually

RUN = "0123456789ab"


def test_samples_are_rendered_again_until_ctrl_c(cli: Cli, site: Site) -> None:
    site.start_worker("null")
    site.start(site.plan(RUN, "null", list(range(10)), chunk=5))
    site.wait(RUN)
    storage = site.storage(RUN)
    before = set(storage.sizes(""))
    registry = make_registry(installation(site.settings), site.table)

    def told(name: str) -> float:
        return registry.get_sample_value(f"imagemill_{name}_total") or 0

    with cli.start(
        "verify", storage.uri, "--every", "1", "--sample", "4", "--json",
        "--broker", site.settings.broker, "--models-file", site.settings.models,
    ) as command:  # fmt: skip
        assert command.stdout is not None
        for _ in range(2):
            verdict = orjson.loads(command.stdout.readline())
            assert (verdict["compared"], verdict["differences"]) == (4, [])
        rows = [orjson.loads(line) for line in storage.read(METADATA).splitlines()]
        changed = [orjson.dumps(row | {"sha256": "0" * 64}) for row in rows]
        storage.write(METADATA, b"\n".join(changed))
        eventually(lambda: told("verify_mismatches") >= 4)
        assert told("verified_images") >= 12
        eventually(lambda: site.runs.listed() == [RUN] and set(storage.sizes("")) == before)
        command.terminate()


def test_a_single_verdict_needs_no_installation(cli: Cli) -> None:
    refused = cli("verify", "out", "--broker", "redis://127.0.0.1:1", code=2)
    assert "--count-in" in refused.stderr
