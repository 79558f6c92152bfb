"""The service under load from another process: its throughput, and what it does at four times that.

A model with random weights is served with aligned crops, so that embedding is the work. In turns,
since others may use the machine too: the embedder alone, in batches of as many faces as the service
has at a time; and as many requests at a time as keep it busy. Then four times the requests per
second that it answered, sent at that rate whether or not answers come. The client is another
process than the service, on the same processors, and so are the decoding processes: what they take
is missing from the service's throughput. Prints throughput as a share of the embedder's own, also
in faces per second of processor time, on which other load has less influence; median latencies; and
how fast the excess is refused; compares them with the targets; and writes benchmarks/serving.csv.

    python benchmarks/serving.py

Where others use the machine, threads wait for each other: OMP_NUM_THREADS=1 then tells more.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import httpx2 as httpx
import numpy as np
import torch

from margrave import backbones
from margrave.inference import load_embedder
from margrave.matching import Matcher
from margrave.models import ModelCard, OperatingPoint, save_model
from margrave.serving import KeyFile, ServiceSettings, serve
from margrave.synthetic import SyntheticFaces

SHARE, REFUSAL_MS, SLOWDOWN = 0.8, 100, 2
"""What the service should reach."""
ROUNDS = 5
OUTPUT = Path(__file__).with_suffix(".csv")


def served(folder: Path, settings: dict[str, Any]) -> None:
    """The service, in a process of its own."""
    matcher = Matcher.load(folder / "model.safetensors", aligned=True, check_alignment=False)
    serve(matcher, ServiceSettings(**settings), aligned=True, check_alignment=False)


@dataclass(frozen=True)
class Rate:
    """Faces per second, and per second of processor time."""

    faces: float
    by_processor: float


def processor_seconds(process: int) -> float:
    """That a process and its children have used."""
    used = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything: state, parent, …, user and system time.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if process in (int(path.parent.name), int(fields[1])):
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def embedder_alone(folder: Path, images: list[bytes], size: int) -> Callable[[float], Rate]:
    """What measures, for so many seconds, the embedder without decoding."""
    embedder = replace(load_embedder(folder / "model.safetensors"), batch_size=size)
    crops = [
        cv2.cvtColor(cv2.imdecode(np.frombuffer(each, np.uint8), 1), cv2.COLOR_BGR2RGB)
        for each in images
    ]
    batch = [crops[number % len(crops)] for number in range(size)]
    embedder.embed_images(batch)

    def measure(seconds: float) -> Rate:
        count, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            embedder.embed_images(batch)
            count += len(batch)
        return Rate(count / (time.perf_counter() - start), count / (time.process_time() - used))

    return measure


async def steady(client: httpx.AsyncClient, images: list[bytes], seconds: float, many: int) -> Any:
    """So many requests at a time; their number per second, and latencies."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            status = await _verify(client, images, number)
            assert status == 200, status
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(many)))
    return len(latencies) / (time.perf_counter() - start), latencies


async def overload(
    client: httpx.AsyncClient, images: list[bytes], seconds: float, rate: float
) -> Any:
    """Requests at a rate; latencies of those that were answered, and of those refused."""
    answered: list[float] = []
    refused: list[float] = []
    other: list[int] = []

    async def one(number: int) -> None:
        start = time.perf_counter()
        status = await _verify(client, images, number)
        taken = time.perf_counter() - start
        if status == 200:
            answered.append(taken)
        elif status == 503:
            refused.append(taken)
        else:
            other.append(status)

    tasks = []
    start = time.perf_counter()
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    assert not other, other
    return answered, refused


async def _verify(client: httpx.AsyncClient, images: list[bytes], number: int) -> int:
    files = {"first": images[number % len(images)], "second": images[(number + 1) % len(images)]}
    answer = await client.post("/v1/verify", files=files)
    return answer.status_code


async def measure(
    port: int,
    service: int,
    token: str,
    images: list[bytes],
    seconds: float,
    many: int,
    alone: Callable[[float], Rate],
) -> Any:
    """Pairs of faces per second, alone and served; latencies; then four times as much."""
    header = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=1000)
    address = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(
        base_url=address, headers=header, timeout=120, limits=limits
    ) as client:
        for _ in range(600):
            try:
                if (await client.get("/ready")).status_code == 200:
                    break
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
        await steady(client, images, 3, many)
        pairs: list[tuple[Rate, Rate]] = []
        latencies: list[float] = []
        for _ in range(ROUNDS):
            by_itself = alone(seconds / ROUNDS)
            used = processor_seconds(service)
            rate, more = await steady(client, images, seconds / ROUNDS, many)
            used = processor_seconds(service) - used
            pairs.append((by_itself, Rate(2 * rate, 2 * len(more) / used)))
            latencies += more
        rate = statistics.median(served.faces for _, served in pairs) / 2
        answered, refused = await overload(client, images, seconds, 4 * rate)
    return pairs, latencies, answered, refused


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="iresnet18")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--at-a-time", type=int, default=8)
    given = parser.parse_args()
    faces = SyntheticFaces(num_identities=4, images_per_identity=4)
    images = [
        cv2.imencode(".jpg", cv2.cvtColor(faces.read(index), cv2.COLOR_RGB2BGR))[1].tobytes()
        for index in range(len(faces))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        specification = {"kind": given.backbone}
        point = OperatingPoint(far=0.01, threshold=0.5, flips=True)
        card = ModelCard(backbone=specification, operating_points=(point,))
        state = backbones.create(specification).state_dict()
        save_model(folder / "model.safetensors", state, card)
        _, token = KeyFile(folder / "keys.json").new("load", ["verify"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "port": port,
            "keys": folder / "keys.json",
            "audit": folder / "audit.jsonl",
            "rate": "1000000/minute",
            "max_concurrent_requests": given.at_a_time,
            "batch_seconds": 1.0,
        }
        # Others who use the machine make every figure worse.
        load = os.getloadavg()[0]
        alone = embedder_alone(folder, images, 2 * given.at_a_time)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=served, args=(folder, settings))
        process.start()
        try:
            pid = process.pid or 0
            pairs, latencies, answered, refused = asyncio.run(
                measure(port, pid, token, images, given.seconds, given.at_a_time, alone)
            )
        finally:
            process.terminate()
            process.join()
    shares = [served.faces / by_itself.faces for by_itself, served in pairs]
    of_processor = [served.by_processor / by_itself.by_processor for by_itself, served in pairs]
    steady_median, loaded_median = statistics.median(latencies), statistics.median(answered)
    slowest = sorted(refused)[int(0.99 * len(refused))]
    row = {
        "backbone": given.backbone,
        "embedder alone, faces/s": round(statistics.median(each.faces for each, _ in pairs), 1),
        "service, faces/s": round(statistics.median(each.faces for _, each in pairs), 1),
        "share": round(statistics.median(shares), 2),
        "smallest share": round(min(shares), 2),
        "largest share": round(max(shares), 2),
        "share per processor second": round(statistics.median(of_processor), 2),
        "median latency, ms": round(1000 * steady_median),
        "at 4 x: answered": len(answered),
        "median latency of those, ms": round(1000 * loaded_median),
        "times the median without excess": round(loaded_median / steady_median, 2),
        "at 4 x: refused": len(refused),
        "median refusal, ms": round(1000 * statistics.median(refused), 1),
        "99 % of refusals within, ms": round(1000 * slowest, 1),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load average before": round(load, 1),
        "load average after": round(os.getloadavg()[0], 1),
    }
    for name, value in row.items():
        print(f"{name}: {value}")
    targets = {
        f"throughput at least {SHARE} of the embedder's": row["share"] >= SHARE,
        f"median refusal within {REFUSAL_MS} ms": row["median refusal, ms"] <= REFUSAL_MS,
        f"median latency at most {SLOWDOWN} times": loaded_median <= SLOWDOWN * steady_median,
    }
    for target, holds in targets.items():
        print(f"{'holds' if holds else 'MISSED'}: {target}")
    with OUTPUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
