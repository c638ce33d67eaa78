"""How fast a run was when."""

from __future__ import annotations

from jobs.output import layout
from jobs.output.plan import Chunk, Shard
from producer.api.page.speed import WIDTH, speed_of
from tests.samples import make_plan


def test_the_rate_follows_when_chunks_were_stored() -> None:
    chunks = tuple(Chunk("null", start, start + 10) for start in range(0, 130, 10))
    plan = make_plan("0000000000aa", shards=(Shard(130, chunks),))

    def stored(*times: float) -> dict[str, float]:
        names = [layout.done_part(plan.run_id, 0, n).rpartition("/")[2] for n in range(len(times))]
        return dict(zip(names, times, strict=True))

    slow_then_fast = stored(100, *range(110, 150, 10), *(140 + n * 5 for n in range(1, 9)))
    speed = speed_of(plan, slow_then_fast | {"00000.reused.0000.jsonl": 900.0, "x": 1.0})
    assert speed
    assert (speed.began, speed.ended) == (100, 180)
    assert speed.rates[0] < speed.rates[-1]
    images = sum(rate * speed.seconds for rate in speed.rates)
    assert round(images) == 120  # all but the first chunk
    assert speed.path.startswith("M0 ")
    assert f"H{WIDTH}.0V" in speed.path
    assert speed_of(plan, stored(1, 2, 3)) is None  # too few to tell
    assert speed_of(plan, stored(*[5.0] * 13)) is None  # a copy, all of one moment
    assert speed_of(plan, {}) is None
    assert speed_of(plan, {"00001.0000.done.jsonl": 1.0, "00000.0099.done.jsonl": 2.0}) is None
