"""Settings, and what a mistake in them looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import UsageError
from jobs.settings import load_settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_go_before_variables_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "imagemill.toml").write_text(
        'broker = "redis://file"\nkey_prefix = "file:"\nmodels_kept = 3\n'
    )
    monkeypatch.setenv("IMAGEMILL_BROKER", "redis://variable")
    monkeypatch.setenv("IMAGEMILL_KEY_PREFIX", "variable:")
    found = load_settings(broker="redis://option")
    assert (found.broker, found.key_prefix, found.models_kept) == (
        "redis://option", "variable:", 3,
    )  # fmt: skip


def test_secrets_are_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.settings.SECRETS", folder)
    (folder / "imagemill_api_keys").write_text("token@red\n")
    (folder / "imagemill_key_prefix").write_text("secret:")
    (folder / "aws_credentials").write_text("of somebody else")
    (folder / "imagemill.toml").write_text('key_prefix = "file:"')
    found = load_settings()
    assert found.api_keys is not None
    assert (found.api_keys.get_secret_value(), found.key_prefix) == ("token@red", "secret:")
    assert "token" not in str(found.environment())
    monkeypatch.setenv("IMAGEMILL_KEY_PREFIX", "variable:")
    assert load_settings().key_prefix == "variable:"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("IMAGEMILL_INPUT_HOSTS", "images.example.com", "IMAGEMILL_INPUT_HOSTS is no JSON"),
        (
            "IMAGEMILL_VISIBILITY_TIMEOUT",
            "1",
            "^IMAGEMILL_VISIBILITY_TIMEOUT: visibility_timeout must be at least 5.0 .got '1'.",
        ),
        ("IMAGEMILL_MODELS_KEPT", "two", "models_kept must be a whole number .got 'two'."),
        ("IMAGEMILL_BATCH_SECONDS", "inf", "batch_seconds must be a finite number"),
        ("IMAGEMILL_LOG_FORMAT", "xml", "log_format must be 'text' or 'json'"),
        ("IMAGEMILL_KEY_PREFIX", "a b", "key_prefix must be letters, digits"),
        ("IMAGEMILL_TEAM_RATE", "often", "team_rate must be a number of requests .* .got 'often'"),
        ("IMAGEMILL_TEAM_RATE", "5/fortnight", "team_rate must be a number of requests in a time"),
        ("IMAGEMILL_TEAM_RATE", "1/second;9/minute", "team_rate must be a number of requests in"),
        ("IMAGEMILL_TRACES", "collector:4318", "traces must be http://host:port"),
        ("IMAGEMILL_TRACES", "http://", "traces must be http://host:port"),
        ("IMAGEMILL_TEAMS", "{", "IMAGEMILL_TEAMS is no JSON"),
        ("IMAGEMILL_TEAMS", '{"a":' * 2000, "IMAGEMILL_TEAMS is no JSON: nested too deeply"),
        ("IMAGEMILL_TEAMS", '["red"]', "teams must be a table"),
        ("IMAGEMILL_TEAMS", '{"red": {"wieght": 2}}', "teams.red.wieght; did you mean 'weight'"),
        ("IMAGEMILL_TEAMS", '{"red": {"weight": 0}}', "teams.red.weight must be at least 0.01"),
        ("IMAGEMILL_TEAMS", '{"the red": {}}', "teams.the red is no team's name"),
        ("IMAGEMILL_BROKR", "redis://host", "IMAGEMILL_BROKR is no.*did you mean IMAGEMILL_BROKER"),
        ("IMAGEMILL_BROKER", "localhost:6379", "broker"),
        ("IMAGEMILL_PUBLIC_URL", "images.example", "public_url"),
        ("IMAGEMILL_PUBLIC_URL", "https://images.example/?a=b", "public_url"),
        ("IMAGEMILL_TRUSTED_PROXIES", '["10.0.0.1/8"]', "trusted_proxies"),
        ("IMAGEMILL_TRUSTED_PROXIES", '["proxy.example"]', "trusted_proxies"),
        ("IMAGEMILL_BROKER", "redis://", "broker"),
        ("IMAGEMILL_BROKER", "redis://host:port", "broker"),
        ("IMAGEMILL_BROKER", "rediss+cluster://host", "cannot be a Redis Cluster"),
        ("IMAGEMILL_BROKER", "sentinel://host,host/0", "master_name"),
        ("IMAGEMILL_BROKER", "sentinel://host,/0?master_name=a", "without a host"),
        ("IMAGEMILL_BROKER", "sentinel://host:port/0?master_name=a", "broker"),
        ("IMAGEMILL_SETTINGS", "nowhere.toml", "nowhere.toml"),
        ("IMAGEMILL_SETTINGS", "broken.toml", "broken.toml"),
        ("IMAGEMILL_SETTINGS", "latin.toml", "latin.toml.* cannot be read: 'utf-8'"),
        ("IMAGEMILL_SETTINGS", "/proc/self/mem", "/proc/self/mem.* cannot be read: .*error"),
        ("IMAGEMILL_SETTINGS", "deep.toml", "deep.toml is not TOML: nested too deeply"),
        ("IMAGEMILL_SETTINGS", "tables.toml", "tables.toml: models must be a path .got {'a': "),
        ("IMAGEMILL_SETTINGS", "unknown.toml", "unknown.toml: .* brokr; did you mean 'broker'"),
    ],
)
def test_mistakes_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    (folder / "broken.toml").write_text("broker = ")
    (folder / "latin.toml").write_bytes(b'store = "caf\xe9"')
    (folder / "deep.toml").write_text("teams = " + "[" * 2000 + "]" * 2000)
    (folder / "tables.toml").write_text("models" + ".a" * 900 + " = 1")
    (folder / "unknown.toml").write_text('brokr = "redis://host"')
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said) as refused:
        load_settings()
    assert refused.value.hint


@pytest.mark.parametrize("url", ["http://:secret@host", "redis://:secret/more@host"])
def test_a_brokers_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("IMAGEMILL_BROKER", url)
    with pytest.raises(UsageError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)


def test_all_mistakes_are_told_at_once_each_with_where_it_was_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.settings.SECRETS", folder)
    (folder / "imagemill_models_kept").write_text("0")
    (folder / "imagemill.toml").write_text('key_prefix = "a b"\napi_keys = ["hidden"]\n')
    monkeypatch.setenv("IMAGEMILL_BATCH_SECONDS", "0")
    with pytest.raises(UsageError) as refused:
        load_settings(broker="redis://")
    assert [line.split(" must ")[0] for line in sorted(refused.value.message.splitlines())] == [
        "--broker: broker",
        f"{folder}/imagemill_models_kept: models_kept",
        "IMAGEMILL_BATCH_SECONDS: batch_seconds",
        "imagemill.toml: api_keys",
        "imagemill.toml: key_prefix",
    ]
    assert "hidden" not in refused.value.message


def test_variables_that_others_set_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes: for services that are called imagemill, imagemill-broker, imagemill-models."""
    for name in ("PORT", "SERVICE_HOST", "BROKER_PORT", "BROKER_SERVICE_HOST", "MODELS_PORT"):
        monkeypatch.setenv(f"IMAGEMILL_{name}", "tcp://10.0.0.1:6379")
    assert load_settings().broker == "redis://127.0.0.1:6379/0"
