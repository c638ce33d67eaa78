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
        ("IMAGEMILL_INPUT_HOSTS", "images.example.com", "input_hosts"),
        ("IMAGEMILL_VISIBILITY_TIMEOUT", "1", "visibility_timeout"),
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
        ("IMAGEMILL_SETTINGS", "unknown.toml", "brokr"),
    ],
)
def test_mistakes_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    (folder / "broken.toml").write_text("broker = ")
    (folder / "unknown.toml").write_text('brokr = "redis://host"')
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said) as refused:
        load_settings()
    assert refused.value.hint


def test_a_brokers_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEMILL_BROKER", "http://:secret@host")
    with pytest.raises(UsageError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)
