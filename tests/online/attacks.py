# ruff: noqa: E501  # lists of short entries
"""Attacks on an endpoint as bytes on a connection, made from lists; `online.test_attacks` uses the same lists.

Each has the statuses that it may be answered with; 0 stands for a connection that is closed without a reply.
"""

import base64
import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

CHAT, ANNOTATE, UPLOAD = "/v1/chat/completions", "/v1/annotate", "/v1/annotate/upload"
REFUSED = frozenset(range(400, 500))
CLOSED = frozenset({0})
ANSWERED = frozenset({200})
Body = dict[str, Any]

KINDS = {  # kind -> what is tried, what holds
    "key": ("forged, cut, doubled and misplaced API keys", "401; exactly one `Authorization: Bearer KEY` counts"),
    "path": (
        "paths around the key, ids with `..`, `%2f`, NUL, `/-/routes`",
        "401 without a key, else 404; ids match a pattern and are never paths",
    ),
    "method": ("TRACE, CONNECT, PUT and unknown methods", "405 with `Allow`, or 400"),
    "framing": (
        "request smuggling, wrong lengths and chunks, HTTP/2, TLS, other protocols",
        "400 and the end of the connection, or one reply; never a reply to the hidden request",
    ),
    "header": (
        "floods, huge headers, WebSocket upgrades, instructions to Serve's proxy, odd ids, `Host` and `Origin`",
        "431 above 64 KiB; instructions are dropped; ids are escaped",
    ),
    "slow": (
        "heads and bodies that do not end, silent connections, clients that vanish or do not read",
        "408 after 20 seconds for a head, 60 for a body; a call ends with its client",
    ),
    "json": (
        "depth, huge numbers, NaN, lone surrogates, duplicate keys, lists of 500,000 values, wrong types",
        "400, or 413 above 100,000 values, before anything is built for each value",
    ),
    "form": ("multipart without end, name or boundary, with thousands of parts, odd charsets", "400 or 413"),
    "prompt": ("PaliGemma's special tokens, templates, line ends, surrogates", "400, or taken as plain text"),
    "image": (
        "decompression bombs, endless scans, cut files, scripts, data URLs in odd spellings",
        "400, or 413 by pixels, time and memory; decoded in a process of its own where it may cost",
    ),
    "address": (
        "loopback, metadata services and private networks in every spelling, other schemes, `..%2f`, redirects, S3 keys",
        "403; the address that is compared is the one that is read, and nothing else is connected to",
    ),
    "job": (
        "background jobs that read or write elsewhere, YAML bombs and tags, forged file ids",
        "400, 403 or 404; nothing is started",
    ),
}


@dataclass(frozen=True, slots=True)
class Attack:
    """What is sent, and what may come back. `then`: read the reply, leave at once, or hold the connection open."""

    kind: str
    name: str
    pieces: tuple[bytes, ...]
    answers: frozenset[int] = REFUSED
    then: Literal["read", "vanish", "hold"] = "read"


def request(
    method: str, path: str, body: bytes = b"", headers: Iterable[str | bytes] = (), *, key: str | None = None
) -> bytes:
    """One request on a connection that ends with it. `headers`: whole lines."""
    lines: list[str | bytes] = [f"{method} {path} HTTP/1.1", *headers, "Connection: close"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    for name, value in (
        ("Host", "127.0.0.1"),
        ("Content-Length", f"{len(body)}"),
        ("Content-Type", "application/json"),
    ):
        if not any(line.lower().startswith(name.lower() if isinstance(line, str) else name.lower().encode())  # type: ignore[arg-type]
                   for line in lines):  # fmt: skip
            lines.append(f"{name}: {value}")
    head = b"\r\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    return head + b"\r\n\r\n" + body


def data_url(data: bytes, kind: str = "image/png") -> str:
    """An image inside an address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat_body(image: str, prompt: str = "caption en", **options: Any) -> Body:
    """A chat completion of at most four tokens."""
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": prompt}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **options}


def forged(key: str) -> list[str]:
    """`Authorization` headers that are not the key's."""
    digest = sha256(key.encode()).hexdigest()
    return [
        *(
            f"Bearer {key.upper()}",
            f"Bearer {key[:-1]}",
            f"Bearer {key[:16]}",
            f"Bearer {key} x",
            f"Bearer {key},{key}",
        ),
        *(f"Bearer {key}\xa0", f"Bearer {digest}", f"Bearer sha256:{digest}", f"Bearer {key.replace('e', 'é')}"),
        f"Bearer {key.replace('a', 'а')}",  # the Cyrillic letter
        *(f"Token {key}", f"Bearer\t{key}", "Bearer *", "Bearer " + "x" * 30_000, "", "Bearer", "Basic Og==", key),
    ]


AROUND_THE_KEY = [
    *("//v1/models", "/health/../v1/models", "/health%2f..%2fv1/models", "/docs/x", "/HEALTH", "/health;/v1/models"),
    *("/v1/models?x=/health", "/v1/models/../health/../v1/models", "/./v1/models", "/-/routes", "/%2d/routes", "/-/x"),
    *(
        "/-/routes/",
        "//-/routes",
        "/-//routes",
        "/-/healthz/../routes",
        "/openapi.json/",
        "/v1%2fmodels",
        "/v1/models%00",
    ),
]
OTHER_METHODS = ["DELETE", "TRACE", "OPTIONS", "PUT", "PATCH", "PROPFIND", "LOCK"]
ODD_IDS = [
    *(
        "..",
        "%2e%2e",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e%5c%2e%2e%5c",
        "%252e%252e%252fx",
        "%00",
        "file-%00",
        "~root",
    ),
    *(
        "file-" + "a" * 5000,
        "file-" + "0" * 20 + "%0a",
        "batch_" + "0" * 24,
        "job_" + "0" * 24,
        "%ff%fe",
        "*",
        "%20",
        "$HOME",
    ),
    *("file-" + "0" * 24 + "%2f..", "open", "everybody", "%F0%9F%92%A9"),
]
CHANGES: list[Body] = [  # of a chat completion
    *({"model": "\ud800"}, {"model": "m" * 1_000_000}, {"\ud800": 1}, {"k" * 1_000_000: 1}, {"model": 7}, {"model": None, "n": 2}),
    *({"temperature": math.nan}, {"temperature": math.inf}, {"temperature": -1}, {"temperature": 10**400}, {"temperature": "hot"}),
    *({"top_p": -math.inf}, {"top_p": 2}, {"frequency_penalty": math.nan}, {"presence_penalty": 2}, {"logit_bias": {"1": 100}}),
    *({"max_tokens": 10**4000}, {"max_tokens": 1e308}, {"max_tokens": -1}, {"max_tokens": 0}, {"max_tokens": "²"}),
    *({"seed": 2**63}, {"seed": -(2**70)}, {"n": 10**30}, {"stop": "x" * 1_000_000}, {"stop": ["x"] * 1000}, {"stop": [[]]}),
    *({"messages": [{"role": "user", "content": [{"type": "text", "text": "ocr"}] * 10_000}]}, {"messages": {}}, {"messages": []}),
    *({"messages": [{"role": "user", "content": "ocr"}] * 10_000}, {"messages": [0] * 50_000}, {"messages": "x" * 1_000_000}),
    *({"stream": "perhaps"}, {"stream": True, "n": 3}, {"tools": [{}]}, {"top_logprobs": 10**9}, {"response_format": {"type": "x"}}),
]  # fmt: skip
OTHER_CONTENT_TYPES = [
    "text/plain",
    "application/xml",
    "",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "x" * 5000,
    "json",
]
PROMPTS = [  # with the status that answers them
    *(("<image>", 400), ("caption en <image><image>", 400), ("<loc0001>", 400), ("caption <loc0001>", 400)),
    ("caption <loc0001><loc0001><loc0001><loc0001>", 200),  # a valid PaliGemma prompt
    *(("<seg000>", 400), ("<bos>caption en", 400), ("caption en<eos>", 400), ("<pad>", 400), ("<start_of_turn>user", 400)),
    *(("caption en\nanswer en what", 400), ("caption en\r", 200), ("caption en\u2028ocr", 400), ("caption en\x85ocr", 400)),
    *(("caption \ud800", 400), ("caption \ude00\ud83d", 400), ("caption \x00", 200), ("caption \x1b[2J\x07", 200)),
    *(("caption \u202e\u200b\ufeff", 200), ("＜image＞", 200), ("<im\u200bage>", 200), ("<im{}age>", 200), ("{image}", 200)),
    *(("{0.__class__}", 200), ("{a:>99999999}", 200), ("{{", 200), ("%s%n", 200), ("", 400), (" \t ", 400)),
    *(("\U0001f4a9" * 2000, 400), ("x" * 100_000, 400)),
]  # fmt: skip
LENGTHS = [
    "-1",
    "0x10",
    "+5",
    "1e3",
    "²",
    "9" * 5000,
    "5\r\nContent-Length: 6",
    "5, 6",
    "",
    " ",
    "5 5",
    "NaN",
    "18446744073709551616",
]
CODINGS = [
    "identity, chunked",
    "chunked, chunked",
    "xchunked",
    "chunked\r\nTransfer-Encoding: identity",
    "gzip",
    "\x0bchunked",
    "chunkedx",
]
CHUNKS = ["-1", "zz", "f" * 30, "0x5", "5;" + "e" * 100_000, " 5", "5 ", "\n5", "ffffffff", ""]
OTHER_PROTOCOLS = [
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n"),
    ("HTTP/3.0", b"GET /v1/models HTTP/3.0\r\nHost: x\r\n\r\n"),
    ("HTTP/1.1.1", b"GET /v1/models HTTP/1.1.1\r\nHost: x\r\n\r\n"),
    ("TLS", bytes.fromhex("16030100a5010000a10303") + bytes(160)),
    ("SOCKS", b"\x05\x01\x00"),
    ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ("SMTP", b"EHLO x\r\nMAIL FROM:<a@b>\r\n"),
    ("Redis", b"*1\r\n$8\r\nFLUSHALL\r\n"),
    ("noise", bytes(range(256)) * 64),
    ("NUL", bytes(70_000)),
    ("newlines", b"\r\n" * 40_000 + b"x"),
    ("a line without end", b"GET /" + b"a" * 200_000),
    ("bare line feeds", b"GET /v1/models HTTP/1.1\nHost: x\n\n"),
    ("bare carriage returns", b"GET /v1/models HTTP/1.1\rHost: x\r\r"),
    ("a folded header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n"),
    ("a space before the colon", b"GET /v1/models HTTP/1.1\r\nHost : x\r\n\r\n"),
    ("a header without a name", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"),
    ("a header without a colon", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n"),
    ("NUL in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n"),
    ("a non-ASCII header name", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-\xff\xfe: b\r\n\r\n"),
    ("no host", b"GET /v1/models HTTP/1.1\r\n\r\n"),
    ("two hosts", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    ("an absolute address", b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("CONNECT", b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a lower-case method", b"get /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a long method", b"G" * 10_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a non-ASCII path", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a space in the path", b"GET /v1 /models HTTP/1.1\r\nHost: x\r\n\r\n"),
]
STEERING = [
    *("x-request-disconnect-disabled: ?1", "X-Request-Disconnect-Disabled: ?1", "x-request-timeout-seconds: 0.00001"),
    *(
        "x-request-timeout-seconds: -1",
        "x-request-timeout-seconds: nan",
        "x-request-timeout-seconds: 1e999",
        "x-session-id: a",
    ),
    *(
        "x-request-timeout-seconds: 0",
        "serve_multiplexed_model_id: other",
        "serve-multiplexed-model-id: other",
        "X_SESSION_ID: b",
    ),
]
UNDECODABLE = ["x-request-id", "x-session-id", "serve_multiplexed_model_id", "x-request-timeout-seconds",
               "x-request-disconnect-disabled", "x-anything", "traceparent"]  # fmt: skip
IDS = [
    "a\tb",
    "x" * 65,
    "x" * 30_000,
    "---",
    "é",
    "a=b",
    " -- id=forged status=200",
    "%0aid=x",
    "\x7f",
    "a\u2028b",
    "' or 1",
    "{0}",
]
HOSTS = ["evil.example", "127.0.0.1@evil.example", "[::1]x", "a b", "", "x" * 5000, "127.0.0.1:99999", "../x", "é"]
SCHEMES = [
    *(
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "ftp://127.0.0.1/x",
        "dict://127.0.0.1:11211/x",
    ),
    *(
        "ldap://127.0.0.1/x",
        "jar:http://127.0.0.1!/x",
        "javascript:alert(1)",
        "unix:///var/run/docker.sock",
        "/etc/passwd",
        "x",
    ),
    *(
        "C:\\x",
        "\\\\host\\share",
        "//127.0.0.1/x",
        "http:///x",
        "http:127.0.0.1/x",
        "http:\\\\127.0.0.1\\x",
        "h\nttp://x",
        "s3://",
    ),
    *(
        "s3://other/a",
        "s3://bucket./a",
        "s3://bucket/../other/a",
        "s3://bucket/prefix/../a",
        "s3://bucket/prefix/x?/../../other/a",
    ),
    *(
        "s3://user:word@bucket/prefix/a",
        "S3A://other/a",
        "gs://bucket/a",
        "https://",
        "http://[",
        "http://a:b:c/",
        "http://%00/",
    ),
]
INSIDE = [  # hosts of this machine, of its network and of clouds' metadata, in the spellings that some library reads
    *("127.0.0.1", "localhost", "LOCALHOST.", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.1"),
    *(
        "017700000001",
        "0177.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
    ),
    *("[64:ff9b::7f00:1]", "169.254.169.254", "2852039166", "[fd00:ec2::254]", "metadata.google.internal", "10.0.0.1"),
    *(
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "localhost%00.evil.com",
    ),
    *(
        "a@127.0.0.1",
        "127.0.0.1#@ok.example",
        "127.0.0.1%23@ok.example",
        "ok.example@127.0.0.1",
        "127.0.0.1.",
        "ip6-localhost",
    ),
]
ESCAPES = [  # of the allowed folder /ok/
    *(
        "../secret",
        "..%2fsecret",
        "..%2Fsecret",
        "..%5csecret",
        "x%2f..%2f..%2fsecret",
        "%2e%2e/secret",
        "%252e%252e/secret",
    ),
    *(
        ".%2e/secret",
        "..;/secret",
        "..%00/secret",
        "..%c0%afsecret",
        "..\\secret",
        "./../secret",
        "x/../../secret",
        "to-secret",
    ),
    *("to-secret-encoded", "to-file", "to-loopback", "loop"),
]
YAML = [
    *(
        "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{n}: &c{n} [*b, *b, *b]\n" for n in range(50)),
        "!!python/object:os.system x",
    ),
    *(
        "!!python/object/apply:os.system ['true']",
        "? [a]\n: b",
        "- " * 50_000,
        "{" * 10_000,
        "\t",
        "a: b: c",
        "%YAML 9.9\n---\n",
    ),
]


def lone(body: Body) -> bytes:
    """JSON with what Python's writer lets through: NaN, infinities, lone surrogates."""
    return json.dumps(body).encode()


def malformed(image: str) -> Iterator[tuple[str, bytes]]:
    """Bodies of a chat completion that are not JSON, or not only, with their names."""
    body = json.dumps(chat_body(image))[:-1].encode()
    yield from (
        ("deep lists", b"[" * 100_000),
        ("deep objects", b'{"a":' * 100_000),
        ("a cut string", b'"' + b"x" * 1000),
    )
    yield from (("long digits", b"9" * 5000), ("nul", b"nul"), ("NULs", bytes(1000)), ("gzip", b"\x1f\x8b\x08\x00"))
    yield from (
        ("", b""),
        ("no end", body),
        ("two ends", body + b"}}"),
        ("a long seed", body + b', "seed": ' + b"9" * 5000 + b"}"),
    )
    yield "infinity", body + b', "temperature": 1e999}'
    yield "depth in a field", body + b', "x": ' + b"[" * 500 + b"]" * 500 + b"}"
    yield "a key twice", body + b', "model": "other"}'  # the last one counts, as in Python's parsers
    yield "not UTF-8", body[:-1] + b'"\xff\xfe"}'
    yield "a surrogate in UTF-8", b'{"model": "\xed\xa0\x80"}'
    yield "UTF-16", json.dumps({"model": "demo"}).encode("utf-16")
    yield "a byte order mark", b"\xef\xbb\xbf" + body


def many(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Small bodies of many values: path, name, body."""
    values = ("0," * (count - 1) + "0").encode()
    yield ANNOTATE, "images", b'{"images": [%s], "tasks": ["ocr"]}' % values
    yield ANNOTATE, "tasks", b'{"images": ["data:,"], "tasks": [%s]}' % values
    yield CHAT, "messages", b'{"model": "demo", "messages": [%s]}' % values
    yield CHAT, "content", b'{"model": "demo", "messages": [{"role": "user", "content": [%s]}]}' % values
    yield CHAT, "stop", b'{"model": "demo", "messages": [], "stop": [%s]}' % values
    yield CHAT, "anything", b'{"model": "demo", "messages": [], "anything": [%s]}' % values
    yield "/v1/jobs", "manifest", b'{"manifest": [%s]}' % values
    yield "/v1/batches", "metadata", b'{"input_file_id": "file-x", "metadata": [%s]}' % values


def form(*parts: tuple[str, bytes], charset: str = "utf-8") -> tuple[bytes, str]:
    """A multipart form and its content type. `parts`: parameters of `Content-Disposition`, and content."""
    body = b"".join(b"--B\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
                    for head, content in parts)  # fmt: skip
    return body + b"--B--\r\n", f"multipart/form-data; boundary=B; charset={charset}"


def malformed_forms(picture: bytes) -> list[tuple[bytes, str]]:
    """Forms that are cut, huge, or lack what is needed, with their content types."""
    image, task = ('name="image"; filename="a"', picture), ('name="task"', b"ocr")
    whole, kind = form(image, task)
    return [
        *(
            (whole, "multipart/form-data"),
            (whole, 'multipart/form-data; boundary=""'),
            (whole[:-200], kind),
            (b"", kind),
        ),
        *(
            (whole, "multipart/form-data; boundary=" + "b" * 5000),
            (b"--B\r\n" * 10_000, kind),
            form(image, *[task] * 5000),
        ),
        form(*[('name="image"; filename="a"', b"x")] * 5000, task),
        *(form(('name="image"', picture), task), form(image, ('name="task"', b"x" * 2_000_000))),
        *(form(image, ('name="task"; filename="t"', b"ocr")), form(image, task, ('name="max_tokens"', b"-1"))),
        form(image, task, ('name="max_tokens"', b"9" * 5000)),
        form(('name="image"; filename="' + "a" * 100_000 + '"', picture), task),
        form(('name="image"; filename="a"\r\n' + "X-A: b\r\n" * 5000 + "X-B: c", picture), task),
    ]


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG of this size by its header, with these compressed bytes as its pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_images(picture: bytes) -> Iterator[tuple[str, str]]:
    """Images that cannot or must not be decoded, as addresses, with their names."""
    zeros = zlib.compress(bytes(20_000_000), 9)
    files = {
        "a bomb by its header": png(60_000, 60_000),
        "a bomb in its pixels": png(4001, 1000, data=zeros),
        "a row of 2^31": png(2**31 - 1, 1),
        "no size": png(0, 0),
        "16 bits": png(1900, 1900, 16, 6, zeros),
        "cut": picture[: len(picture) // 2],
        "only the header": picture[:33],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "an entity": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><x>&y;</x>",
        "PDF": b"%PDF-1.7\n1 0 obj<</JS(app.alert(1))>>endobj",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(x) run",
        "a script": b"#!/bin/sh\ntouch /tmp/x",
        "a ZIP": b"PK\x03\x04" + bytes(100),
        "a GIF without end": b"GIF89a\xff\xff\xff\xff\x80\x00\x00"
        + bytes(3)
        + b"\xff\xff\xff"
        + b"\x21\xf9\x04" * 1000,
        "a BMP of 2^31": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "a TIFF that points at itself": b"II*\x00\x08\x00\x00\x00\x01\x00\x69\x87\x04\x00\x01\x00\x00\x00\x08\x00\x00\x00",
        "a WebP of 16,383": b"RIFF\x00\x10\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\x3f\x00\xff\x3f\x00",
        "a JPEG of 65,500": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
        "PPM": b"P6 99999 99999 255\n",
        "noise": bytes(range(256)) * 400,
    }
    yield from ((name, data_url(data)) for name, data in files.items())
    b64 = base64.b64encode(picture).decode()
    yield from (
        ("data:,", "data:,"),
        ("data:", "data:"),
        ("no base64", "data:image/png,abc"),
        ("no comma", "data:image/png;base64"),
    )
    yield from (("bad base64", "data:image/png;base64,@@@@"), ("cut base64", f"data:image/png;base64,{b64[:-3]}"))
    yield from (
        ("nested", f"data:image/png;base64,data:image/png;base64,{b64}"),
        ("HTML", "data:text/html,<script>alert(1)</script>"),
    )
    yield "two megabytes", "data:image/png;base64," + "A" * 2_000_000


def attacks(key: str, picture: bytes, web: str) -> Iterator[Attack]:
    """All attacks. `picture`: one that is answered; `web`: the address of a server, of which /ok/ is allowed."""
    image = data_url(picture)
    yield from _connections(key, image)
    yield from _headers(key)

    def post(
        kind: str, name: str, path: str, body: bytes | Body, answers: frozenset[int] = REFUSED, of: str = ""
    ) -> Attack:
        content = body if isinstance(body, bytes) else lone(body)
        return Attack(kind, name, (request("POST", path, content, [of] if of else [], key=key),), answers)

    for number, change in enumerate(CHANGES):
        yield post("json", f"{ascii(change)[:40]} ({number})", CHAT, chat_body(image) | change)
    for name, body in malformed(image):
        yield post("json", name, CHAT, body)
        yield post("json", f"{name}, annotate", ANNOTATE, body)
    for count in (90_000, 500_000):
        for path, name, body in many(count):
            yield post("json", f"{count} {name}", path, body)
    for kind in OTHER_CONTENT_TYPES:
        for path in (CHAT, ANNOTATE, UPLOAD):
            yield post("form", f"{path} as {kind[:20]}", path, chat_body(image), of=f"Content-Type: {kind}")
    for number, (body, kind) in enumerate(malformed_forms(picture)):
        yield post("form", f"malformed {number}", UPLOAD, body, of=f"Content-Type: {kind}")
    for charset in ("utf-7", "unicode_escape", "utf-16", "idna", "hex", "undefined"):
        body, kind = form(('name="image"; filename="+2AA-"', picture), ('name="task"', b"ocr"), charset=charset)
        yield post("form", charset, UPLOAD, body, REFUSED | ANSWERED, of=f"Content-Type: {kind}")
    for prompt, status in PROMPTS:
        yield post("prompt", ascii(prompt)[:40], CHAT, chat_body(image, prompt), frozenset({status}))
    for name, address in bad_images(picture):
        yield post("image", name, ANNOTATE, {"images": [address], "tasks": ["ocr"]})
    yield post("image", "twelve of them", ANNOTATE, {"images": [image] * 13, "tasks": ["ocr"]})
    hosts = [f"http://{host}/latest/meta-data" for host in INSIDE]
    for address in [*hosts, *SCHEMES, *(f"{web}/ok/{escape}" for escape in ESCAPES), f"{web}/secret"]:
        yield post("address", ascii(address)[:60], ANNOTATE, {"images": [address], "tasks": ["ocr"]})
    yield from _jobs(key, web)


def _connections(key: str, image: str) -> Iterator[Attack]:
    for number, header in enumerate(forged(key)):
        yield Attack("key", f"forged {number}", (request("GET", "/v1/models", b"", [f"Authorization: {header}"]),))
    for path in (f"/v1/models?key={key}", f"/v1/models?api_key={key}", f"/v1/models?Authorization=Bearer%20{key}"):
        yield Attack("key", path.partition("=")[0], (request("GET", path),))
    for line in (
        f"X-Api-Key: {key}",
        f"Cookie: key={key}",
        f"Proxy-Authorization: Bearer {key}",
        f"Authorization: x\r\nAuthorization: Bearer {key}",
    ):
        yield Attack("key", line[:20], (request("GET", "/v1/models", b"", [line]),))
    for path in AROUND_THE_KEY:
        yield Attack("path", path, (request("GET", path),))
    for name in ODD_IDS:
        for method, path in (("GET", "/v1/files/{}"), ("GET", "/v1/files/{}/content"), ("DELETE", "/v1/files/{}"),
                             ("GET", "/v1/batches/{}"), ("POST", "/v1/jobs/{}/cancel")):  # fmt: skip
            yield Attack("path", f"{method} {path.format(name[:30])}", (request(method, path.format(name), key=key),))
    for method in OTHER_METHODS:
        for path in ("/v1/models", CHAT):
            yield Attack("method", f"{method} {path}", (request(method, path, key=key),))
    head = f"POST {ANNOTATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    for length in LENGTHS:
        yield Attack(
            "framing",
            f"length {length[:20]!r}",
            (f"{head}Content-Length: {length}\r\n\r\n{{}}".encode(),),
            REFUSED | CLOSED,
        )
    hidden = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"  # without a key: 401 if it is seen at all
    for coding in CODINGS:
        sent = f"{head}Content-Length: 4\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{hidden}"
        yield Attack("framing", f"coding {coding[:20]!r} and a length", (sent.encode(),), REFUSED | CLOSED)
        yield Attack(
            "framing",
            f"coding {coding[:20]!r}",
            (f"{head}Transfer-Encoding: {coding}\r\n\r\nzz\r\n".encode(),),
            REFUSED | CLOSED,
        )
    for size in CHUNKS:
        sent = f"{head}Transfer-Encoding: chunked\r\n\r\n{size}\r\nx"
        yield Attack(
            "framing",
            f"chunk {size[:20]!r}",
            (sent.encode(),),
            REFUSED | CLOSED,
            "hold" if size[:2] in ("ff", "5;") else "read",
        )
    for name, sent_ in OTHER_PROTOCOLS:
        yield Attack(
            "framing",
            name,
            (sent_,),
            REFUSED | CLOSED,
            "hold" if name in ("SOCKS", "bare carriage returns") else "read",
        )
    yield Attack("slow", "a silent connection", (b"",), REFUSED | CLOSED, "hold")
    yield Attack(
        "slow",
        "a head without end",
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"X-A: ", b"b"),
        REFUSED | CLOSED,
        "hold",
    )
    yield Attack(
        "slow", "a body without end", (f"{head}Content-Length: 100\r\n\r\n{{".encode(),), REFUSED | CLOSED, "hold"
    )
    yield Attack(
        "slow",
        "chunks without end",
        (f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode(),),
        REFUSED | CLOSED,
        "hold",
    )
    yield Attack("slow", "a huge length", (f"{head}Content-Length: 999999999999\r\n\r\n{{".encode(),), REFUSED | CLOSED)
    stream = lone(chat_body(image, stream=True, max_tokens=200))
    for number in range(8):
        steered = ["x-request-disconnect-disabled: ?1"] if number % 2 else []
        yield Attack(
            "slow", f"a stream left {number}", (request("POST", CHAT, stream, steered, key=key),), then="vanish"
        )
        yield Attack(
            "slow", f"half a body {number}", (request("POST", CHAT, stream, steered, key=key)[:-50],), then="vanish"
        )


def _headers(key: str) -> Iterator[Attack]:
    def get(name: str, *lines: str | bytes, answers: frozenset[int] = ANSWERED, path: str = "/v1/models") -> Attack:
        return Attack("header", name, (request("GET", path, b"", lines, key=key),), answers)

    for line in STEERING:
        yield get(line, line)
    for name in UNDECODABLE:
        yield get(f"{name}, not UTF-8", name.encode() + b": \xff\xfe\xed\xa0\x80")
        yield get(f"{name} twice", f"{name}: a", f"{name}: b")
    for own in IDS:
        large = len(own) > 2**16
        yield get(
            f"id {own[:20]!r}", f"x-request-id: {own}", answers=REFUSED | CLOSED if large or own == "\x7f" else ANSWERED
        )
    for host in HOSTS:
        yield get(f"host {host[:20]!r}", f"Host: {host}", answers=ANSWERED | REFUSED)
    for count in (100, 1000, 30_000):
        yield get(
            f"{count} headers",
            *(f"X-{number}: y" for number in range(count)),
            answers=ANSWERED if count == 100 else ANSWERED | REFUSED | CLOSED,
        )
    for size in (70_000, 1_000_000, 60_000_000):
        yield get(f"a header of {size}", b"X-A: " + b"y" * size, answers=frozenset({431, 400, 0}))
    for size in (70_000, 5_000_000):
        yield get(f"a path of {size}", path="/" + "y" * size, answers=frozenset({431, 400, 0}))
        yield get(f"a query of {size}", path="/v1/models?" + "y" * size, answers=frozenset({431, 400, 0}))
    upgrade = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="]
    for protocol in ("websocket", "h2c", "x"):
        lines = [f"Upgrade: {protocol}", "Connection: Upgrade", *upgrade[1:], "HTTP2-Settings: AAMAAABkAAQAAP__"]
        yield get(f"an upgrade to {protocol}", *lines, answers=ANSWERED | REFUSED)
    for line in ("X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /-/routes", "Range: bytes=0-9999999999",
                 "If-None-Match: *", "Expect: 200-ok", "Accept: " + "a/b," * 10_000, "Accept-Encoding: zstd, br, gzip;q=x",
                 "Origin: https://evil.example", "Origin: null", "Referer: javascript:x", "Cookie: " + "a=b;" * 10_000):  # fmt: skip
        yield get(line[:40], line, answers=ANSWERED | REFUSED)


def _jobs(key: str, web: str) -> Iterator[Attack]:
    def post(name: str, path: str, body: Body | str, kind: str = "application/json") -> Attack:
        content = body.encode() if isinstance(body, str) else lone(body)
        return Attack("job", name, (request("POST", path, content, [f"Content-Type: {kind}"], key=key),))

    job: Body = {"manifest": f"{web}/ok/m.jsonl", "tasks": ["ocr"], "model": "demo", "output": "/var/lib/elsewhere"}
    for number, text in enumerate(YAML):
        yield post(f"YAML {number}", "/v1/jobs", text, "application/yaml")
    for output in (
        "/etc/x",
        "../x",
        "s3://other/x",
        "file:///tmp/x",
        "",
        "s3://",
        "~/.ssh",
        "\x00",
        "http://127.0.0.1/x",
        "x" * 5000,
    ):
        yield post(f"output {output[:20]!r}", "/v1/jobs", job | {"output": output})
    for manifest in (
        "/etc/passwd",
        "file:///etc/passwd",
        "~/.aws/credentials",
        "s3://other/m.csv",
        f"{web}/secret",
        "data:,x",
        "*",
        ".",
        "",
    ):
        yield post(f"manifest {manifest[-20:]!r}", "/v1/jobs", job | {"manifest": manifest})
    for name in ("..", "file-" + "0" * 24, "/etc/passwd", "", "\x00", "file-" + "a" * 100_000):
        yield post(
            f"input {name[:20]!r}", "/v1/batches", {"input_file_id": name, "endpoint": CHAT, "completion_window": "24h"}
        )
    changes: list[Body] = [
        {"model": "google/other"},
        {"mask_decoder": "/etc/passwd"},
        {"pool": {"env": {}}},
        {"tasks": ["x"] * 50_000},
    ]
    for change in changes:
        yield post(ascii(change)[:40], "/v1/jobs", job | change)
