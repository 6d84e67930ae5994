"""A small HTTP/1.1 client: one connection a request, so that what fails belongs to one request."""

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

#: How much of an answer is read before its reader has to take it.
BUFFER_BYTES = 1 << 20


@dataclass
class Answer:
    """A whole answer; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    def error_code(self):
        """The code of an OpenAI-style error; an empty string where the body is none."""
        try:
            return self.json()["error"]["code"] or ""
        except (ValueError, KeyError, TypeError):
            return ""


async def connect(url):
    """Reader and writer of a new connection to the host of a URL."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=BUFFER_BYTES)


def head(url, method, path, num_body_bytes=0, headers=None):
    """The bytes of a request's head that announces a body of so many bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", "Connection: close"]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {num_body_bytes}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def exchange(url, method, path, body=b"", headers=None, on_data=None):
    """Sends a request and reads its answer. A body of status 200 goes to `on_data` piece by piece, if that is given."""
    reader, writer = await connect(url)
    try:
        writer.write(head(url, method, path, len(body), headers) + body)
        await writer.drain()
        status, answered = await _read_head(reader)
        pieces = []
        take = on_data if on_data and status == 200 else pieces.append
        await _read_body(reader, answered, take)
        return Answer(status, answered, b"".join(pieces))
    finally:
        # Not a graceful close: nothing more is to be said.
        writer.transport.abort()


async def get(url, path, timeout=10.0):
    return await asyncio.wait_for(exchange(url, "GET", path), timeout)


async def post(url, path, body, timeout=60.0, headers=None):
    """POSTs JSON: an object, or bytes that are JSON already."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await asyncio.wait_for(exchange(url, "POST", path, data, headers), timeout)


async def _read_head(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ", 2)[1])
    pairs = (line.partition(":") for line in lines[1:] if line)
    return status, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader, headers, take):
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            take((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
    elif length := int(headers.get("content-length", 0)):
        take(await reader.readexactly(length))
