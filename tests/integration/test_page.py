"""The page as a browser meets it: who sees what, what it costs, what forms do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import redis
from pydantic import SecretStr
from starlette.testclient import TestClient

from jobs.broker.dispatch import start_run
from jobs.broker.fleet import Doing, Worker
from jobs.broker.progress import Effort
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import rewrite_rows, write_dataset
from jobs.output.plan import read_plan
from jobs.output.records import read_part
from jobs.output.scores import Scoring, write_scores, write_scoring
from jobs.output.storage import open_storage
from jobs.settings import Settings
from producer.api.access.keys import create_key
from producer.api.admission import Access
from producer.api.application import make_api
from producer.api.page.board import Board
from tests.pages import job, plan_choosing, plan_run, settle, settle_round
from tests.sites import Site
from tests.support import eventually
from worker.rounds import begin_round

HOST = "http://127.0.0.1:8000"
RED, LOOSE = "0000000000aa", "0000000000bb"  # a batch of team red, a run of nobody in particular


@pytest.fixture
def settings(site: Site) -> Settings:
    changes = {"store": str(site.folder / "store"), "signing_file": site.folder / "key"}
    return site.settings.model_copy(update=changes | {"keys_file": site.folder / "keys.json"})


@pytest.fixture
def page(settings: Settings) -> Iterator[TestClient]:
    """A facade without keys."""
    with TestClient(make_api(settings, load_models(settings.models)), HOST) as client:
        yield client


def start(site: Site, run_id: str, out: Path, requests: int = 4, settled: int = 0) -> None:
    """A live run, of whose chunks of 2 requests so many are stored."""
    storage = open_storage(str(out))
    plan = plan_run(storage, run_id, requests, chunk=2, prompts={1: "<script>alert(1)</script>"})
    for chunk in range(settled):
        settle(storage, plan, 0, chunk, {0: "no <b>paint</b> left"})
    start_run(plan, storage, site.runs, site.dispatcher)


def thumbnail(html: str) -> str:
    found = re.search(r'src="([^"]*/thumbnails/[^"]*)"', html)
    assert found
    return found[1]


def test_a_run_is_followed_and_its_pictures_are_seen(site: Site, page: TestClient) -> None:
    start(site, LOOSE, site.folder / "my-run", settled=1)
    site.fleet.report(
        Worker(name="gpu0@host", models=("null",), device="cuda:0", host="host", pid=1)
    )
    eventually(lambda: "gpu0@host" in page.get("/").text)
    board = page.get("/").text
    assert "my-run" in board
    assert ">2<small> of 4" in board
    run = page.get(f"/runs/{LOOSE}").text
    assert "no &lt;b&gt;paint&lt;/b&gt; left" in run
    assert "&lt;script&gt;alert(1)" in run
    assert "<b>paint" not in run
    assert "<script>alert" not in run
    small = page.get(httpx.URL(f"{HOST}/runs/").join(thumbnail(run)).path)
    assert small.headers["content-type"] == "image/webp"
    strip = page.get(f"/runs/{LOOSE}/latest")
    assert strip.headers["content-type"] == "image/webp"
    row = page.get(f"/runs/{LOOSE}/rows/1").text
    assert 'rel="prev" href="0"' in row
    assert 'rel="next"' not in row
    full = re.findall(r'href="([^"]*/pictures/[^"]*)"', row)
    assert page.get(f"/runs/{LOOSE}/rows/{full[0]}").content.startswith(b"\x89PNG")
    assert page.get(f"/runs/{LOOSE}/rows/2").status_code == 404  # not rendered yet
    for path in ("pictures/00000/../../x", "pictures/00000/x.jpg", "thumbnails/..%2f/a.jpg"):
        assert page.get(f"/runs/{LOOSE}/{path}").status_code in (404, 422)
    assert "paint" in page.get(f"/runs/{LOOSE}", params={"show": "failures", "q": "PAINT"}).text


def test_an_empty_page_says_how_to_submit(site: Site, page: TestClient) -> None:
    text = page.get("/").text
    assert site.settings.broker.startswith("redis+socket:")  # nobody would find it
    command = re.search("<code>(imagemill submit .*)</code>", text)
    assert command
    assert command[1] == (
        f"imagemill submit manifest.jsonl --out out/first --broker {site.settings.broker}"
    )


def test_nothing_new_is_not_sent_again_and_nothing_foreign_is_loaded(
    site: Site, page: TestClient
) -> None:
    start(site, LOOSE, site.folder / "my-run", settled=1)
    first = page.get("/")
    again = page.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/", "/login", f"/runs/{LOOSE}", f"/runs/{LOOSE}/cancel", "/runs/none"):
        answer = page.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"], path
        assert not re.search(r"""(src|href|action)=["'](https?:)?//""", answer.text), path
        assert not re.search(r"<style|style=|<script>| on\w+=", answer.text), path


def test_forms_pause_resume_and_cancel_only_from_this_page(site: Site, page: TestClient) -> None:
    start(site, LOOSE, site.folder / "my-run")
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert page.post(f"/runs/{LOOSE}/cancel", headers=headers).status_code == 403
    assert site.progress(LOOSE).state == "running"
    for act, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        assert f"{act.capitalize()} my-run?" in page.get(f"/runs/{LOOSE}/{act}").text
        page.post(f"/runs/{LOOSE}/{act}", headers={"Origin": HOST})
        assert site.progress(LOOSE).state == state
        assert state in page.get("/").text
    site.runs.finish(LOOSE, 4, 0)
    late = page.post(f"/runs/{LOOSE}/pause", headers={"Origin": HOST})
    assert late.status_code == 409
    assert "has finished already" in late.text
    strange = page.get("/", headers={"Host": "evil.example"})
    assert strange.status_code == 403  # DNS rebinding


def test_what_failed_is_retried_as_a_new_run(site: Site, settings: Settings) -> None:
    """By whoever sees the run, from this page alone; a batch has its output file already."""
    batch = Path(str(settings.store)) / "batches/red/batch_1/out"
    for run_id, out in ((LOOSE, site.folder / "my-run"), (RED, batch)):
        start(site, run_id, out, settled=2)
        storage = open_storage(str(out))
        plan = read_plan(storage, run_id)
        assert plan
        summary = write_dataset(storage, plan)
        assert (summary.done, summary.failed) == (3, 1)
        site.runs.finish(run_id, 3, 1)
    keys = SecretStr("for-red@red, for-nobody")
    api = make_api(settings.model_copy(update={"api_keys": keys}), load_models(settings.models))
    same = {"Origin": HOST}
    with TestClient(api, HOST) as client:
        client.post("/login", data={"token": "for-red"}, headers=same)
        assert "/retry" not in client.get(f"/runs/{RED}").text
        assert client.post(f"/runs/{RED}/retry", headers=same).status_code == 409
        assert client.post(f"/runs/{LOOSE}/retry", headers=same).status_code == 404
        client.post("/login", data={"token": "for-nobody"}, headers=same)
        assert f"/runs/{LOOSE}/retry" in client.get(f"/runs/{LOOSE}").text
        assert ": 1 of 4 requests" in client.get(f"/runs/{LOOSE}/retry").text
        assert client.post(f"/runs/{LOOSE}/retry").status_code == 403
        begun = client.post(f"/runs/{LOOSE}/retry", headers=same, follow_redirects=False)
        new = begun.headers["location"].removeprefix("../")
        assert new not in (RED, LOOSE)
        assert (site.progress(new).state, site.progress(new).pending) == ("running", 2)
        assert len(re.findall("/thumbnails/", client.get(f"/runs/{new}").text)) == 3
        assert "/retry" not in client.get(f"/runs/{LOOSE}").text  # it is under way
        late = client.post(f"/runs/{LOOSE}/retry", headers=same)
        assert late.status_code == 409
        assert f"run {new} has taken" in late.text


def test_the_board_shows_the_runs_that_are_asked_for(site: Site, page: TestClient) -> None:
    for number in range(8):
        start(site, f"{number:012x}", site.folder / f"run-{number}")
    site.runs.pause("000000000003", "no paint")
    for query, shown in [
        ({}, range(8)), ({"q": "RUN-5"}, [5]), ({"q": "null"}, range(8)),
        ({"state": "paused"}, [3]), ({"q": "5", "state": "paused"}, []),
    ]:  # fmt: skip
        text = page.get("/", params=query).text
        assert [n for n in range(8) if f">run-{n}<" in text] == list(shown), query


def test_runs_of_one_place_are_told_apart(site: Site, page: TestClient) -> None:
    """By when they began and their ids; what failed in one that was taken over is no matter now."""
    for run_id in (LOOSE, RED):
        start(site, run_id, site.folder / "my-run", settled=2)
        site.runs.finish(run_id, 3, 1)
    eventually(lambda: RED in page.get("/").text)
    newer, older = re.findall("(?s)<article.*?</article>", page.get("/").text)
    assert '<span class="bad">1 without an image' in newer
    assert RED in newer
    assert "taken over" not in newer
    assert "<span>1 without an image" in older
    assert re.search(rf"20\d\d-\d\d-\d\d \d\d:\d\d UTC · {LOOSE}", older)
    assert ">taken over<" in older


def test_a_team_sees_its_own_runs_alone(site: Site, settings: Settings) -> None:
    keys = SecretStr("for-red@red, for-green@green, for-nobody")
    start(site, RED, Path(str(settings.store)) / "batches/red/batch_1/out", settled=1)
    start(site, LOOSE, site.folder / "my-run", settled=1)
    api = make_api(settings.model_copy(update={"api_keys": keys}), load_models(settings.models))
    seen: dict[str, list[bool]] = {}
    for token in ("for-red", "for-green", "for-nobody"):
        with TestClient(api, "http://page.example") as client:
            assert client.get("/", follow_redirects=False).headers["location"] == "./login"
            same = {"Origin": "http://page.example"}
            assert client.post("/login", data={"token": "wrong"}, headers=same).status_code == 401
            much = client.post("/login", data={"token": "x" * 5000}, headers=same)
            assert much.status_code == 413  # nobody is known yet
            done = client.post(
                "/login", data={"token": token}, headers=same, follow_redirects=False
            )
            kept = done.headers["set-cookie"]
            assert "HttpOnly" in kept
            assert "SameSite=strict" in kept
            seen[token] = [client.get(f"/runs/{run}").status_code == 200 for run in (RED, LOOSE)]
            board = client.get("/").text
            assert ["batch_1" in board, "my-run" in board] == seen[token]
            for run, mine in zip((RED, LOOSE), seen[token], strict=True):
                name = f"00000/{job(1)}.png"
                for path in (
                    "rows/1",
                    f"rows/1/beside?run={run}&number=1",
                    "latest",
                    f"pictures/{name}",
                    f"thumbnails/{name}",
                ):
                    assert (client.get(f"/runs/{run}/{path}").status_code == 200) is mine, path
                if not mine:
                    gone = client.post(f"/runs/{run}/cancel", headers=same)
                    assert gone.status_code == 404
            client.post("/logout", headers=same)
            assert client.get("/").url.path == "/login"
    assert seen == {
        "for-red": [True, False], "for-green": [False, False], "for-nobody": [False, True]
    }  # fmt: skip
    assert site.progress(RED).state == site.progress(LOOSE).state == "running"


def test_the_login_leads_to_the_page_that_was_asked_for_and_nowhere_else(
    site: Site, settings: Settings
) -> None:
    start(site, RED, Path(str(settings.store)) / "batches/red/batch_1/out", settled=1)
    api = make_api(
        settings.model_copy(update={"api_keys": SecretStr("for-red@red")}),
        load_models(settings.models),
    )
    page = f"/runs/{RED}/rows/1?sort=seed&desc=1"
    with TestClient(api, HOST) as client:
        asked = client.get(page)
        assert asked.url.path == "/login"
        field = re.search('name="to" value="(.*?)"', asked.text)
        assert field
        to = unescape(field[1])
        assert f"/{to}" == page

        def led(to: str, token: str = "for-red") -> str:
            form = {"token": token, "to": to}
            answer = client.post(
                "/login", data=form, headers={"Origin": HOST}, follow_redirects=False
            )
            client.cookies.clear()
            return answer.headers.get("location", answer.text)

        assert urljoin(f"{HOST}/login", led(to)) == f"{HOST}{page}"
        assert f'value="{escape(to)}"' in led(to, "wrong")
        for elsewhere in (
            "", "//evil.example", "https://evil.example", "javascript:alert(1)", "/\\evil.example",
            "../other", "runs/../../other", "%2e%2e/other", "a\r\nSet-Cookie: b",
            "\\\\evil.example",
        ):  # fmt: skip
            assert led(elsewhere) == "./", elsewhere
        for length in (1024, 1025):
            asked = client.get(f"/?q={'%' * (length - 3)}")
            assert asked.status_code == 200
            assert 'name="token"' in asked.text
            assert ('name="to"' in asked.text) is (length == 1024)
        assert led("?q=" + "%" * 1021, "x" * 512).startswith("<!doctype")  # asks again
        # Neither a form nor what polls is a page to come back to.
        poll = client.get("/", headers={"HX-Request": "true"}, follow_redirects=False)
        assert poll.headers["location"] == "./login"
        poll = client.get(page, headers={"HX-Request": "true"}, follow_redirects=False)
        assert poll.headers["location"] == "../../../login"
        sent = client.post(f"/runs/{RED}/cancel", headers={"Origin": HOST}, follow_redirects=False)
        assert sent.headers["location"] == "../../login"


def test_an_address_that_nothing_has_is_a_page_to_browsers_alone(page: TestClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    for path in ("/nix", "/nix/<b>", "/page/nix"):
        answer = page.get(path, headers=browser)
        assert (answer.status_code, answer.headers["content-type"]) == (
            404, "text/html; charset=utf-8",
        )  # fmt: skip
        assert f"There is nothing at {escape(path)}." in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert page.get(path).json()["code"] == "not_found"
    assert page.get("/v1/images/generations", headers=browser).status_code == 405


def test_a_poll_takes_three_round_trips_however_many_runs(
    site: Site, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        start(site, f"{number:012x}", site.folder / f"run-{number}")
    api = make_api(settings, load_models(settings.models))
    board = api.state.parts[Board]
    trips = 0

    def count(kind: type) -> None:
        send = kind.send_packed_command

        def counting(self: object, *args: object, **options: object) -> object:
            nonlocal trips
            trips += 1
            return send(self, *args, **options)

        monkeypatch.setattr(kind, "send_packed_command", counting)

    async def poll() -> int:
        nonlocal trips
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as client:
            await client.get("/")  # connects
            board.forget()
            trips = 0
            assert "run-19" in (await client.get("/")).text
            first, trips = trips, 0
            await client.get("/")  # within a second of the other
        await api.state.parts[Access].close()
        board.known.runs.client.close()
        return max(first, trips + 2)

    count(redis.connection.AbstractConnection)
    count(redis.asyncio.connection.AbstractConnection)
    assert asyncio.run(poll()) == 3


def seeds_of(html: str) -> list[str]:
    """The prompts of a gallery's tiles, in order."""
    return re.findall(r'/rows/\d+" title="([^"]*)"', html)


def test_pictures_are_sorted_and_chosen_by_any_column(site: Site, page: TestClient) -> None:
    """Of a run under way from its parts, of a finished one from its dataset, with its scores."""
    storage = open_storage(str(site.folder / "my-run"))
    plan = plan_run(storage, LOOSE, 90, shard=32, chunk=8, prompts={5: "a <b>moth</b>"})
    for shard in range(3):
        for chunk in range(len(plan.shards[shard].chunks)):
            settle(storage, plan, shard, chunk, {7: "the paint ran out", 40: "no canvas"})
    start_run(plan, storage, site.runs, site.dispatcher)
    path = f"/runs/{LOOSE}"

    def shown(**params: str | int) -> list[str]:
        answer = page.get(path, params=params)
        assert answer.status_code == 200
        return seeds_of(answer.text)

    for _ in range(2):
        falling = [f"scene {n}" for n in range(89, -1, -1) if n not in (5, 7, 40)]
        assert shown(by="seed", order="falling") == falling[:40]
        assert shown(by="seed", order="falling", after=40) == falling[40:80]
        assert shown(by="seed", order="falling", before=80) == falling[40:80]
        assert shown(by="prompt")[0] == "a &lt;b&gt;moth&lt;/b&gt;"
        assert shown(where="index in [3, 7, 64] and width == 64") == ["scene 3", "scene 64"]
        assert shown(where="index > 80", q="scene 8", order="falling") == [
            f"scene {n}" for n in range(81, 90)
        ]
        assert shown(show="failures", by="message") == ["scene 40", "scene 7"]
        assert shown(by="adapter", order="falling", where="index < 2") == ["scene 0", "scene 1"]
        wrong = page.get(path, params={"where": "width >"}).text
        assert 'role="alert"' in wrong
        assert "cannot be compared" in page.get(path, params={"where": 'width == "<b>"'}).text
        assert "<b>" not in page.get(path, params={"where": 'width == "<b>"'}).text
        assert page.get(path, params={"by": "no such"}).status_code == 422
        # the second time it has finished, and was scored
        write_dataset(storage, plan)
        scoring = Scoring("taste", "1", ("taste",))
        rows = list(read_part(storage, layout.METADATA))
        for number in range(3):
            own = [
                (row, {"taste": row["index"] % 7 / 7})
                for row in rows
                if row["file_name"][7:12] == f"{number:05d}"
            ]
            place = layout.folder_scores(scoring.key, number, LOOSE, number)
            write_scores(storage, place, own)
        write_scoring(storage, scoring)
        rewrite_rows(storage, plan)
        site.runs.finish(LOOSE, 88, 2)
        eventually(lambda: ">finished<" in page.get(path).text)
    assert ">taste</option>" in page.get(path).text
    best = page.get(path, params={"by": "taste", "order": "falling"}).text
    assert seeds_of(best)[:3] == ["scene 6", "scene 13", "scene 20"]
    assert ">0.8571</p>" in best
    assert shown(where="taste > 0.8 and index < 15") == ["scene 6", "scene 13"]


def test_a_run_that_chooses_shows_what_is_chosen(site: Site, page: TestClient) -> None:
    """Under way the candidates as such; at its end the chosen ones, by the scores that they have,
    those that were not chosen apart from them, and what none passed for as a failure."""
    storage = open_storage(str(site.folder / "my-run"))
    plan = plan_choosing(storage, LOOSE)
    settle_round(storage, plan, 0)
    start_run(plan, storage, site.runs, site.dispatcher)
    path = f"/runs/{LOOSE}"

    def shown(**params: str | int) -> list[str]:
        return seeds_of(page.get(path, params=params).text)

    assert "candidate 1 of at most 3" in page.get(f"{path}/rows/0").text
    live = page.get(path).text
    assert ">Candidates</dt><dd>12<small> of 24<" in live
    assert len(seeds_of(live)) == live.count(">candidate 1</p>") == 12
    assert "lines 1 to 12<" in live
    assert shown(where="taste > 0.5") == ["scene 3", "scene 7"]
    assert shown(by="taste", order="falling")[:3] == ["scene 3", "scene 7", "scene 2"]
    for number in (1, 2):
        settle_round(storage, plan, number)
    summary = write_dataset(storage, plan)
    assert (summary.done, summary.rejected, summary.rejects) == (11, 1, 12)
    site.runs.finish(LOOSE, 11, 1)
    eventually(lambda: ">finished<" in page.get(path).text)

    ended = page.get(path).text
    assert seeds_of(ended) == [f"scene {n}" for n in range(11)]
    assert "1 to 11 of 11<" in ended
    assert "candidate 1<" not in ended
    assert re.search(r'rows/33">line 12</a> <code>none_passed</code>', ended)
    failures = page.get(path, params={"show": "failures"}).text
    assert "none of 3 candidates has taste &gt;= 0.5" in failures
    assert "1 to 1 of 1<" in failures
    rejects = page.get(path, params={"show": "rejects"}).text
    assert seeds_of(rejects).count("scene 11") == 3
    assert "1 to 12 of 12<" in rejects
    assert len(shown(show="all")) == 12
    assert shown(where="taste > 0.5") == ["scene 3", "scene 7"]
    assert shown(where="candidates == 2") == ["scene 1", "scene 5", "scene 9"]
    best = page.get(path, params={"by": "taste", "order": "falling"}).text
    assert seeds_of(best)[:3] == ["scene 3", "scene 7", "scene 0"]
    assert ">0.75</p>" in best
    assert re.search(r'rows/2" title="scene 0"', best)  # its third candidate

    assert ">Images</dt><dd>11<small> of 12<" in ended
    assert site.progress(LOOSE).requests == 12  # images, no candidates
    reject, taken, none = (page.get(f"{path}/rows/{n}").text for n in (0, 2, 33))
    assert "candidate 1 of 3, not chosen" in reject
    assert "<dt>taste</dt><dd><code>0.0</code>" in reject
    assert "candidate 3 of 3, chosen" in taken
    assert "<dt>candidates</dt><dd><code>3</code>" in taken
    assert "candidate 1 of 3, not chosen: none of 3 candidates has taste" in none
    assert "/retry" not in ended
    assert ": 0 of 12 requests" in page.get(f"{path}/retry").text

    # of a run that another has taken over
    plan_run(storage, RED, 4)
    taken = page.get(path).text
    assert f'Taken over by run <a href="../runs/{RED}"' in taken
    assert ">taste</option>" in taken
    assert shown(where="taste > 0.5") == ["scene 3", "scene 7"]


def test_a_round_of_candidates_is_counted_with_those_before(site: Site, page: TestClient) -> None:
    storage = open_storage(str(site.folder / "my-run"))
    plan = plan_choosing(storage, LOOSE)
    start_run(plan, storage, site.runs, site.dispatcher)
    settle_round(storage, plan, 0, failed=[2, 3])
    site.runs.client.hset(f"{site.runs.prefix}run:{LOOSE}", "done", 12)
    eventually(lambda: ">choosing</dd>" in page.get("/").text)
    assert "<progress" in page.get("/").text
    assert (
        ' value="' not in re.findall("<progress.*?>", page.get("/").text)[0]
    )  # how many none knows
    assert begin_round(plan, storage, site.runs, site.dispatcher)
    now = site.progress(LOOSE)
    assert (now.requests, now.done, now.failed) == (21, 10, 2)
    assert not now.choosing


def test_an_unknown_column_is_refused(site: Site, page: TestClient) -> None:
    start(site, LOOSE, site.folder / "my-run", settled=1)
    for where in ("nonsense > 1", "widht > 1 and width > 1"):
        text = page.get(f"/runs/{LOOSE}", params={"where": where}).text
        assert "which is no column of the dataset" in text
        assert re.search(r"Its columns: [^<]* prompt, [^<]* width", text)
    assert "did you mean &#39;width&#39;?" in text
    text = page.get(f"/runs/{LOOSE}", params={"by": "widht"}).text
    assert re.search(r"The order names [^<]*widht[^<]*; did you mean &#39;width&#39;", text)
    assert 'aria-invalid="true"' not in text  # of the condition
    for by in ("width", "message", "signed_sha256"):
        assert "The order names" not in page.get(f"/runs/{LOOSE}", params={"by": by}).text
    none = page.get(f"/runs/{LOOSE}", params={"where": "guidance_scale > 90"}).text
    assert "Nothing here matches" in none


def test_two_pictures_are_seen_side_by_side(site: Site, page: TestClient) -> None:
    for number, run_id in enumerate((LOOSE, RED)):
        storage = open_storage(str(site.folder / f"run-{number}"))
        plan = plan_run(storage, run_id, 4, chunk=2, prompts={1: f"moth {number}"})
        settle(storage, plan, 0, 0, {0: "no paint"} if number else {})
        start_run(plan, storage, site.runs, site.dispatcher)
    assert f'<option value="{RED}">run-1</option>' in page.get(f"/runs/{LOOSE}/rows/1").text
    path = f"/runs/{LOOSE}/rows/1/beside"
    pair = page.get(path, params={"run": RED, "number": 2}).text
    assert len(re.findall(r'src="[^"]*/pictures/', pair)) == 2
    assert re.search(r"<th scope=.row.>prompt</th><td>moth 0</td><td>moth 1</td>", pair)
    assert '<th scope="row">model</th>' not in pair  # it is the same
    assert re.search(r'rel="prev" href="[^"]*/rows/0/beside\?run=0000000000aa&amp;number=1"', pair)
    other = page.get(f"/runs/{LOOSE}/rows/0/beside", params={"run": RED, "number": 1}).text
    assert "no paint" in other
    late = page.get(path, params={"run": RED, "number": 4}).text
    assert "Not rendered yet" in late
    assert 'rel="next"' not in late
    assert page.get(path, params={"run": RED, "number": 5}).status_code == 404
    assert page.get(path, params={"run": "0000000000cc", "number": 1}).status_code == 404


def test_a_run_gets_another_priority_as_far_as_the_key_goes(site: Site, settings: Settings) -> None:
    _, token = create_key(settings.keys_file, ["red"], "normal")
    out = Path(str(settings.store)) / "batches/red/batch_1/out"
    start(site, RED, out)
    with TestClient(make_api(settings, load_models(settings.models)), HOST) as client:
        same = {"Origin": HOST}
        client.post("/login", data={"token": token}, headers=same)
        assert ">high</" not in client.get(f"/runs/{RED}/priority").text
        path = f"/runs/{RED}/priority"
        for asked, status in (("low", 200), ("high", 403), ("urgent", 422)):
            answer = client.post(path, data={"priority": asked}, headers=same)
            assert answer.status_code == status
        assert client.post(path, data={"priority": "low"}).status_code == 403  # of another site
        assert "Priority: low" in client.get(f"/runs/{RED}").text
    assert site.progress(RED).priority == "low"
    plan = read_plan(open_storage(str(out)), RED)
    assert plan
    assert plan.priority == "low"  # resume will find it


def test_workers_say_what_they_render_and_what_is_spent(site: Site, page: TestClient) -> None:
    start(site, LOOSE, site.folder / "my-run")
    worker = Worker(name="gpu0@host", models=("null", "slow"), device="cuda", host="host", pid=1)
    site.fleet.report(worker)
    site.fleet.tell(worker.name, Doing(LOOSE, "null", ("null",), 1.0))
    site.runs.spend(LOOSE, "null", Effort(seconds=90))
    eventually(lambda: "gpu0@host" in page.get("/").text)
    board = page.get("/").text
    assert re.search(rf'renders <a href="./runs/{LOOSE}">my-run</a> with null', board)
    assert board.count("(loaded)") == 1
    assert "<dt>null</dt><dd>1 min 30 s</dd>" in board
    site.fleet.tell(worker.name, Doing("0000000000cc", "null", (), 1.0))
    eventually(lambda: "renders another run" in page.get("/").text)  # that nobody may know of
