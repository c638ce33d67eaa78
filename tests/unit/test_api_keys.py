"""Keys and signed URLs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs.errors import InvalidRequest, UsageError
from producer.api.access.keys import create_key, make_ring, read_keys, revoke_key
from producer.api.access.signing import read_signer


def test_tokens_are_found_and_kept_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "keys.json"
    ring = make_ring(None, file)
    assert ring.all() == []
    key, token = create_key(file, ["red", "blue"])
    other, _ = create_key(file, ["green"], "high")
    assert ring.find(token) == key
    assert ring.find(token + "x") is None
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    revoke_key(file, key.id)
    assert ring.find(token) is None
    assert read_keys(file) == [other]
    assert other.priority == "high"
    with pytest.raises(UsageError, match="no key"):
        revoke_key(file, key.id)


def test_keys_of_the_environment(tmp_path: Path) -> None:
    ring = make_ring(SecretStr("one, two@red+blue"), tmp_path / "keys.json")
    assert [key.teams for key in ring.all()] == [("default",), ("red", "blue")]
    found = ring.find("two")
    assert found is not None
    assert found.teams == ("red", "blue")
    assert "two" not in repr(ring)


@pytest.mark.parametrize("team", ["", "../x", "a/b", ".", "-a", "x" * 65])
def test_team_names_are_plain(team: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain name"):
        create_key(tmp_path / "keys.json", [team])


def test_a_key_of_before_priorities_is_normal(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('[{"id": "1", "teams": ["red"], "digest": "0", "created_at": 5}]')
    assert [key.priority for key in read_keys(file)] == ["normal"]


def test_broken_keys_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text("{")
    with pytest.raises(UsageError, match=r"keys\.json"):
        make_ring(None, file)


def test_signed_paths(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "signing.key"
    signer = read_signer(file)
    assert read_signer(file) == signer
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    path, _, query = signer.query("calls/red/a b.png", 60).partition("?")
    expires, signature = (part.partition("=")[2] for part in query.split("&"))
    assert path == "calls/red/a%20b.png"
    signer.check("calls/red/a b.png", int(expires), signature)
    for altered in (
        ("calls/blue/a b.png", int(expires), signature),
        ("calls/red/a b.png", int(expires) + 1, signature),
        ("calls/red/a b.png", int(expires), signature[:-1] + "é"),
        ("calls/red/a b.png", int(expires), ""),
    ):
        with pytest.raises(InvalidRequest) as refused:
            signer.check(*altered)
        assert refused.value.code == "bad_signature"
    old = signer.query("x", -1).partition("?")[2].split("&")
    with pytest.raises(InvalidRequest):
        signer.check("x", int(old[0].partition("=")[2]), old[1].partition("=")[2])
