"""A facade with a worker, and a browser that may reach nothing else: `make browser`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.broker.connection import connect
from jobs.broker.dispatch import Dispatcher, start_run
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.settings import Settings
from tests.facades import Premises, make_premises, stop
from tests.support import eventually

if TYPE_CHECKING:  # only `make browser` installs it
    from playwright.sync_api import Browser, Page

AXE = (Path(__file__).parent / "axe-4.14.1.min.js").read_text("utf-8")
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@dataclass(frozen=True)
class Place:
    """A running facade, its premises, and its broker."""

    premises: Premises
    url: str
    broker: str

    @property
    def runs(self) -> Runs:
        return Runs(connect(Settings(broker=self.broker)), "imagemill:", NO_SEAL)

    def launch(self, storage: Storage, plan: Plan) -> None:
        """Make a run live."""
        runs = self.runs
        start_run(plan, storage, runs, Dispatcher(runs.client, runs.prefix, runs.seal))


@pytest.fixture(scope="session")
def place(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    premises = make_premises(tmp_path_factory.mktemp("page"))
    options = ("--devices", "cpu", "--models", "null,slow")
    worker = premises.start("worker", *options, IMAGEMILL_BROKER=valkey)
    facade = None
    try:
        facade, url = premises.serve("serve", "--broker", valkey)
        found = Place(premises, url, valkey)
        eventually(lambda: found.runs.client.scard("imagemill:workers"), 60)
        yield found
    finally:
        if facade:
            stop(facade, premises.log("serve"))
        stop(worker, premises.log("worker"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "there is no chromium: apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page of the browser. `wrong`: what its console said, and requests to other places."""

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)

    def heard(self, kind: str, text: str) -> None:
        """Its console said something."""
        if kind in ("warning", "error"):
            self.wrong.append(f"{kind}: {text}")

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def check_access(self) -> None:
        """No rule of axe-core is broken, of WCAG and of good practice."""
        self.page.evaluate(AXE)
        # It asks for style sheets once more, which nothing may that came from a disk.
        options = "{preload: location.protocol !== 'file:'}"
        found: dict[str, Any] = self.page.evaluate(f"axe.run(document, {options})")
        assert not [
            (one["id"], one["nodes"][0]["html"], one["help"]) for one in found["violations"]
        ]


Opening = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser, place: Place) -> Iterator[Opening]:
    """Opens tabs; in the end nothing may have gone wrong in one."""
    tabs: list[Tab] = []

    def opened(
        viewport: dict[str, int] = DESKTOP,
        scheme: str = "light",
        scripts: bool = True,
        url: str = place.url,
    ) -> Tab:
        context = browser.new_context(
            viewport=viewport,
            color_scheme=scheme,
            java_script_enabled=scripts,  # type: ignore[arg-type]
        )
        tab = Tab(context.new_page(), url)
        tab.page.set_default_timeout(15_000)
        tab.page.on("console", lambda one: tab.heard(one.type, one.text))
        tab.page.on("pageerror", lambda one: tab.wrong.append(str(one)))
        tab.page.on(
            "request",
            lambda one: None if one.url.startswith(url) else tab.wrong.append(one.url),
        )
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        assert tab.wrong == []
        tab.page.context.close()
