"""The page in a real browser, with a real worker: `make browser`."""

from __future__ import annotations

import time
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import orjson
import pytest
from PIL import Image

from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.records import encode_part, read_part
from jobs.output.storage import Storage, open_storage
from producer.upkeep.site import write_site
from tests.browser.conftest import DESKTOP, PHONE, Opening, Place
from tests.pages import job, plan_run, settle

pytestmark = pytest.mark.browser

MANY = 100_000
RECEIVED = """performance.getEntries().map(one => one.transferSize ?? 0).reduce((a, b) => a + b)"""
SHOWN = "0000000000c1"


@pytest.fixture(scope="session")
def shown(place: Place) -> Plan:
    """A run with pictures and a failure, whose other chunks wait for a model that nobody has."""
    storage = open_storage(str(place.premises.folder / "shown"))
    plan = plan_run(storage, SHOWN, 100, chunk=50, model="absent")
    settle(storage, plan, 0, 0, {7: "the paint ran out"})
    place.launch(storage, plan)
    return plan


def scenes(name: str, count: int) -> list[dict[str, str]]:
    """Lines of a manifest."""
    return [{"custom_id": f"{name}-{i}", "prompt": f"scene {i}"} for i in range(count)]


def submit(place: Place, name: str, lines: list[dict[str, str]], model: str) -> None:
    manifest = place.premises.folder / f"{name}.jsonl"
    manifest.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    out = place.premises.folder / name
    done = place.premises.run(
        "submit", str(manifest), "--out", str(out), "--model", model, "--broker", place.broker
    )
    assert done.returncode == 0, done.stderr


def test_a_run_is_followed_to_its_end_and_its_pictures_are_stepped_through(
    place: Place, open_tab: Opening
) -> None:
    tab = open_tab()
    tab.go("/")
    page = tab.page
    submit(place, "followed", scenes("followed", 40), "slow")
    card = page.get_by_role("article").filter(has_text="followed")
    card.get_by_text("running").wait_for()  # it comes by itself
    card.get_by_text("running").wait_for(state="detached")  # and ends
    card.get_by_role("link", name="followed", exact=True).click()  # its worker may link it still
    pictures = page.get_by_role("list").get_by_role("img")
    assert pictures.count() == 40
    pictures.nth(3).click()
    page.get_by_role("heading", name="scene 3").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="scene 4").wait_for()
    assert (
        page.locator("figure img").evaluate(
            "image => image.decode().then(() => image.naturalWidth)"
        )
        == 64
    )
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="scene 3").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="followed").wait_for()


def test_a_run_is_cancelled_and_resumed(place: Place, open_tab: Opening) -> None:
    submit(place, "stopped", scenes("stopped", 400), "slow")
    tab = open_tab(PHONE, "dark")
    tab.go("/")
    page = tab.page
    page.get_by_role("link", name="Cancel stopped").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled").wait_for()
    page.get_by_role("link", name="Resume stopped").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("running").wait_for()
    page.get_by_role("link", name="Cancel stopped").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled").wait_for()


def test_what_failed_is_retried_to_its_end(place: Place, open_tab: Opening) -> None:
    """Two of six edit a picture that comes late."""
    picture = BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    late = sha256(picture.getvalue()).hexdigest()
    lines = [{"prompt": f"scene {i}"} for i in range(4)]
    edits = [{"prompt": f"edit {i}", "image": f"sha256:{late}"} for i in range(2)]
    submit(place, "late", [*lines, *edits], "null")
    tab = open_tab()
    tab.go("/")
    page = tab.page
    page.get_by_text("4 images · 2 without an image").wait_for()
    card = page.get_by_role("article").filter(has_text="late")
    card.get_by_role("link", name="late", exact=True).click()
    page.get_by_text("input_unreachable").first.wait_for()
    open_storage(str(place.premises.folder / "late")).write(f"_inputs/{late}", picture.getvalue())
    page.get_by_role("link", name="Retry what failed of late").click()
    tab.check_access()
    page.get_by_text("2 of 6 requests").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("finished", exact=True).wait_for()
    page.get_by_role("img", name="edit 1").wait_for()
    assert page.locator(".tiles img").count() == 6


def test_a_failure_is_found_by_its_message(shown: Plan, open_tab: Opening) -> None:
    tab = open_tab()
    tab.go(f"/runs/{shown.run_id}")
    page = tab.page
    page.get_by_role("searchbox").fill("PAINT ran")
    page.get_by_label("Show", exact=True).select_option("failures")
    page.get_by_role("button", name="Show").click()
    page.locator(".tiles a").click()
    page.get_by_text("the paint ran out").first.wait_for()
    assert "line 8 of the manifest" in page.content()


def test_what_was_asked_for_stays_while_the_run_goes_on(shown: Plan, open_tab: Opening) -> None:
    tab = open_tab()
    page = tab.page
    for query, pictures, failures in (("", 40, 0), ("show=failures", 0, 1), ("q=scene+11", 1, 0)):
        tab.go(f"/runs/{shown.run_id}?{query}")
        for _ in range(2):  # the first has been swapped in when the second is asked for
            page.wait_for_event("requestfinished", lambda one: one.resource_type == "xhr")
        assert page.locator(".gallery").count() == 1
        assert page.locator(".tiles img").count() == pictures
        assert page.locator(".tiles .failed").count() == failures


def test_pictures_are_sorted_and_laid_over_each_other(shown: Plan, open_tab: Opening) -> None:
    tab = open_tab()
    tab.go(f"/runs/{shown.run_id}")
    page = tab.page
    page.get_by_text("Sort and filter").click()
    page.get_by_label("Sort by").select_option("seed")
    page.get_by_label("Direction").select_option("falling")
    page.get_by_label("Condition on columns").fill("seed not in ['3'] and index < 20")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("1 to 18 of 18").wait_for()  # 7 has failed
    page.locator(".tiles a").first.click()
    page.get_by_role("heading", name="scene 19").wait_for()
    page.get_by_label("Its number").fill("2")
    page.get_by_role("button", name="Side by side").click()
    page.get_by_role("button", name="One over the other").click()
    clip = "getComputedStyle(document.querySelectorAll('.beside img')[1]).clipPath"
    page.get_by_role("slider").fill("25")
    assert "25%" in page.evaluate(clip)
    tab.check_access()
    page.locator("h1").evaluate("() => document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")  # both
    page.get_by_text("shown, 19").first.wait_for()
    assert "50%" in page.evaluate(clip)  # still one over the other


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(
    shown: Plan, open_tab: Opening, viewport: dict[str, int], scheme: str
) -> None:
    tab = open_tab(viewport, scheme)
    run = f"/runs/{shown.run_id}"
    for path in (
        "/",
        run,
        f"{run}?show=all",
        f"{run}/rows/3",
        f"{run}/rows/7",
        f"{run}?by=seed&order=falling&where=index+%3E+3",
        f"{run}?where=index+%3E",
        f"{run}/rows/3/beside?run={SHOWN}&number=7",
        f"{run}/cancel",
        f"{run}/priority",
        "/login",
        "/try",
    ):
        tab.go(path)
        tab.check_access()
        wide = tab.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    tab.go("/nix")
    tab.check_access()
    assert tab.wrong.pop().endswith("404 (Not Found)")  # it is, and says so in HTML


@pytest.mark.usefixtures("shown")
def test_it_works_without_scripts(open_tab: Opening) -> None:
    tab = open_tab(scripts=False)
    tab.go("/")
    tab.page.get_by_role("link", name="shown", exact=True).click()
    tab.page.get_by_role("list").get_by_role("img").first.click()
    tab.page.get_by_role("link", name="Previous").click()
    tab.page.get_by_role("link", name="shown", exact=True).click()
    tab.page.get_by_role("link", name="Pause").first.click()
    tab.page.get_by_role("button", name="Pause").click()
    tab.page.get_by_text("paused").wait_for()


def test_one_prompt_is_tried(open_tab: Opening) -> None:
    tab = open_tab()
    tab.go("/try")
    page = tab.page
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Render").click()
    page.get_by_role("img", name="a red circle").wait_for()
    page.get_by_text("seed 7").wait_for()
    assert "curl http://" in page.locator("#curl").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_site_is_opened_from_a_disk(
    tmp_path: Path, open_tab: Opening, viewport: dict[str, int], scheme: str
) -> None:
    """Of a run that has not finished, so that it shows all that a site may."""
    storage = open_storage(str(tmp_path / "out"))
    plan = plan_run(storage, SHOWN, 200, chunk=100, model="one-of-the-longest-names")
    settle(storage, plan, 0, 0, {7: "the paint ran out"})
    write_site(storage.uri, lambda *_: None)
    tab = open_tab(viewport, scheme, url=f"file://{tmp_path}")
    page = tab.page
    for path in ("index.html", "00002.html"):
        tab.go(f"/out/page/{path}")
        tab.check_access()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="1 to 40 of 99").wait_for()
    page.get_by_text("Without an image: 1").click()
    page.get_by_text("the paint ran out").wait_for()
    page.get_by_role("img", name="scene 3", exact=True).click()
    page.wait_for_url("**/images/**")


def test_a_hundred_thousand_pictures_are_paged_through(place: Place, open_tab: Opening) -> None:
    storage = open_storage(str(place.premises.folder / "many"))
    plan = plan_run(storage, "0000000000c2", MANY, chunk=4096)
    _settle_all(storage, plan)
    place.launch(storage, plan)
    place.runs.finish(plan.run_id, MANY, 0)
    tab = open_tab()
    started = time.perf_counter()
    tab.go(f"/runs/{plan.run_id}")
    tab.page.locator(".tiles img").first.wait_for()
    assert time.perf_counter() - started < 3  # 0.6 s where nothing else runs
    tab.page.wait_for_load_state("networkidle")
    assert tab.page.evaluate(RECEIVED) < 300_000
    for number in range(1, 8):
        tab.page.keyboard.press("ArrowRight")
        tab.page.get_by_text(f"{40 * number + 1} to {40 * number + 40} of 100,000").wait_for()
    tab.go(f"/runs/{plan.run_id}?before={MANY}")
    tab.page.get_by_text("99,961 to 100,000 of 100,000").wait_for()
    tab.go(f"/runs/{plan.run_id}?q=scene+31999")
    tab.page.get_by_role("img", name="scene 31999").wait_for()


def _settle_all(storage: Storage, plan: Plan) -> None:
    """Records of all chunks; their pictures are those of the first."""
    settle(storage, plan, 0, 0)
    first = list(read_part(storage, layout.done_part(plan.run_id, 0, 0)))
    for shard in range(1, len(plan.shards)):
        rows = [
            row | {"job_id": job(at), "prompt": f"scene {at}"}
            for at, row in enumerate(first[: plan.shards[shard].requests], shard * 4096)
        ]
        storage.write(layout.done_part(plan.run_id, shard, 0), encode_part(rows))  # type: ignore[arg-type]
