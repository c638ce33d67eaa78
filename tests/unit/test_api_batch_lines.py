"""The output files of batches, as they are read."""

from __future__ import annotations

import orjson

from producer.api.openai.batch.lines import STORED, with_urls


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
