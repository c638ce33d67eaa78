"""Keys and certificates for tests that sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

DAY = timedelta(days=1)
MAIL = x509.ExtendedKeyUsageOID.EMAIL_PROTECTION  # what C2PA takes of anybody
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def make_key(kind: str = "ed25519") -> Any:
    match kind:
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key({"p256": ec.SECP256R1, "k256": ec.SECP256K1}[kind]())


def make_chain(
    key: Any, purposes: Sequence[x509.ObjectIdentifier] = (MAIL,), days: int = 30
) -> tuple[bytes, bytes]:
    """The key's chain, PEM: its certificate, for so many days, and its authority's; and that alone.

    Of an authority made for it.
    """
    authority = make_key("p256")
    name, above = _name("A Signer"), _name("An Authority")
    top = _certificate(above, authority.public_key(), above, 30)
    top = top.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    top = top.add_extension(_usage("key_cert_sign"), critical=True)
    own = _certificate(name, key.public_key(), above, days)
    own = own.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    own = own.add_extension(_usage("digital_signature"), critical=True)
    own = own.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    own = own.add_extension(identifier, critical=False)
    pems = [one.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM) for one in (own, top)]
    return b"".join(pems), pems[1]


def write_pair(folder: Path, kind: str = "ed25519", password: str = "") -> tuple[str, str, bytes]:
    """Paths of a private key and its chain; and the authority's certificate, PEM."""
    key = make_key(kind)
    chain, authority = make_chain(key)
    hidden = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    paths = folder / f"{kind}.key.pem", folder / f"{kind}.chain.pem"
    paths[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    paths[1].write_bytes(chain)
    return str(paths[0]), str(paths[1]), authority


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Org"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, text),
        ]
    )


def _certificate(name: x509.Name, key: Any, above: x509.Name, days: int) -> Any:
    end = datetime.now(UTC) + days * DAY
    empty = x509.CertificateBuilder().subject_name(name).issuer_name(above).public_key(key)
    numbered = empty.serial_number(x509.random_serial_number())
    return (
        numbered.not_valid_before(end - 60 * DAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(name: str) -> x509.KeyUsage:
    return x509.KeyUsage(**dict.fromkeys(USAGES, False) | {name: True})
