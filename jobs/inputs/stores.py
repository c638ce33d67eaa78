"""Input images in object stores: URIs below places that the deployment's settings allow."""

from __future__ import annotations

import re
from collections.abc import Collection

from jobs.errors import ImagemillError, InvalidRequest
from jobs.inputs.images import InputPolicy
from jobs.output.storage import open_storage

_URI = re.compile(r"(?!https?:|data:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_store_uri(reference: str) -> bool:
    """Whether an input is named by a storage URI, as "s3://bucket/photos/cat.png" is."""
    return _URI.match(reference) is not None


def check_store_uri(uri: str, stores: Collection[str], field: str) -> None:
    """Refuse a URI outside the allowed places.

    stores: beginnings of allowed URIs. One that does not end with a slash is that very place, not
    whatever else begins with its name.

    Raises:
        InvalidRequest: code input_forbidden.
    """
    places = tuple(place if place.endswith("/") else f"{place}/" for place in stores)
    if ".." in uri.split("/") or not uri.startswith(places):
        raise InvalidRequest(
            field, "storage URIs are taken only below those of input_stores", "input_forbidden"
        )


def read_store_uri(uri: str, stores: Collection[str], policy: InputPolicy, field: str) -> bytes:
    """The bytes behind a storage URI, whatever they are, but one more at most than are allowed.

    Raises:
        InvalidRequest: code input_forbidden or input_unreachable.
    """
    check_store_uri(uri, stores, field)
    folder, _, name = uri.rpartition("/")
    try:
        with open_storage(folder).reader(name) as file:
            return file.read(policy.max_bytes + 1)
    except (ImagemillError, OSError) as error:
        raise InvalidRequest(
            field, f"{uri} cannot be read: {error}", "input_unreachable"
        ) from error
