"""Requests as bytes, for what an HTTP library would refuse to send."""

from __future__ import annotations

from collections.abc import Sequence

BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, data: bytes, *, filename: str | None = None) -> bytes:
    shown = f'; filename="{filename}"' if filename is not None else ""
    return f'Content-Disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode() + data


def multipart(parts: Sequence[bytes], *, closed: bool = True) -> bytes:
    body = b"".join(f"--{BOUNDARY}\r\n".encode() + entry + b"\r\n" for entry in parts)
    return body + (f"--{BOUNDARY}--\r\n".encode() if closed else b"")


def request(
    method: str = "POST",
    target: str = "/v1/classify",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    length: int | None = None,
) -> bytes:
    """A request with the body's Content-Length, or the one claimed by `length`; -1 leaves it out."""
    lines = [f"{method} {target} HTTP/1.1", "Host: signet"]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
