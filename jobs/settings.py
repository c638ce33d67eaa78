"""Facts of a deployment, read once at an entry point and passed down.

Sources, first wins: command-line options, `IMAGEMILL_*` environment variables, `imagemill.toml` in
the working directory (or the file that `IMAGEMILL_SETTINGS` names), the defaults below.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from jobs.errors import UsageError


class Settings(BaseSettings):
    """Deployment settings; each field is also the environment variable `IMAGEMILL_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="IMAGEMILL_", frozen=True, extra="forbid")

    broker: Annotated[
        str, Field(description="Redis URL: redis://, rediss:// or redis+socket:///path")
    ] = "redis://127.0.0.1:6379/0"
    key_prefix: Annotated[
        str, Field(description="Prefix of every Redis key", pattern=r"^[A-Za-z0-9_.:-]+$")
    ] = "imagemill:"
    models: Annotated[
        Path | None, Field(description="A models.toml; the built-in one when not given")
    ] = None
    visibility_timeout: Annotated[
        float, Field(ge=5, le=3600, description="Seconds until a dead host's chunk runs elsewhere")
    ] = 12.0
    shutdown_timeout: Annotated[
        float, Field(ge=0, le=3600, description="Seconds a stopping worker may finish its batch in")
    ] = 20.0
    upload_threads: Annotated[
        int, Field(ge=1, le=256, description="Threads that encode and store images, a worker")
    ] = 8

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The one place outside pydantic-settings that reads the environment: where the file is.
        file = Path(os.environ.get("IMAGEMILL_SETTINGS", "imagemill.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these same settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {f"IMAGEMILL_{name.upper()}": str(value) for name, value in values.items()}


def load_settings(broker: str | None = None, models: Path | None = None) -> Settings:
    """Settings with the given options on top.

    Raises:
        UsageError: a setting has a wrong type or range, or its name is unknown.
    """
    options = {"broker": broker, "models": models}
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"setting {name}: {first['msg']} (got {first['input']!r})",
            f"Correct IMAGEMILL_{name.upper()} or imagemill.toml.",
        ) from error
