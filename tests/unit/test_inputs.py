"""Input images: what is fetched, what is refused, and what pixels come out."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from struct import pack
from typing import Any

import pytest
from PIL import Image

from jobs.errors import InvalidRequest
from jobs.inputs import fetching
from jobs.inputs.images import (
    InputPolicy,
    check_image,
    check_pixels,
    load_input,
    open_image,
    store_input,
)
from jobs.inputs.stores import check_store_uri
from jobs.output.storage import Storage, open_storage

LOCAL = InputPolicy(hosts=frozenset({"127.0.0.1", "localhost"}))
PUBLIC = InputPolicy()
Answer = Callable[[BaseHTTPRequestHandler], None]


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


RED = encoded(Image.new("RGB", (4, 2), "red"))


@pytest.fixture
def server() -> Iterator[Any]:
    """A web server: its `answers` say what each path does, `seen` what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.seen.append(self.path)
            web.answers[self.path](self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    web: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.answers, web.seen = {"/red.png": content(RED)}, []
    web.url = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, args=(0.01,))
    thread.start()
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def content(data: bytes, status: int = 200) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


def code(reference: str, policy: InputPolicy = PUBLIC, storage: Storage | None = None) -> str:
    with pytest.raises(InvalidRequest) as refused:
        load_input(reference, policy, storage)
    assert refused.value.field == "image"
    return refused.value.code


def test_base64_may_be_broken_into_lines() -> None:
    data = encoded(Image.new("RGB", (16, 16)))
    for mark in ("\n", "\r\n"):
        text = mark.join(b64encode(data).decode()[i : i + 76] for i in range(0, 9999, 76))
        assert load_input(f"data:image/png;base64,{text}", PUBLIC) == data
        assert load_input(text, PUBLIC) == data


def test_every_form_gives_the_original_bytes(server: Any, tmp_path: Any) -> None:
    text = b64encode(RED).decode()
    storage = open_storage(str(tmp_path))
    stored = store_input(storage, RED)
    for reference in (f"{server.url}/red.png", text, f"data:image/png;base64,{text}"):
        assert load_input(reference, LOCAL) == RED
    assert load_input(stored, LOCAL, storage) == RED
    assert code(stored) == "input_not_an_image"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://127.1/", "http://2130706433/",
        "http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://0.0.0.0/", "http://[::1]/",
        "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
        "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://172.16.0.1/",
        "http://192.168.0.1/", "http://100.64.0.1/", "http://224.0.0.1/", "http://240.0.0.1/",
        "http://255.255.255.255/", "http://198.18.0.1/", "http://192.0.2.1/",
        "http://[fe80::1]/", "http://[fc00::1]/", "http://[ff02::1]/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "https://127.0.0.1/",
        "http://user:word@example.com/", "http:///etc/passwd", "http://:80/",
        "http://example.com:0/", "http://[::1/", "http://example.com:99999/",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(url: str) -> None:
    assert code(url) == "input_forbidden"


@pytest.mark.parametrize(
    "reference", ["file:///etc/passwd", "/etc/passwd", "ftp://example.com/a.png", "", "a", "é"]
)
def test_nothing_else_is_opened(reference: str) -> None:
    assert code(reference) == "input_not_an_image"


def test_name_is_resolved_once_and_every_address_counts(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(name: str, port: int, **_: object) -> list[Any]:
        asked.append(name)
        addresses = ["93.184.216.34", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(fetching, "getaddrinfo", resolve)
    assert code(f"http://rebinding.example:{server.server_port}/red.png") == "input_forbidden"
    assert asked == ["rebinding.example"]
    assert not server.seen


def test_unlisted_hosts_are_refused() -> None:
    assert code("https://example.com/a.png", LOCAL) == "input_forbidden"


def test_redirects_are_followed_and_checked(server: Any) -> None:
    server.answers |= {
        "/1": redirect("/2"), "/2": redirect("/3"), "/3": redirect("/red.png"),
        "/4": redirect("/1"), "/file": redirect("file:///etc/passwd"),
        "/away": redirect("http://169.254.169.254/"), "/broken": redirect("http://["),
    }  # fmt: skip
    assert load_input(f"{server.url}/1", LOCAL) == RED
    assert code(f"{server.url}/4", LOCAL) == "input_unreachable"
    assert code(f"{server.url}/file", LOCAL) == "input_forbidden"
    assert code(f"{server.url}/away", LOCAL) == "input_forbidden"
    assert code(f"{server.url}/broken", LOCAL) == "input_unreachable"


def test_urls_that_people_write_are_encoded(server: Any) -> None:
    server.answers |= {
        "/K%C3%A4se%20a%2Fb.png?x=%C3%A9&y=1": content(RED),
        "/moved": redirect("/Käse a%2Fb.png?x=é&y=1".encode().decode("latin-1")),
    }
    assert load_input(f"{server.url}/Käse a%2Fb.png?x=é&y=1#part", LOCAL) == RED
    assert load_input(f"{server.url}/moved", LOCAL) == RED
    shouted = InputPolicy(hosts=frozenset({"LOCALHOST"}))
    assert load_input(server.url.replace("127.0.0.1", "LocalHost") + "/red.png", shouted) == RED


def test_errors_of_the_other_side(server: Any) -> None:
    server.answers |= {
        "/404": content(b"", 404),
        "/short": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"),
        "/noise": lambda handler: handler.wfile.write(b"\x00\xff\r\n\r\n"),
        "/html": content(b"<html>an error page</html>"),
    }
    for path in ("/404", "/short", "/noise"):
        assert code(server.url + path, LOCAL) == "input_unreachable"
    assert code(f"{server.url}/html", LOCAL) == "input_not_an_image"
    assert server.seen.count("/404") == 1
    server.shutdown()
    server.server_close()
    assert code(f"{server.url}/red.png", LOCAL) == "input_unreachable"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_error_is_tried_again(server: Any, status: int) -> None:
    answers = [content(b"", status), content(b"", status), content(RED)]
    server.answers["/busy"] = lambda handler: answers.pop(0)(handler)
    assert load_input(f"{server.url}/busy", LOCAL) == RED
    server.answers["/down"] = content(b"", status)
    assert code(f"{server.url}/down", LOCAL) == "input_unreachable"
    assert server.seen.count("/down") == fetching.ATTEMPTS


def test_unknown_host_is_unreachable() -> None:
    assert code("http://no-such-host.invalid/a.png") == "input_unreachable"


def test_size_is_capped_while_reading(server: Any) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        try:
            while True:
                handler.wfile.write(bytes(65536))
        except OSError:
            pass  # the client has gone, as it should

    server.answers |= {"/endless": endless, "/long": content(bytes(2000))}
    small = InputPolicy(max_bytes=1000, hosts=LOCAL.hosts)
    assert code(f"{server.url}/endless", small) == "input_too_large"
    assert code(f"{server.url}/long", small) == "input_too_large"
    assert code(b64encode(bytes(2000)).decode(), small) == "input_too_large"


def test_slow_answers_end(server: Any) -> None:
    gone = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            while not gone.wait(0.02):
                handler.wfile.write(b"H")
        except OSError:
            pass  # the client has gone, as it should

    server.answers["/drip"] = drip
    started = time.monotonic()
    assert code(f"{server.url}/drip", replace(LOCAL, seconds=0.3)) == "input_unreachable"
    assert time.monotonic() - started < 3
    gone.set()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 12000, 60000])
def test_pixel_bombs_are_refused_by_their_header(side: int) -> None:
    assert code(b64encode(bomb(side, side)).decode()) == "input_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        bytes(9),
    ],
)
def test_other_content_is_no_image(data: bytes) -> None:
    assert code(b64encode(data).decode()) == "input_not_an_image"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_every_documented_format_is_read(image_format: str) -> None:
    data = encoded(Image.new("RGB", (40, 20), "red"), image_format)
    image = open_image(load_input(b64encode(data).decode(), PUBLIC), "image")
    assert (image.size, image.mode) == ((40, 20), "RGB")
    assert all(abs(a - b) < 3 for a, b in zip(image.getpixel((9, 9)), (255, 0, 0), strict=True))


def test_truncated_image_is_damaged() -> None:
    noise = encoded(Image.effect_noise((64, 64), 90))
    with pytest.raises(InvalidRequest, match="damaged"):
        open_image(noise[: len(noise) // 2])


def test_pixels_are_upright_rgb_on_white() -> None:
    wide = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    assert open_image(encoded(wide, "JPEG", exif=exif)).size == (2, 4)
    clear = open_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))))
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    palette = Image.new("P", (1, 1))
    assert open_image(encoded(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255,) * 3
    deep = Image.new("I;16", (1, 1), 0x8080)
    assert open_image(encoded(deep)).getpixel((0, 0)) == (0x80,) * 3
    assert open_image(encoded(Image.new("CMYK", (1, 1)), "JPEG")).mode == "RGB"


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://photos/a.png", True),
        ("s3://photos/deep/er.png", True),
        ("s3://photos-private/a.png", False),
        ("s3://photos", False),
        ("s3://photos/../other/a.png", False),
        ("s3://PHOTOS/a.png", False),
        ("gs://photos/a.png", False),
    ],
)
@pytest.mark.parametrize("place", ["s3://photos", "s3://photos/"])
def test_a_place_is_no_beginning_of_other_names(place: str, uri: str, allowed: bool) -> None:
    if allowed:
        check_store_uri(uri, {place}, "image")
        return
    with pytest.raises(InvalidRequest) as refused:
        check_store_uri(uri, {place}, "image")
    assert refused.value.code == "input_forbidden"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_on_white_is_the_same_in_strips(mode: str) -> None:
    """Taller than a strip; every pixel as one composition of the whole makes it."""
    noise = Image.effect_noise((7, 700), 90).convert("RGB")
    noise.putalpha(Image.linear_gradient("L").resize((7, 700)))
    picture = noise.quantize(64) if mode == "P" else noise.convert(mode)
    file = BytesIO()
    picture.save(file, "PNG")
    found = open_image(file.getvalue())
    whole = Image.open(BytesIO(file.getvalue())).convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    assert found.tobytes() == Image.alpha_composite(white, whole).convert("RGB").tobytes()


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    file = BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    check_image(data, InputPolicy())
    scan = data[data.index(b"\xff\xda") :]
    with pytest.raises(InvalidRequest, match="JPEG scans") as refused:
        check_image(data[:-2] + scan * 100, InputPolicy())
    assert refused.value.code == "input_too_large"


def test_decoding_ends_when_it_computes_too_long() -> None:
    """The last of a file's bounds: the CPU time of the thread that decodes it."""
    noise = encoded(Image.effect_noise((512, 512), 90).convert("RGB"))
    for decode in (open_image, check_pixels):
        decode(noise, seconds=10.0)
        with pytest.raises(InvalidRequest, match="more than 0 s") as refused:
            decode(noise, seconds=0.0)
        assert refused.value.code == "input_too_large"


def test_a_stored_input_is_looked_at_like_any_other(tmp_path: Any) -> None:
    """Whoever wrote the data set may have put anything there."""
    storage = open_storage(str(tmp_path))
    reference = store_input(storage, b"no image")
    assert code(reference, storage=storage) == "input_not_an_image"


def test_a_large_transparent_picture_takes_little_more_than_its_pixels() -> None:
    """A palette PNG of 8 KB took five whole copies, 1.2 GB."""
    script = """
import resource, sys
from io import BytesIO
from PIL import Image
from jobs.inputs.images import check_pixels, open_image
file = BytesIO()
Image.new("P", (8192, 8192)).save(file, "PNG", transparency=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check_pixels(file.getvalue())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
open_image(file.getvalue())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    checked, opened = (int(line) / 1024 for line in done.stdout.split())  # MiB
    assert checked < 100
    assert opened < 350
