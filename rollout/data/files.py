"""The file behind an image or a video, whatever names or holds it, and errors that say what it is instead."""

from __future__ import annotations

import base64
import binascii
import io
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

BRIEF = 200
"""Characters of an error's text."""
LONGEST_PATH = 4096
"""Characters; Linux takes no longer path."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
_HEIC = (b"heic", b"heix", b"mif1", b"msf1", b"avif")


class UnreadablePrompt(ValueError):
    """A row that cannot become a prompt. The message names the row and the reason."""


def brief(error: BaseException) -> str:
    """Returns an exception on one line of at most 200 characters: what a row holds may be megabytes."""
    text = " ".join(f"{type(error).__name__}: {str(error)[:1000]}".split())
    return text if len(text) <= BRIEF else text[:BRIEF] + "…"


def file_of(source: Any) -> Any:
    """Returns the path of a file, or its content as bytes; what is neither is returned unchanged.

    Args:
        source: A path, `file://` address, data URI or base64 text; bytes; or a mapping with one of them, as `datasets` stores files
            that it has not decoded.

    Raises:
        ValueError: If it is an empty text, an address in the network, no base64, or names no regular file.
    """
    if isinstance(source, Mapping):
        named = (source[key] for key in ("bytes", "path", "url") if source.get(key) is not None)
        source = next(named, "")
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Path):
        return _regular(source)
    if not isinstance(source, str):
        return source
    if not source.strip():
        raise ValueError("it is an empty text: give None, or no media, for a row without")
    if source.startswith("data:"):
        return _decoded(source.partition(",")[2])
    if source.startswith("file://"):
        return _regular(Path(url2pathname(urlsplit(source).path)))
    if scheme := _ADDRESS.match(source):
        raise ValueError(f"it is an address ({scheme[0]}…): download the files first, and give their paths")
    if len(source) > LONGEST_PATH:
        return _decoded(source)  # a file without the head of a data URI
    return _regular(Path(source))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its base64 text cannot be decoded: {error}") from error


def _regular(path: Path) -> Path:
    """Returns the path of a regular file: a pipe or a device would be read without an end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise ValueError(f"{path} is {kind}, not a file")
    return path


def opened(source: Path | bytes) -> BinaryIO:
    """Opens a file for reading."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def kind_of_file(source: Path | bytes) -> str:
    """Returns what a file is by its first bytes, for an error message."""
    with opened(source) as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head[4:8] == b"ftyp":
        return "a HEIC or AVIF picture, or a video" if head[8:12] in _HEIC else "an MP4 video"
    if head.startswith(b"\x1aE\xdf\xa3") or (head.startswith(b"RIFF") and head[8:12] == b"AVI "):
        return "a video"
    return f"a file that begins with {head[:8]!r}"
