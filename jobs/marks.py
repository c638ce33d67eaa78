"""Marks in image files: that a model made them, as XMP with the words of IPTC.

The same model gives the same mark, so that files stay a function of their requests: no time, no
name of a machine, and no job id, which holds the custom_id.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

from jobs.formats import ImageFormat
from jobs.ids import COMMIT

# What records call them; the second has the request's text beside.
XMP = "xmp"
PARAMETERS = "xmp, parameters"

# https://cv.iptc.org/newscodes/digitalsourcetype, and IPTC's Photo Metadata Standard of 2025
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " i:DigitalSourceType={} i:AISystemUsed={} i:AISystemVersionUsed={}/>"
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)

MAX_COMMENT = 16_000  # characters; a JPEG has 64 KiB for all of Exif

_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_KEYWORD = "XML:com.adobe.xmp"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def system(repo: str, revision: str) -> str:
    """What a model is called to everybody: its repository, where the revision is a commit of it.

    Else it is a folder of somebody's machine, and goes by its hash, the revision, alone.
    """
    return repo if COMMIT.fullmatch(revision) else "imagemill"


@cache
def packet(repo: str, revision: str) -> bytes:
    """The mark of what a model's weights made; UTF-8."""
    return _PACKET.format(*map(quoteattr, (SOURCE, system(repo, revision), revision))).encode()


def mark_name(wanted: bool | Literal["parameters"]) -> str:
    """What records call the mark that a model's options want; "" for none."""
    if wanted == "parameters":
        return PARAMETERS
    return XMP if wanted else ""


def saved_with(image_format: ImageFormat | str, mark: bytes, text: str = "") -> dict[str, Any]:
    """How Pillow saves a file with a mark, and with a text that says its parameters.

    Without that which is empty. The text is where other tools look for it: PNG's `parameters`, and
    the comment in Exif.
    """
    if not mark and not text:
        return {}
    if image_format != "png":
        saved: dict[str, Any] = {"xmp": mark} if mark else {}
        return saved | {"exif": _comment(text)} if text else saved
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if mark:
        info.add_itxt(_PNG_KEYWORD, mark.decode())
    if text:
        info.add_text("parameters", text)  # as Latin-1 where it can be, which all tools read
    return {"pnginfo": info}


def _comment(text: str) -> bytes:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    comment = b"UNICODE\0" + text[:MAX_COMMENT].encode("utf-16-be", "replace")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


def stripped(data: bytes) -> bytes:
    """A JPEG or PNG file of ours without its mark: what it would be if it had been saved so."""
    return _png_without(data) if data.startswith(_PNG_SIGNATURE) else _jpeg_without(data)


def _jpeg_without(data: bytes) -> bytes:
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # until the pixels
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data.startswith(_JPEG_HEADER, at + 4):
            return data[:at] + data[end:]
        at = end
    return data


def _png_without(data: bytes) -> bytes:
    at, mark = len(_PNG_SIGNATURE), b"iTXt" + _PNG_KEYWORD.encode() + b"\0"
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data.startswith(mark, at + 4):
            return data[:at] + data[end:]
        at = end
    return data
