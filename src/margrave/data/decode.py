"""Decode image files to RGB pixels; reject files that OpenCV would decode only partially."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

Fit = Literal["crop", "stretch", "pad"]

MAXIMUM_PIXELS = 64_000_000

# Each segment of a JPEG begins with a marker: 0xFF and a code. Within a scan's data, 0xFF is
# followed only by 0x00 (a data byte) or 0xD0-0xD7 (a restart). This pattern excludes both and
# therefore finds the next segment.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END_CODE = 0xD9
_JPEG_END = bytes((0xFF, _JPEG_END_CODE))
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)
"""Codes of the markers that have neither a length nor content."""
_JPEG_BEFORE_FRAME = frozenset((*range(0xE0, 0xF0), 0xDB, 0xC4, 0xDD, 0xFE))
"""Codes of the segments that usually precede the frame header: metadata, tables and comments."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Codes of the frame headers, which give the image's size."""
_USUAL_SCANS = 20
"""A JPEG may always have this many scans."""
_MAX_SCANNED_PIXELS = 1_000_000_000
"""Maximum of scans times pixels for a JPEG with more scans than usual."""
_PNG_DEFLATED = (b"zTXt", b"iTXt", b"iCCP")
"""PNG chunks with compressed metadata: texts and color profiles."""
_MAX_DEFLATE_RATIO = 1032
"""Maximum compression ratio of the Deflate algorithm."""
_MAX_CHUNK_BYTES = 8_000_000
"""Maximum size of one decompressed metadata chunk, as in libpng."""
_MAX_METADATA_BYTES = 256_000_000
"""Maximum size of all decompressed metadata chunks of a file."""
_NETPBM = re.compile(rb"P[2356](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")


class _Truncated(Exception):
    """The file ends before the image does."""


class _Unsafe(Exception):
    """Decoding the file could take excessive memory or time."""


def decode_image(data: bytes, name: str, maximum_pixels: int = MAXIMUM_PIXELS) -> np.ndarray:
    """The image as (height, width, 3) uint8 RGB, rotated upright by its EXIF orientation.

    Reads JPEG, PNG, WebP, BMP and PGM/PPM. Grayscale becomes three equal channels, 16-bit channels
    become 8-bit, and an alpha channel is dropped.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        maximum_pixels: reject the image if its header declares more pixels.

    Raises:
        ValueError: the format is unknown, or the file is truncated, broken or too large.

    >>> pixels = np.full((2, 3), 7, np.uint8)
    >>> decode_image(cv2.imencode(".png", pixels)[1].tobytes(), "gray.png").shape
    (2, 3, 3)
    """
    if not data:
        raise ValueError(f"{name} is empty; download or copy it again, or remove it")
    read_size = next((read_size for start, read_size in _FORMATS if data.startswith(start)), None)
    if read_size is None:
        raise ValueError(
            f"{name} is not an image of a supported format (it begins with {data[:8]!r}); "
            "convert it to JPEG, PNG, WebP, BMP or PPM, or remove it"
        )
    try:
        height, width = read_size(data)
    except (_Truncated, struct.error):
        raise ValueError(
            f"{name} is truncated after {len(data)} bytes; download or copy it again, or remove it"
        ) from None
    except _Unsafe as error:
        raise ValueError(f"{name} {error}; re-save the image, or remove it") from None
    if data.startswith(_JPEG_START):
        _check_scans(data, height * width, name)
    if height * width > maximum_pixels:
        raise ValueError(
            f"{name} declares {width} x {height} pixels, more than the {maximum_pixels} allowed; "
            "shrink it, or raise maximum_pixels if you trust its source"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError(_broken_message(name, error.err)) from None
    if image is None:
        raise ValueError(_broken_message(name, "the decoder failed"))
    return image


def fit_image(image: np.ndarray, size: int, how: Fit = "crop") -> np.ndarray:
    """Fit an image to (size, size, 3): shrink by area averaging, enlarge bilinearly.

    Args:
        image: (height, width, 3).
        size: side in pixels.
        how: ``crop`` keeps the largest centered square, ``stretch`` ignores the aspect ratio,
            ``pad`` keeps the whole image and adds black borders.

    >>> fit_image(np.zeros((50, 80, 3), np.uint8), 112, "pad").shape
    (112, 112, 3)
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if how == "stretch":
        return _resize(image, size, size)
    if how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resize(image[top : top + side, left : left + side], size, size)
    if how != "pad":
        raise ValueError(f"fit = {how!r}; choices: crop, pad, stretch")
    scale = size / max(height, width)
    resized = _resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (size - resized.shape[0]) // 2, (size - resized.shape[1]) // 2
    padded = np.zeros((size, size, 3), image.dtype)
    padded[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return padded


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height < image.shape[0] or width < image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _broken_message(name: str, reason: str) -> str:
    return f"{name} cannot be decoded ({reason}): the file is broken; replace or remove it"


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Read (height, width), after checking that the end marker is present."""
    height, width, position = 0, 0, 2
    # A frame header's size ends 9 bytes after the start of its marker. At position 2, with the end
    # marker's 2 bytes, this takes 13 bytes.
    if data.endswith(_JPEG_END) and len(data) >= 13:
        # Fast path, for most files: the end marker ends the file, and only the usual segments
        # precede the frame header. Skip these segments by their lengths. Here, `position` is the
        # start of a marker.
        while data[position] == 0xFF and data[position + 1] in _JPEG_BEFORE_FRAME:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
            if position + 9 > len(data):
                raise _Truncated
        if data[position] == 0xFF and data[position + 1] in _JPEG_FRAMES:
            return struct.unpack_from(">HH", data, position + 5)
        position = 2
    # Slow path: search for each marker. Within the loop, `position` is the end of the marker.
    while (marker := _JPEG_MARKER.search(data, position)) is not None:
        position = marker.end()
        code = data[position - 1]
        if code == _JPEG_END_CODE:
            return height, width
        if code in _JPEG_WITHOUT_LENGTH:
            continue
        # If there are several frames, decoders use the first.
        if code in _JPEG_FRAMES and not height:
            height, width = struct.unpack_from(">HH", data, position + 3)
        position += int.from_bytes(data[position : position + 2], "big")
    raise _Truncated


def _check_scans(data: bytes, pixels: int, name: str) -> None:
    """Reject a progressive JPEG with a huge number of scans, since each takes time to decode."""
    # The scan marker never occurs within a scan's data, so counting markers counts scans. An
    # embedded thumbnail adds a few.
    scans = data.count(_JPEG_SCAN)
    if scans > _USUAL_SCANS and scans * pixels > _MAX_SCANNED_PIXELS:
        raise ValueError(
            f"{name} has {scans} scans of {pixels} pixels, which would take too long to decode; "
            "re-save the image, or remove it"
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """Read (height, width), after checking the end chunk and the size of the metadata."""
    # After 8 bytes of signature come the chunks: length (4 bytes), type (4), content, checksum (4).
    # The first chunk's content begins with the width and the height.
    width, height = struct.unpack_from(">II", data, 16)
    position, metadata_bytes = 8, 0
    while (chunk := data[position + 4 : position + 8]) != b"IEND":
        if len(chunk) < 4:
            raise _Truncated
        length = int.from_bytes(data[position : position + 4], "big")
        if chunk in _PNG_DEFLATED:
            # The decoder decompresses all of these chunks and keeps them in memory.
            metadata_bytes += min(length * _MAX_DEFLATE_RATIO, _MAX_CHUNK_BYTES)
            if metadata_bytes > _MAX_METADATA_BYTES:
                raise _Unsafe("contains compressed metadata that could take too much memory")
        position += 12 + length
    return height, width


def _webp_size(data: bytes) -> tuple[int, int]:
    # The declared size does not count the first 8 bytes.
    (declared_bytes,) = struct.unpack_from("<I", data, 4)
    if len(data) < declared_bytes + 8:
        raise _Truncated
    chunk_type = data[12:16]
    if chunk_type == b"VP8X":
        # Extended format: width - 1, then height - 1, in 3 bytes each.
        return (
            int.from_bytes(data[27:30], "little") + 1,
            int.from_bytes(data[24:27], "little") + 1,
        )
    if chunk_type == b"VP8L":
        # Lossless: one word holds width - 1 in its low 14 bits and height - 1 in the next 14.
        (size_bits,) = struct.unpack_from("<I", data, 21)
        return (size_bits >> 14 & 0x3FFF) + 1, (size_bits & 0x3FFF) + 1
    # Lossy: the low 14 bits of each word are the size, the high 2 bits a scale for display.
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _bmp_size(data: bytes) -> tuple[int, int]:
    # The pixels' offset is at byte 10 and the header's size at byte 14. A header of 12 bytes is the
    # old OS/2 format. A negative height means that the top row comes first.
    offset, header_size = struct.unpack_from("<II", data, 10)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    pixel_bits = struct.unpack_from("<H", data, 24 if header_size == 12 else 28)[0]
    # Compressions 1 and 2 are run-length encodings, whose size is unknown before decoding.
    is_run_length_encoded = header_size != 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2)
    row_bytes = (width * pixel_bits + 31) // 32 * 4
    if not is_run_length_encoded and len(data) < offset + row_bytes * abs(height):
        raise _Truncated
    return abs(height), abs(width)


def _netpbm_size(data: bytes) -> tuple[int, int]:
    header = _NETPBM.match(data)
    if header is None:
        raise _Truncated
    return int(header[2]), int(header[1])


_FORMATS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...] = (
    (_JPEG_START, _jpeg_size),
    (b"\x89PNG\r\n\x1a\n", _png_size),
    (b"RIFF", _webp_size),
    (b"BM", _bmp_size),
    *((b"P%d" % kind, _netpbm_size) for kind in (2, 3, 5, 6)),
)
"""First bytes of each format, and the function that reads (height, width) from its header."""
