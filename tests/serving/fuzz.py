"""Fuzzed uploads to the whole service: python tests/serving/fuzz.py 20000.

Images of every format and whole multipart bodies are mutated and sent to the API, whose images are
decoded by real processes. Nothing may crash, no answer may be 5xx, and memory must not grow: that
of the service and that of its processes, from a fifth of the uploads on, when all is loaded.
"""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import httpx2 as httpx
import numpy as np
from fake_matching import matcher, person

from margrave.serving import SCOPES, KeyFile, ServiceSettings, make_app

EXTENSIONS = (".jpg", ".png", ".webp", ".bmp", ".ppm", ".tiff")
BOUNDARY = b"boundary"
AT_A_TIME = 16
MOST_GROWTH = 50_000_000
"""Bytes of the service, and of its processes together."""


def images() -> list[bytes]:
    """Whole image files of all formats, and of some that are not read."""
    pixels = cv2.resize(person(1), (96, 96))
    made = [cv2.imencode(extension, pixels)[1].tobytes() for extension in EXTENSIONS]
    return [*made, b"GIF89a" + bytes(60), b"", b"\xff\xd8\xff"]


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """A content with bytes changed, cut out, repeated or put in."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 6))):
        if not data:
            break
        place = int(generator.integers(len(data)))
        length = int(generator.integers(1, 20))
        match generator.integers(4):
            case 0:
                data[place] = int(generator.integers(256))
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length] * int(generator.integers(1, 4))
            case _:
                data[place : place + 4] = (2 ** int(generator.integers(32))).to_bytes(4, "big")
    return bytes(data)


def body(parts: dict[str, bytes]) -> bytes:
    """A multipart form."""
    content = b""
    for name, value in parts.items():
        content += b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="'
        content += name.encode() + (b'"' if name == "name" else b'"; filename="f"')
        content += b"\r\n\r\n" + value + b"\r\n"
    return content + b"--" + BOUNDARY + b"--\r\n"


def upload(whole: list[bytes], generator: np.random.Generator) -> tuple[str, bytes]:
    """A path, and a mutated body for it."""
    first, second = (
        mutated(whole[int(generator.integers(len(whole)))], generator) for _ in range(2)
    )
    match generator.integers(4):
        case 0:
            return "/v1/verify", body({"first": first, "second": second})
        case 1:
            return "/v1/identify", body({"image": first})
        case 2:
            name = mutated("Zoë Ünal".encode(), generator)
            return "/v1/people", body({"name": name, "images": first})
        case _:
            return "/v1/verify", mutated(body({"first": first, "second": second}), generator)


def memory() -> tuple[int, int]:
    """Resident bytes of the service, and of its processes together."""

    def resident(process: int) -> int:
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * resource.getpagesize()

    children = [each.pid for each in multiprocessing.active_children() if each.pid]
    return resident(os.getpid()), sum(resident(each) for each in children)


async def run(count: int, folder: Path) -> tuple[collections.Counter[int], list[tuple[int, int]]]:
    """Statuses of so many uploads; memory after a fifth of them, and after all."""
    made = matcher(gallery=True)
    made.finder = None
    made.quality_floor = 0
    settings = ServiceSettings(
        keys=folder / "keys.json",
        audit=folder / "audit.jsonl",
        rate="100000000/minute",
        workers=2,
        max_concurrent=64,
    )
    _, token = KeyFile(settings.keys).new("fuzz", tuple(SCOPES))
    app = make_app(made, settings, aligned=True, check_alignment=False, write_log=lambda line: None)
    inner: Any = app.app.app  # pyright: ignore[reportAttributeAccessIssue]
    statuses: collections.Counter[int] = collections.Counter()
    measured: list[tuple[int, int]] = []
    generator = np.random.default_rng(0)
    whole = images()
    header = {
        "Authorization": f"Bearer {token}",
        "content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
    }
    transport = httpx.ASGITransport(app)  # pyright: ignore[reportArgumentType]
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client,
        inner.router.lifespan_context(inner),
    ):

        async def one() -> int:
            path, content = upload(whole, generator)
            return (await client.post(path, content=content, headers=header)).status_code

        for start in range(0, count, AT_A_TIME):
            many = min(AT_A_TIME, count - start)
            for status in await asyncio.gather(*(one() for _ in range(many))):
                statuses[status] += 1
            if not measured and start + many >= count / 5:
                measured.append(memory())
        measured.append(memory())
    return statuses, measured


def main() -> int:
    """Fuzz, print and judge."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        statuses, (early, late) = asyncio.run(run(wanted, Path(temporary)))
    failures = sum(number for status, number in statuses.items() if status >= 500)
    print(
        f"{wanted} uploads in {time.monotonic() - started:.0f} s:", dict(sorted(statuses.items()))
    )
    print(f"5xx: {failures}")
    has_grown = False
    for name, before, after in zip(("the service", "its processes"), early, late, strict=True):
        print(f"memory of {name}: {before / 1e6:.0f} MB, then {after / 1e6:.0f} MB")
        has_grown |= after - before > MOST_GROWTH
    return int(bool(failures) or has_grown)


if __name__ == "__main__":
    sys.exit(main())
