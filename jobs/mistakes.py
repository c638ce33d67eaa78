"""What is said of settings that are wrong: where each was said, what is wrong, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from jobs.errors import UsageError, plain, resembling, shown

# Where a setting was said: a variable, a file, an option.
Source = Callable[[str], str]

# How much a variable that is none must be like one to count as misspelt: Kubernetes sets others,
# IMAGEMILL_BROKER_PORT for a service that is called imagemill-broker.
_MISSPELT = 0.85
_REASONS = {  # pydantic's types of errors, with their contexts
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be more than {gt}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("dict_type", "model_type"), "must be a table"),
    "frozen_set_type": "must be a list",
    "string_type": "must be text",
    "path_type": "must be a path",
}


def of_values(
    error: ValidationError,
    source: Source,
    fields: Mapping[str, Iterable[str]],
    unshown: Container[str],
) -> UsageError:
    """All that is wrong with the values of settings, a line each.

    fields: the settings, under "", and those of each setting's tables, under its name; unshown:
    settings whose values are not repeated.
    """
    return _refusal(_mistake(one, source, fields, unshown) for one in error.errors())


def of_json(error: SettingsError, sources: Iterable[str]) -> UsageError:
    """That variables, or files of secrets, do not hold the JSON that they have to."""
    return UsageError(
        f"{', '.join(sources)} is no JSON: {error.__cause__}",
        """For example: IMAGEMILL_INPUT_HOSTS='["a.example"]', """
        """IMAGEMILL_TEAMS='{"vision": {"weight": 2}}'.""",
    )


def reason_of(error: ErrorDetails) -> str:
    """What is wrong with a value, and what is allowed: "must be at least 1"."""
    said = _REASONS.get(error["type"], "is wrong: {said}")
    if error["type"] == "value_error":
        said = "{said}"
    return said.format_map({"said": plain(error["msg"]), **error.get("ctx", {})})


def check_names(variables: Iterable[str], prefix: str, known: Iterable[str]) -> None:
    """Refuse variables whose names are nearly those of settings.

    Raises:
        UsageError: it names each, and the setting that it is like.
    """
    if misspelt := [*_misspelt(variables, prefix, known)]:
        raise _refusal(misspelt)


def _refusal(mistakes: Iterable[str]) -> UsageError:
    return UsageError(
        "\n".join(dict.fromkeys(mistakes)), "README.md and docs/10-http-api.md have every setting."
    )


def _mistake(
    error: ErrorDetails,
    source: Source,
    fields: Mapping[str, Iterable[str]],
    unshown: Container[str],
) -> str:
    """One line: where it was said, which setting, what is wrong and what is allowed."""
    name, *inner = (str(part) for part in error["loc"] if part != "[key]")
    setting = ".".join([name, *inner])
    if error["type"] == "extra_forbidden":
        near = resembling(setting.split(".")[-1], fields[name if inner else ""])
        return f"{source(name)}: there is no setting {setting}{near}"
    got = "" if name in unshown else f" (got {shown(error['input'])})"
    return f"{source(name)}: {setting} {reason_of(error)}{got}"


def _misspelt(variables: Iterable[str], prefix: str, known: Iterable[str]) -> Iterator[str]:
    names = list(known)
    for variable in sorted(variables):
        name = variable.lower().removeprefix(prefix.lower())
        if len(name) < len(variable) and name not in names:
            for near in get_close_matches(name, names, n=1, cutoff=_MISSPELT):
                yield f"{variable} is no setting; did you mean {prefix}{near.upper()}?"
