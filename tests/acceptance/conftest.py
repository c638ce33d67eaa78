"""What the acceptance tests of the HTTP facade share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.facades import Facade, make_premises, stop


@pytest.fixture(scope="session")
def facade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facade]:
    """`imagemill up`, shared by all tests that only ask."""
    premises = make_premises(tmp_path_factory.mktemp("up"))
    red, green = premises.key("red", "blue"), premises.key("green")
    process, url = premises.serve(
        "up", "--models", "null,plain", IMAGEMILL_TEAM_RATE="100000/minute"
    )
    try:
        yield Facade(premises, url, red, green)
    finally:
        stop(process, premises.log("up"))
