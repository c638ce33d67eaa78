"""Content credentials (C2PA) in exported images: that a model made them, which, and who says so.

A signature differs each time, while a dataset's files are a function of their requests. So images
are signed when they are exported, and without what signing added they are the recorded files again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import orjson
from PIL import Image

from jobs.errors import FatalError, UsageError
from jobs.formats import FORMATS
from jobs.marks import SOURCE, system
from jobs.output.images import ImageReader
from jobs.output.records import Row

SIGNED = (
    "signed_sha256"  # the column: of the file with its credentials; `sha256` stays the record's
)

_VALID = {"Valid", "Trusted"}  # the second: by a list of authorities that readers have
_MEDIA_TYPES = {entry.extension: entry.media_type for entry in FORMATS.values()}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},  # 60 ms and 480 kB an image
    "verify": {"verify_after_sign": False},  # the first of each process is
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whoever signs. algorithm: of C2PA; key: PKCS #8, PEM; chain: PEM, its own certificate first;
    name: that certificate's."""

    algorithm: str
    key: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    name: str
    fingerprint: str


def read_credentials(key: str, chain: str) -> Credentials:
    """A private key and its certificates from PEM files, tried on an image.

    Raises:
        UsageError: a file is not such, the two do not belong together, or nobody would take what
            they sign.
    """
    try:
        import c2pa  # noqa: F401
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise UsageError(
            "signing needs the library c2pa-python", "pip install 'imagemill[c2pa]'"
        ) from None
    try:
        private = serialization.load_pem_private_key(_read("--sign", key), None)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--sign {key}: {error}",
            "Give a private key as PEM, without a password (openssl pkey -in KEY -out PLAIN).",
        ) from error
    content = _read("--certificate", chain)
    try:
        own = x509.load_pem_x509_certificates(content)[0]
    except ValueError as error:
        raise UsageError(
            f"--certificate {chain}: {error}",
            "Give certificates as PEM: the key's own, then those that signed it.",
        ) from error
    if own.public_key() != private.public_key():
        raise UsageError(
            f"the first certificate of {chain} is not that of the key {key}",
            "Put the key's own certificate first, then those that signed it.",
        )
    names = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    credentials = Credentials(
        _algorithm(private, key),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        content,
        str(names[0].value) if names else "",
        sha256(own.public_bytes(serialization.Encoding.DER)).hexdigest(),
    )
    _try(credentials, chain)
    return credentials


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}", "Name a file.") from error


def _algorithm(private: object, key: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match private:
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case ec.EllipticCurvePrivateKey(curve=curve) if curve.name in _CURVES:
            return _CURVES[curve.name]
        case rsa.RSAPrivateKey():
            return "ps256"
    raise UsageError(
        f"--sign {key}: C2PA has no such kind of key",
        "Take Ed25519, P-256, P-384, P-521 or RSA with 2,048 bits at least.",
    )


def _try(credentials: Credentials, chain: str) -> None:
    image = BytesIO()
    Image.new("RGB", (1, 1)).save(image, "PNG")
    try:
        Signatory(credentials).sign(image.getvalue(), "png", "a/model", "0" * 40)
    except FatalError as error:
        raise UsageError(
            f"what --certificate {chain} signs is not valid: {error.message}",
            "C2PA asks for a certificate that is not expired, for digital signatures and e-mail "
            "or document signing, and not signed by itself.",
        ) from error


class Signatory:
    """Signs images, in one process. The first of them is read back as anybody would read it."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._claims: dict[tuple[str, str], str] = {}
        self._tried = False

    def sign(self, data: bytes, extension: str, repo: str, revision: str) -> bytes:
        """The image with content credentials: the model, and that its image is a model's.

        Raises:
            FatalError: it cannot be signed, or would not be the recorded file without them.
        """
        from c2pa import Builder, C2paError

        media_type, signed = _MEDIA_TYPES[extension], BytesIO()
        try:
            with Builder(self._claim(repo, revision), context=self._context) as builder:
                builder.sign(media_type, BytesIO(data), signed)
            found = signed.getvalue()
            if not self._tried:
                self._read_back(media_type, found)
                self._tried = True
        except C2paError as error:
            raise FatalError(f"C2PA cannot sign: {error}") from error
        if unsigned(found) != data:
            raise FatalError("C2PA has changed more of an image than it added to it")
        return found

    @cached_property
    def _context(self) -> Any:
        from c2pa import C2paSignerInfo, Context, Signer

        ours = self._credentials
        info = C2paSignerInfo(ours.algorithm, ours.chain, ours.key, None)
        return Context.from_dict(_SETTINGS, signer=Signer.from_info(info))

    def _claim(self, repo: str, revision: str) -> str:
        if (repo, revision) not in self._claims:
            agent = {"name": system(repo, revision), "version": revision}
            action = {"action": "c2pa.created", "digitalSourceType": SOURCE, "softwareAgent": agent}
            claim = {
                "claim_generator_info": [{"name": "imagemill", "version": version("imagemill")}],
                "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
            }
            self._claims[repo, revision] = orjson.dumps(claim).decode()
        return self._claims[repo, revision]

    def _read_back(self, media_type: str, signed: bytes) -> None:
        from c2pa import Reader

        with Reader(media_type, BytesIO(signed), context=self._context) as reader:
            state, results = reader.get_validation_state(), reader.get_validation_results()
        if state not in _VALID:
            failures = (results or {}).get("activeManifest", {}).get("failure", [])
            told = "; ".join(one.get("explanation", one["code"]) for one in failures)
            raise FatalError(told or f"its state is {state}")


@cache
def signatory(credentials: Credentials) -> Signatory:
    """One for all shards that a process writes."""
    return Signatory(credentials)


@dataclass(frozen=True, slots=True)
class SignedSamples:
    """Images of a dataset, signed."""

    images: ImageReader
    signatory: Signatory

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes]]:
        """The rows in their order, with the hash of the signed file; each with that file.

        Raises:
            FatalError: as ImageReader.read; or an image cannot be signed.
        """
        for row, image in zip(rows, self.images.read(rows), strict=True):
            extension = row["file_name"].rsplit(".", 1)[-1]
            try:
                signed = self.signatory.sign(
                    image, extension, str(row.get("repo", "")), str(row.get("revision", ""))
                )
            except FatalError as error:
                raise FatalError(f"{row['file_name']}: {error.message}") from error
            yield cast("Row", row | {SIGNED: sha256(signed).hexdigest()}), signed


def unsigned(data: bytes) -> bytes:
    """A signed JPEG or PNG file without its credentials: what was signed."""
    return _png_without(data) if data.startswith(_PNG_SIGNATURE) else _jpeg_without(data)


def _jpeg_without(data: bytes) -> bytes:
    kept, at = data[:2], 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # until the pixels
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != 0xEB or not data.startswith(b"JP", at + 4):  # APP11, of JPEG systems
            kept += data[at:end]
        at = end
    return kept + data[at:]


def _png_without(data: bytes) -> bytes:
    at = len(_PNG_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data.startswith(b"caBX", at + 4):
            return data[:at] + data[end:]
        at = end
    return data
