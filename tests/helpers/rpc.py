"""Calls of gRPC: through stubs that take bytes, and over a bare socket, for what no client would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

METHOD = "/inference.GRPCInferenceService/"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header that no table knows (RFC 7541, section 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def head(method: str, *, ends: bool = True) -> bytes:
    """The headers of a call, or all but the end of them."""
    fields = {":method": "POST", ":scheme": "http", ":path": METHOD + method, ":authority": "signet"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(_literal(name, value) for name, value in fields.items())
    return frame(_HEADERS, _END_HEADERS if ends else 0, 1, block)


def message(data: bytes, *, length: int | None = None, ends: bool = True) -> bytes:
    """A message of a call, whatever length it claims."""
    prefix = struct.pack(">BI", 0, len(data) if length is None else length)
    return frame(_DATA, _END_STREAM if ends else 0, 1, prefix + data)


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """A socket on which HTTP/2 has begun."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(_PREFACE + frame(_SETTINGS, 0, 0, b""))
        yield sock


def received(sock: socket.socket) -> bytes:
    """All that comes until the call has its status, the server says goodbye, or the connection is closed."""
    data = b""
    while b"grpc-status" not in data and not _says_goodbye(data):
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece
    return data


def _says_goodbye(data: bytes) -> bool:
    position = 0
    while position + 9 <= len(data):
        if data[position + 3] == _GOAWAY:
            return True
        position += 9 + int.from_bytes(data[position : position + 3])
    return False
