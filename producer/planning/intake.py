"""What planning does about input images: bytes go to storage once, names of other places stay."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.errors import InvalidRequest, printable
from jobs.ids import STORED_INPUT
from jobs.inputs.fetching import MAX_URL
from jobs.inputs.images import (
    InputPolicy,
    check_image,
    check_mask,
    load_input,
    size_of,
    store_input,
)
from jobs.inputs.stores import check_store_uri, is_store_uri
from jobs.output.storage import Storage

MAX_PATH = 4096  # characters
SHOWN_PATH = 256

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
        data = self._bytes(reference, field)
        return reference if data is None else self._keep(data)

    def take_masked(self, image: str, mask: str) -> tuple[str, str]:
        """As take, of an image and its mask.

        Raises:
            InvalidRequest: as take; or both are here, and their sizes differ.
        """
        picture, drawn = self._bytes(image, "image"), self._bytes(mask, "mask_image")
        if picture is not None and drawn is not None:
            # Which way is up only decoding tells: what turning may mend is left to the worker.
            sizes = size_of(drawn), size_of(picture)
            if sizes[0] != sizes[1][::-1]:
                check_mask(*sizes)
        return (
            image if picture is None else self._keep(picture),
            mask if drawn is None else self._keep(drawn),
        )

    def _bytes(self, reference: str, field: str) -> bytes | None:
        """What a reference stands for, checked; None if it lies elsewhere. Raises as take."""
        if _ELSEWHERE.match(reference):
            _check_name(reference, field)
            return None  # the worker that renders it fetches it
        path = self._path(reference, field)
        if path is not None:
            return self._read(path, field)
        if is_store_uri(reference):
            _check_name(reference, field)
            check_store_uri(reference, self.stores, field)
            return None
        return load_input(reference, self.policy, None, field)

    def _keep(self, data: bytes) -> str:
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
            # A pipe, a device and what the kernel makes up may be waited for for ever.
            with open(path, "rb", opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("is no file")
                data = file.read(self.policy.max_bytes + 1) or b""
        except (OSError, ValueError) as error:  # the latter: a NUL in its name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            where = printable(str(path), SHOWN_PATH)
            raise InvalidRequest(field, f"{where}: {reason}", "input_unreachable") from error
        check_image(data, self.policy, field)
        return data


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_name(reference: str, field: str) -> None:
    """Refuse what would burden plans and messages, and what can name no stored input."""
    if len(reference) > MAX_URL:
        raise InvalidRequest(
            field, f"the URL has more than {MAX_URL} characters", "input_forbidden"
        )
    if reference[:7].lower() == "sha256:" and not STORED_INPUT.fullmatch(reference):
        raise InvalidRequest(
            field, "sha256: and 64 hexadecimal digits name a stored input", "input_unreachable"
        )


def local_folder(manifest: str) -> Path | None:
    """The folder of a local manifest, which may be one itself; None if it lies elsewhere."""
    name = manifest.removeprefix("file://")
    if "://" in name:
        return None
    path = Path(name).resolve()
    return path if path.is_dir() else path.parent
