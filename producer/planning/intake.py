"""What planning does about input images: bytes go to storage once, names of other places stay."""

from __future__ import annotations

import os.path
import re
import stat
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.errors import InvalidRequest
from jobs.inputs.images import InputPolicy, check_image, load_input, store_input
from jobs.inputs.stores import check_store_uri, is_store_uri
from jobs.output.storage import Storage

MAX_PATH = 4096  # characters

_ELSEWHERE = re.compile(r"https?://|sha256:", re.IGNORECASE)
_LOOKS_LIKE_A_FILE = re.compile(r".+\.[A-Za-z]{3,4}")


@dataclass(frozen=True)
class Intake:
    """Takes the inputs of manifest lines in, so that requests carry short references only.

    storage: where bytes go; None for a dry run. folder: where paths of local files begin; None
    where a manifest may name no file of this machine. stores: see jobs.inputs.stores.
    """

    storage: Storage | None = None
    folder: Path | None = None
    stores: frozenset[str] = frozenset()
    policy: InputPolicy = field(default_factory=InputPolicy)

    def take(self, reference: str, field: str) -> str:
        """The reference that a request carries: a URL, a storage URI or "sha256:…".

        Raises:
            InvalidRequest: code input_forbidden, input_unreachable, input_too_large or
                input_not_an_image.
        """
        if _ELSEWHERE.match(reference):
            return reference  # the worker that renders it fetches it
        path = self._path(reference, field)
        if path is not None:
            data = self._read(path, field)
        elif is_store_uri(reference):
            check_store_uri(reference, self.stores, field)
            return reference
        else:
            data = load_input(reference, self.policy, None, field)
        if self.storage is None:
            return f"sha256:{sha256(data).hexdigest()}"
        return store_input(self.storage, data)

    def _path(self, reference: str, field: str) -> Path | None:
        """The local file that a reference names; None if it is something else."""
        if reference.lower().startswith("file://"):
            if self.folder is None:
                raise InvalidRequest(
                    field,
                    "only a local manifest of this machine's command line may name local files",
                    "input_forbidden",
                )
            try:
                return Path(unquote(urlsplit(reference).path))
            except ValueError as error:  # a broken [address]
                raise InvalidRequest(field, f"no file URL: {error}", "input_unreachable") from error
        if self.folder is None or len(reference) > MAX_PATH:
            return None
        path = os.path.join(self.folder, reference)
        # Base64 may begin with a slash as well, but it never ends in ".png".
        is_path = _LOOKS_LIKE_A_FILE.fullmatch(reference) or (
            "\0" not in reference and os.path.isfile(path)
        )
        return Path(path) if is_path and "://" not in reference else None

    def _read(self, path: Path, field: str) -> bytes:
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
                raise InvalidRequest(field, f"{path} is no file", "input_unreachable")
            with path.open("rb") as file:
                data = file.read(self.policy.max_bytes + 1)
        except (OSError, ValueError) as error:  # the latter: a NUL in its name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InvalidRequest(field, f"{path}: {reason}", "input_unreachable") from error
        check_image(data, self.policy, field)
        return data


def local_folder(manifest: str) -> Path | None:
    """The folder of a local manifest; None if it lies elsewhere."""
    path = manifest.removeprefix("file://")
    return None if "://" in path else Path(path).resolve().parent
