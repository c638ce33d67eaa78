"""Whose turn it is."""

from __future__ import annotations

from jobs.broker.turns import HEAD_START, MOST_CHUNKS, WARM_SECONDS, Turn, Waiting, whose_turn


def waits(run_id: str, team: str = "blue", used: float = 0.0, **other: object) -> Waiting:
    facts: dict[str, object] = {
        "epoch": 1, "model": "sdxl", "place": (0, 0), "priority": "normal", "team_used": 0.0,
    }  # fmt: skip
    return Waiting(run_id=run_id, team=team, used=used, **facts | other)  # type: ignore[arg-type]


def first(*waiting: Waiting, loaded: tuple[str, ...] = (), **weights: float) -> str:
    return whose_turn(waiting, weights, loaded).run.run_id


def test_the_team_with_the_least_then_its_run_with_the_least() -> None:
    blue = [waits("a", used=50.0, team_used=60.0), waits("b", used=10.0, team_used=60.0)]
    red = waits("c", "red", used=55.0, team_used=55.0)
    assert first(*blue, red) == "c"
    assert first(*blue, red, blue=2.0) == "b"


def test_a_higher_priority_comes_first_whatever_its_team_has_used() -> None:
    high = waits("high", "red", priority="high", team_used=9999.0)
    assert first(waits("a"), high) == "high"
    assert first(waits("a"), waits("low", "red", priority="low")) == "a"


def test_who_used_little_is_ahead_by_so_much_and_no_more() -> None:
    old, new = waits("old", "blue", 5000.0, team_used=5000.0), waits("new", "red")
    assert whose_turn([old, new], {}) == Turn(new, team_lift=5000.0 - HEAD_START)
    assert whose_turn([new], {}) == Turn(new), "alone it need not catch up"
    other = waits("other", "blue", team_used=5000.0)
    assert whose_turn([old, other], {}) == Turn(other, lift=5000.0 - HEAD_START)
    heavy = whose_turn([old, new], {"red": 2.0})
    assert heavy.team_lift == 2 * (5000.0 - HEAD_START)


def test_a_loaded_model_may_be_ahead_a_little() -> None:
    cold = waits("cold", "red", model="flux")
    warm = waits("warm", "blue", team_used=WARM_SECONDS)
    assert first(cold, warm) == "cold"
    assert first(cold, warm, loaded=("sdxl",)) == "warm"
    assert first(cold, waits("warm", "blue", team_used=WARM_SECONDS + 1), loaded=("sdxl",)) == (
        "cold"
    )
    assert first(waits("cold", model="flux"), waits("warm", used=9.0), loaded=("sdxl",)) == "warm"
    urgent = waits("urgent", "red", model="flux", priority="high")
    assert first(urgent, warm, loaded=("sdxl",)) == "urgent"


def test_a_turn_has_several_chunks_if_they_are_known_to_be_short() -> None:
    assert Turn(waits("a")).chunks == 1
    assert Turn(waits("a", seconds=30.0)).chunks == 1
    assert Turn(waits("a", seconds=2.0)).chunks == 2
    assert Turn(waits("a", seconds=1e-9)).chunks == MOST_CHUNKS
