"""Content credentials: what C2PA's reader finds in exported images, and what is left without."""

from __future__ import annotations

import json
import tarfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from c2pa import Context, Reader
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from jobs.errors import UsageError
from jobs.formats import FORMATS, ImageFormat
from jobs.marks import packet
from producer.upkeep.export.credentials import Credentials, Signatory, read_credentials, unsigned
from producer.upkeep.export.job import Outcome, export
from producer.upkeep.export.order import FormName, Order
from producer.upkeep.export.shards import Selection, ShardSize
from tests.certificates import make_chain, make_key, write_pair
from tests.datasets import make_dataset
from worker.encode import encode

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture
def signer(tmp_path: Path) -> tuple[Credentials, bytes]:
    """Somebody who signs, and the certificate of who vouches for them."""
    key, chain, authority = write_pair(tmp_path)
    return read_credentials(key, chain), authority


def read(data: bytes, media_type: str, authority: bytes) -> Any:
    """What C2PA's reader says of an image, to whoever trusts that authority."""
    context = Context.from_dict({"trust": {"trust_anchors": authority.decode()}})
    with Reader(media_type, BytesIO(data), context=context) as reader:
        return reader.get_validation_state(), reader.get_active_manifest()


def write(
    out: str, to: str, form: FormName, credentials: Credentials | None, processes: int = 1
) -> Outcome:
    selection = Selection(size=ShardSize(8))
    order = Order(form, selection, processes=processes, credentials=credentials)
    return export(out, to, order, lambda *_: None)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "rsa"])
@pytest.mark.parametrize("form", list(FORMATS))
def test_a_signed_image_says_what_made_it_and_is_the_recorded_one_without(
    tmp_path: Path, kind: str, form: ImageFormat
) -> None:
    key, chain, authority = write_pair(tmp_path, kind)
    entry = FORMATS[form]
    pixels = np.random.default_rng(1).integers(0, 256, (40, 24, 3), np.uint8)
    image = encode(pixels, form, packet("org/model", COMMIT))
    signatory = Signatory(read_credentials(key, chain))
    signed = signatory.sign(image, entry.extension, "org/model", COMMIT)
    state, manifest = read(signed, entry.media_type, authority)
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert state == "Trusted"
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", SOURCE)
    assert action["softwareAgent"] == {"name": "org/model", "version": COMMIT}
    assert manifest["claim_generator_info"][0]["name"] == "imagemill"
    assert manifest["signature_info"]["common_name"] == "A Signer"
    assert "thumbnail" not in json.dumps(manifest)
    assert unsigned(signed) == image == unsigned(image)
    assert len(signed) - len(image) <= 4096
    changed = bytearray(signed)
    changed[-20] ^= 1  # of the pixels
    assert read(bytes(changed), entry.media_type, authority)[0] == "Invalid"


def test_a_folder_of_somebody_is_not_told(signer: tuple[Credentials, bytes]) -> None:
    image = encode(np.zeros((8, 8, 3), np.uint8), "png")
    signed = Signatory(signer[0]).sign(image, "png", "/home/somebody/model", "sha:0123")
    action = read(signed, "image/png", signer[1])[1]["assertions"][0]["data"]["actions"][0]
    assert action["softwareAgent"] == {"name": "imagemill", "version": "sha:0123"}


def test_parquet_holds_both_hashes(tmp_path: Path, signer: tuple[Credentials, bytes]) -> None:
    out, to = str(tmp_path / "out"), str(tmp_path / "to")
    rows = make_dataset(out, 20, {7: {"response_format": "png"}})
    assert write(out, to, "parquet", signer[0], processes=2).written == 3
    paths = sorted(Path(to, "train").iterdir())
    found = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert [row["sha256"] for row in found] == [row["sha256"] for row in rows]
    for row in found:
        image = row["image"]["bytes"]
        assert sha256(image).hexdigest() == row["signed_sha256"]
        assert sha256(unsigned(image)).hexdigest() == row["sha256"]
    assert read(found[7]["image"]["bytes"], "image/png", signer[1])[0] == "Trusted"
    card = Path(to, "README.md").read_text()
    assert "signed by `A Signer`" in card


def test_webdataset_holds_both_hashes(tmp_path: Path, signer: tuple[Credentials, bytes]) -> None:
    out, to = str(tmp_path / "out"), str(tmp_path / "to")
    rows = make_dataset(out, 8)
    write(out, to, "webdataset", signer[0])
    with tarfile.open(f"{to}/train/00000.tar") as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    for number, row in enumerate(rows):
        image, told = members[f"{number:09d}.jpg"], json.loads(members[f"{number:09d}.json"])
        assert sha256(image).hexdigest() == told["signed_sha256"]
        assert sha256(unsigned(image)).hexdigest() == told["sha256"] == row["sha256"]
    index = pq.read_table(f"{to}/train/00000.parquet")
    assert index["sha256"].to_pylist() == [row["sha256"] for row in rows]


def test_signed_shards_stay_and_mix_with_no_others(
    tmp_path: Path, signer: tuple[Credentials, bytes]
) -> None:
    out, to = str(tmp_path / "out"), str(tmp_path / "to")
    make_dataset(out, 20)
    write(out, to, "parquet", signer[0])
    before = Path(to, "train/00000.parquet").read_bytes()
    Path(to, "train/00001.parquet").unlink()
    assert write(out, to, "parquet", signer[0]).written == 1
    assert Path(to, "train/00000.parquet").read_bytes() == before
    (tmp_path / "other").mkdir()
    key, chain, _ = write_pair(tmp_path / "other")
    for other in (None, read_credentials(key, chain)):
        with pytest.raises(UsageError, match="holds another export"):
            write(out, to, "parquet", other)


def test_keys_and_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    key, chain, _ = write_pair(tmp_path)
    hidden, _, _ = write_pair(tmp_path, "rsa", password="secret")
    strange, strange_chain, _ = write_pair(tmp_path, "k256")
    missing, text = str(tmp_path / "missing"), tmp_path / "text"
    text.write_text("no PEM")
    for files, reason in (
        ((missing, chain), "No such file"),
        ((str(text), chain), "Give a private key as PEM"),
        ((hidden, chain), "(?i)password"),
        ((key, missing), "No such file"),
        ((key, str(text)), "Give certificates as PEM"),
        ((key, strange_chain), "not that of the key"),
        ((strange, strange_chain), "no such kind of key"),
    ):
        with pytest.raises(UsageError, match=reason):
            read_credentials(*files)


@pytest.mark.parametrize(
    ("purposes", "days"),
    [
        ([x509.ExtendedKeyUsageOID.SERVER_AUTH], 30),
        ([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION], -1),
    ],
)
def test_certificates_that_nobody_would_take_are_refused(
    tmp_path: Path, purposes: list[x509.ObjectIdentifier], days: int
) -> None:
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    private = make_key()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain.write_bytes(make_chain(private, purposes, days)[0])
    with pytest.raises(UsageError, match="is not valid"):
        read_credentials(str(key), str(chain))


def test_a_key_is_in_no_message(signer: tuple[Credentials, bytes]) -> None:
    assert "PRIVATE" not in repr(signer[0])
