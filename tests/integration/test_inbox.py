"""An inbox: each manifest is submitted once and filed, whoever watches and whoever dies."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import UsageError
from jobs.output.storage import Storage, open_storage
from jobs.settings import Team
from producer.control.installation import installation
from producer.control.stopping import cancel
from producer.planning.manifest import manifest_digest
from producer.planning.resolution import PlanOptions
from producer.schedules import inbox as module
from producer.schedules.inbox import Inbox
from producer.schedules.news import News
from tests.sites import Site
from tests.support import eventually

LINE = b'{"prompt": "a red circle"}\n'


@dataclass
class Post:
    """An inbox in a folder or a bucket, and its watchers."""

    site: Site
    storage: Storage
    told: list[News] = field(default_factory=list)

    def watcher(self, **changes: Any) -> Inbox:
        known = installation(self.site.settings)
        table = replace(self.site.table, closed=True)
        options = PlanOptions(model="null")
        out = f"{self.storage.uri}/out/{{name}}"
        made = Inbox(
            storage=self.storage,
            out=out,
            known=known,
            table=table,
            options=options,
            tell=self.told.append,
        )
        return replace(made, **changes)

    def report(self, path: str) -> dict[str, Any]:
        report: dict[str, Any] = orjson.loads(self.storage.read(f"{path}.report.json"))
        return report

    def filed(self) -> list[str]:
        names = [f"{f}/{n}" for f in ("accepted", "rejected") for n in self.storage.list(f)]
        return [name for name in names if not name.endswith(".report.json")]

    def waiting(self) -> list[str]:
        found = self.storage.sizes("")
        return sorted(path for path in found if "/" not in path or path.startswith("taken/"))


@pytest.fixture
def post(site: Site) -> Post:
    (site.folder / "inbox").mkdir()
    return Post(site, open_storage(f"{site.folder}/inbox"))


@pytest.fixture(params=["folder", "bucket"])
def any_post(request: pytest.FixtureRequest, site: Site) -> Post:
    if request.param == "folder":
        place = f"{site.folder}/inbox"
    else:
        place = f"{request.getfixturevalue('bucket')}/inbox"
    return Post(site, open_storage(place))


def test_manifests_are_filed_with_a_report(any_post: Post) -> None:
    storage = any_post.storage
    storage.write("good.jsonl", LINE * 1)
    storage.write("marked.jsonl", LINE)
    storage.write("marked.jsonl.done", b"")
    storage.write("bad.jsonl", b'{"prompt": 1}\n')
    storage.write("torn.jsonl.gz", b"\x1f\x8b")
    storage.write("notes.txt", b"not ours")
    any_post.watcher().look()
    assert any_post.filed() == [
        "accepted/good.jsonl",
        "accepted/marked.jsonl",
        "rejected/bad.jsonl",
        "rejected/torn.jsonl.gz",
    ]
    assert any_post.waiting() == ["notes.txt"]
    report = any_post.report("accepted/good.jsonl")
    assert report["out"] == f"{storage.uri}/out/good"
    assert any_post.site.progress(report["run_id"]).requests == 1
    bad = any_post.report("rejected/bad.jsonl")
    assert (bad["state"], bad["invalid"]) == ("rejected", 1)
    assert bad["errors"][0]["line"] == 1
    assert "cannot be read" in any_post.report("rejected/torn.jsonl.gz")["reason"]
    assert sorted(any_post.site.runs.listed()) == sorted(
        any_post.report(f"accepted/{name}.jsonl")["run_id"] for name in ("good", "marked")
    )


def test_tables_are_manifests_too(any_post: Post) -> None:
    storage = any_post.storage
    storage.write("some.csv", b"text,seed\na circle,1\na star,2\n")
    storage.write("tabs.tsv", b"text\tseed\na circle\t1\n")
    storage.write("other.csv", b"caption\na circle\n")
    storage.write("bad.csv", b'text,seed\n"a\n')
    storage.write("wide.csv", b"text,seed\na,b,c\n")
    storage.write("large.parquet", b"PAR1")
    storage.write(".csv", b"text\n")
    storage.write("lines.jsonl", LINE)  # which has no columns to map or keep
    options = PlanOptions(model="null", columns=(("prompt", "text"),), keep=("text",))
    any_post.watcher(options=options).look()
    assert any_post.waiting() == [".csv", "large.parquet"]
    assert any_post.filed() == [
        "accepted/lines.jsonl",
        "accepted/some.csv",
        "accepted/tabs.tsv",
        "rejected/bad.csv",
        "rejected/other.csv",
        "rejected/wide.csv",
    ]
    report = any_post.report("accepted/some.csv")
    assert (report["requests"], report["out"]) == (2, f"{storage.uri}/out/some")
    assert "has no column 'text'" in any_post.report("rejected/other.csv")["reason"]
    assert "line 1: has 3 cells" in any_post.report("rejected/wide.csv")["reason"]


def test_a_manifest_waits_for_its_teams_quota(post: Post) -> None:
    post.storage.write("good.jsonl", LINE)
    settings = post.site.settings
    little = settings.model_copy(update={"teams": {"red": Team(device_seconds_a_day=0)}})
    post.watcher(team="red", known=installation(little)).look()
    assert post.filed() == []
    assert [news.what for news in post.told] == ["waits"]
    assert "device seconds a day" in post.told[0].text
    post.watcher(team="red", priority="low").look()
    assert post.filed() == ["accepted/good.jsonl"]
    progress = post.site.progress(post.report("accepted/good.jsonl")["run_id"])
    assert (progress.team, progress.priority) == ("red", "low")


def test_watchers_side_by_side_submit_each_once(any_post: Post) -> None:
    names = [f"{number}.jsonl" for number in range(8)]
    for number, name in enumerate(names):
        any_post.storage.write(name, b'{"prompt": "a", "seed": %d}\n' % number)
    watchers = [any_post.watcher() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda watcher: watcher.look(), watchers))
    any_post.watcher().look()
    assert any_post.filed() == [f"accepted/{name}" for name in names]
    assert sorted(news.subject for news in any_post.told if news.what == "accepted") == names
    assert len(any_post.site.runs.listed()) == len(names)
    assert any_post.waiting() == []


def test_a_watcher_that_died_is_followed_by_one_that_submits_the_same_run(any_post: Post) -> None:
    post = any_post
    post.storage.write("a.jsonl", LINE)
    post.storage.write("a.jsonl.done", b"")
    first = post.watcher(out=f"{post.storage.uri}/out/{{name}}/{{nominal}}")
    taken = first._taken("a.jsonl", manifest_digest(post.storage.name("a.jsonl")))
    assert taken
    submitted = first._submit("a.jsonl", taken)
    post.watcher(out=first.out).look()
    report = post.report("accepted/a.jsonl")
    assert (report["run_id"], report["out"]) == (submitted.run_id, submitted.out)
    assert post.site.runs.listed() == [submitted.run_id]
    assert post.waiting() == []


@pytest.mark.parametrize(
    ("any_post", "steps"),
    [
        ("folder", []),
        ("folder", ["move"]),
        ("bucket", []),
        ("bucket", ["copy"]),
        ("bucket", ["move"]),
    ],
    indirect=["any_post"],
)
def test_a_watcher_may_die_while_it_files(
    any_post: Post, monkeypatch: pytest.MonkeyPatch, steps: list[str]
) -> None:
    """Before the manifest is moved, in the midst of that as object stores do it, and after it."""
    post = any_post
    post.storage.write("a.jsonl", LINE)
    post.storage.write("a.jsonl.done", b"")
    out = f"{post.storage.uri}/out/{{name}}/{{nominal}}"
    look_and_die(post.watcher(out=out, needs_marker=True), monkeypatch, steps)
    assert "taken/a.jsonl.json" in post.waiting()
    assert "a.jsonl.done" not in post.waiting()
    post.watcher(out=out, needs_marker=True).look()
    assert (post.waiting(), post.filed()) == ([], ["accepted/a.jsonl"])
    assert post.site.runs.listed() == [post.report("accepted/a.jsonl")["run_id"]]


@pytest.mark.parametrize("needs_marker", [False, True])
@pytest.mark.parametrize("line", [LINE, b'{"prompt": "another"}\n'])
def test_what_comes_under_a_name_that_a_dead_watcher_filed_is_taken_on_anew(
    post: Post, monkeypatch: pytest.MonkeyPatch, needs_marker: bool, line: bytes
) -> None:
    post.storage.write("a.jsonl", LINE)
    post.storage.write("a.jsonl.done", b"")
    watcher = post.watcher(needs_marker=needs_marker)
    look_and_die(watcher, monkeypatch, ["move"])
    first = post.report("accepted/a.jsonl")
    cancel(first["run_id"], installation(post.site.settings))
    post.storage.write("a.jsonl", line)
    if needs_marker:
        watcher.look()
        assert post.waiting() == ["a.jsonl"]
        post.storage.write("a.jsonl.done", b"")
    watcher.look()
    assert post.waiting() == []
    old, new = sorted(post.filed(), reverse=True)
    assert (post.storage.read(old), post.report(old)) == (LINE, first)
    assert (post.storage.read(new), post.report(new)["state"]) == (line, "accepted")


def test_what_a_dead_watcher_filed_and_what_comes_next_have_datasets_of_their_own(
    any_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = any_post
    post.storage.write("a.jsonl", LINE)
    watcher = post.watcher(out=f"{post.storage.uri}/out/{{name}}-{{nominal}}")
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "now", lambda: "2025-11-26T12:00:00+00:00")
        look_and_die(watcher, monkeypatch, ["move"])
    first = post.report("accepted/a.jsonl")
    post.storage.write("a.jsonl", b'{"prompt": "another"}\n')
    watcher.look()
    assert post.waiting() == []
    old, new = sorted(post.filed(), reverse=True)
    assert (post.storage.read(old), post.report(old)) == (LINE, first)
    assert post.report(new)["out"] != first["out"]


def test_a_marker_that_comes_while_another_is_filed_stays(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Storage.move

    def move_and_write(storage: Storage, path: str, to: str) -> None:
        move(storage, path, to)
        storage.write("a.jsonl", b'{"prompt": "another"}\n')
        storage.write("a.jsonl.done", b"")

    post.storage.write("a.jsonl", LINE)
    post.storage.write("a.jsonl.done", b"")
    with monkeypatch.context() as busy:
        busy.setattr(Storage, "move", move_and_write)
        post.watcher(needs_marker=True).look()
    assert post.waiting() == ["a.jsonl", "a.jsonl.done"]
    cancel(post.report("accepted/a.jsonl")["run_id"], installation(post.site.settings))
    post.watcher(needs_marker=True).look()
    assert (post.waiting(), len(post.filed()), len(post.site.runs.listed())) == ([], 2, 2)


def test_three_of_a_name_within_a_second_are_all_kept(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = post.watcher(out=f"{post.storage.uri}/out/{{name}}")
    lines = [b'{"prompt": %d}\n' % number for number in range(3)]  # which are refused
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "now", lambda: "2025-11-26T12:00:00+00:00")
        for line in lines:
            post.storage.write("a.jsonl", line)
            watcher.look()
    assert [news.what for news in post.told] == ["rejected", "rejected", "waits"]
    watcher.look()
    *later, first = map(post.storage.read, sorted(post.filed()))
    assert [first, *later] == lines


def look_and_die(watcher: Inbox, monkeypatch: pytest.MonkeyPatch, steps: list[str]) -> None:
    """A look that ends while a manifest is moved, after these steps of it."""
    done = [getattr(Storage, step) for step in steps]

    def die(storage: Storage, path: str, to: str) -> None:
        for step in done:
            step(storage, path, to)
        raise SystemExit

    with monkeypatch.context() as deadly:
        deadly.setattr(Storage, "move", die)
        with pytest.raises(SystemExit):
            watcher.look()


def test_only_whole_manifests_are_taken_whatever_their_times(post: Post) -> None:
    folder = Path(post.storage.uri)
    (folder / ".hidden.jsonl").write_bytes(LINE)
    (folder / "upload.jsonl.part").write_bytes(LINE)
    for name, when in (("old.jsonl", 0), ("new.jsonl", 4_000_000_000)):
        (folder / name).write_bytes(LINE)
        os.utime(folder / name, (when, when))
    # Taken on by one that died; it is written anew since.
    post.watcher()._taken("copied.jsonl", "0" * 64)
    with (folder / "copied.jsonl").open("wb") as writing:
        writing.write(LINE)
        writing.flush()
        post.watcher().look()
        assert post.filed() == ["accepted/new.jsonl", "accepted/old.jsonl"]
    (folder / "upload.jsonl.part").rename(folder / "upload.jsonl")
    post.watcher().look()
    assert post.waiting() == [".hidden.jsonl"]
    assert len(post.filed()) == 4


def test_links_pipes_and_folders_are_left_alone(post: Post, tmp_path: Path) -> None:
    folder = Path(post.storage.uri)
    (tmp_path / "elsewhere").write_bytes(LINE)
    (folder / "link.jsonl").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "folder.jsonl").mkdir()
    post.watcher().look()
    assert (post.filed(), post.told) == ([], [])


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b"{}",
        b'{"at": "2026-11-26T00:00:00Z", "filed": "../b.jsonl", "digest": "%s"}'
        % sha256(LINE).hexdigest().encode(),
    ],
)
def test_a_forged_record_changes_nothing(post: Post, record: bytes) -> None:
    post.storage.write("taken/a.jsonl.json", record)
    post.storage.write("a.jsonl", LINE)
    post.watcher().look()
    assert (post.waiting(), post.filed()) == ([], ["accepted/a.jsonl"])


def test_a_marker_may_be_asked_for(post: Post) -> None:
    post.storage.write("a.jsonl", LINE)
    post.watcher(needs_marker=True).look()
    assert post.waiting() == ["a.jsonl"]
    post.storage.write("a.jsonl.done", b"")
    post.watcher(needs_marker=True).look()
    assert (post.waiting(), post.filed()) == ([], ["accepted/a.jsonl"])


def test_a_name_that_comes_again_waits_for_its_run_and_keeps_what_was_filed(post: Post) -> None:
    post.storage.write("a.jsonl", LINE)
    watcher = post.watcher()
    watcher.look()
    first = post.report("accepted/a.jsonl")
    post.storage.write("a.jsonl", LINE + b'{"prompt": "another"}\n')
    watcher.look()
    watcher.look()
    assert [news.what for news in post.told] == ["accepted", "waits"]
    assert f"run {first['run_id']} goes on" in post.told[-1].text
    cancel(first["run_id"], installation(post.site.settings))
    watcher.look()
    old, new = sorted(post.filed(), reverse=True)
    assert (old, post.report(old)) == ("accepted/a.jsonl", first)
    assert new.endswith("Z-a.jsonl")
    assert post.report(new)["run_id"] != first["run_id"]


def test_images_that_are_gone_are_rendered_again(post: Post) -> None:
    post.site.start_worker("null")
    images = post.site.folder / "inbox" / "out" / "a" / "images"
    for _ in range(2):
        post.storage.write("a.jsonl", LINE)
        post.watcher().look()
        run_id = post.report("accepted/a.jsonl")["run_id"]
        eventually(lambda: post.site.progress(run_id).state == "finished")  # noqa: B023
        (image,) = images.glob("*/*")
        image.unlink()


def test_what_comes_under_a_name_meanwhile_is_not_filed_unseen(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = module.launch

    def launch_slowly(*args: Any) -> Any:
        post.storage.write("a.jsonl", b'{"prompt": "another"}\n')
        return launch(*args)

    post.storage.write("a.jsonl", LINE)
    with monkeypatch.context() as slow:
        slow.setattr(module, "launch", launch_slowly)
        post.watcher().look()
    assert (post.waiting(), post.filed()) == (["a.jsonl"], [])
    cancel(post.site.runs.listed()[0], installation(post.site.settings))
    post.watcher().look()
    assert len(post.site.runs.listed()) == 2
    assert post.filed() == ["accepted/a.jsonl"]


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a b.jsonl", LINE, "cannot become part of a path"),
        ("a.jsonl", b'{"prompt": "a", "image": "/etc/passwd", "model": "edits"}\n', "image"),
        ("a.jsonl", b'{"prompt": "a", "model": "/tmp"}\n', "unknown model"),
        ("a.jsonl", b"", "the manifest is empty"),
    ],
)
def test_strangers_reach_no_files_and_no_other_models(
    post: Post, name: str, line: bytes, reason: str
) -> None:
    edits = post.site.table.models["null"].model_copy(update={"takes": ("edit",), "max_inputs": 1})
    table = replace(post.site.table, models=post.site.table.models | {"edits": edits}, closed=True)
    post.storage.write(name, line)
    post.watcher(table=table).look()
    assert post.filed() == [f"rejected/{name}"]
    assert reason in post.report(f"rejected/{name}")["reason"]
    assert post.site.runs.listed() == []


def test_a_broker_that_is_away_leaves_manifests_where_they_are(post: Post) -> None:
    post.storage.write("a.jsonl", LINE)
    gone = post.site.settings.model_copy(update={"broker": "redis://127.0.0.1:1"})
    post.watcher(known=installation(gone)).look()
    assert post.waiting() == ["a.jsonl"]
    assert "cannot be reached" in post.told[-1].text
    post.watcher().look()
    assert post.filed() == ["accepted/a.jsonl"]


def test_a_wrong_output_location_is_no_fault_of_a_manifest(post: Post, bucket: str) -> None:
    post.storage.write("a.jsonl", LINE)
    watcher = post.watcher(out=f"{bucket}-absent/{{name}}")
    watcher.look()
    watcher.look()
    assert (post.filed(), [news.what for news in post.told]) == ([], ["waits"])
    assert f"{bucket}-absent" in post.told[0].text


@pytest.mark.parametrize("out", ["out", "out/{name}/{day}", "out/{name"])
def test_a_template_that_cannot_work_is_refused(post: Post, out: str) -> None:
    with pytest.raises(UsageError, match="--out out"):
        post.watcher(out=out)
