"""The output files of batches, as they are read."""

from __future__ import annotations

from io import BytesIO

import orjson
import pytest

from producer.api.openai.batch import lines as reading
from producer.api.openai.batch.lines import MAX_REQUESTS, STORED, Translation, translate, with_urls


def test_stored_images_become_urls_and_nothing_else_does() -> None:
    folder = "batches/red/"
    own, other = (f"{STORED}batches/{team}/batch_1/out/images/0/ü.png" for team in ("red", "blue"))
    forged = orjson.dumps({"custom_id": f'"url":"{own}"'})
    lines = [
        orjson.dumps({"data": [{"url": own, "seed": 1}, {"url": own}]}),
        orjson.dumps({"data": [{"url": other}, {"url": "https://elsewhere"}]}),
        forged,
    ]
    read = list(with_urls(lines, folder, lambda path: f"http://here/{path}?a"))
    url = f"http://here/{own.removeprefix(STORED)}?a"
    assert orjson.loads(read[0]) == {"data": [{"url": url, "seed": 1}, {"url": url}]}
    assert read[1:] == lines[1:]


def test_a_batch_has_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after them is not even read."""
    assert MAX_REQUESTS == 50_000  # as docs/14-security.md says
    monkeypatch.setattr(reading, "MAX_REQUESTS", 3)

    def read(count: int) -> tuple[Translation, int]:
        line = (
            b'{"custom_id": "%d", "method": "POST", "url": "/v1/images/generations", "body": {}}\n'
        )
        source = BytesIO(b"".join(line % number for number in range(count)))
        return translate(
            source, BytesIO(), BytesIO(), "/v1/images/generations", lambda _: ""
        ), source.tell()  # fmt: skip

    allowed, end = read(3)
    assert (allowed.requests, allowed.errors) == (3, [])
    refused, stopped = read(100)
    assert [error.reason for error in refused.errors] == ["the file has more than 3 requests"]
    assert stopped < 2 * end


def test_a_broken_line_is_told_by_its_number_in_the_file_and_its_column() -> None:
    source = BytesIO(b"\n" + b'{"custom_id" "a"}\n')
    found = translate(source, BytesIO(), BytesIO(), "/v1/images/generations", lambda _: "")
    (error,) = found.errors
    assert str(error) == "line 2: not valid JSON: Expecting ':' delimiter at column 14"
