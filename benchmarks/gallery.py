"""Searching a gallery beside the bare product and faiss Flat, in one process, in turns.

Makes a gallery of random people in a file (or opens the one that is there), and times the top ten
of one query, and of a hundred at once, each beside one pass of NumPy and of torch over the same
mapped vectors; faiss-cpu's Flat index too, where it is installed and there is memory for its copy.
Prints medians and ratios and writes benchmarks/gallery.csv.

    python benchmarks/gallery.py --people 2000000 --folder /tmp/people
"""

from __future__ import annotations

import argparse
import csv
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from margrave.gallery import GalleryCard, Person, PersonRecord, create_gallery, open_gallery
from margrave.gallery.embedded import EmbeddedGallery

OUTPUT = Path(__file__).with_suffix(".csv")
AT_ONCE = 10_000


def people(count: int, dimension: int) -> Iterator[PersonRecord]:
    """Random people."""
    generator = np.random.default_rng(0)
    for start in range(0, count, AT_ONCE):
        vectors = generator.standard_normal((min(AT_ONCE, count - start), dimension), np.float32)
        for row, vector in enumerate(vectors):
            name = f"person {start + row}"
            yield PersonRecord(
                person=Person(name=name, images=1, enrolled="2026-01-01T00:00:00Z"), vector=vector
            )


def opened(folder: Path, count: int, dimension: int) -> EmbeddedGallery:
    """The gallery, made if it is not there."""
    path = folder / f"{count}x{dimension}.gallery"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        card = GalleryCard(weights="random", dimension=dimension)
        with create_gallery(str(path), card) as gallery:
            start = time.perf_counter()
            gallery.restore(people(count, dimension))
            print(f"made in {time.perf_counter() - start:.0f} s")
    gallery = open_gallery(str(path))
    assert isinstance(gallery, EmbeddedGallery)
    return gallery


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    gallery = opened(given.folder, given.people, given.dimension)
    query = np.random.default_rng(1).standard_normal((1, given.dimension), np.float32)
    hundred = np.random.default_rng(2).standard_normal((100, given.dimension), np.float32)
    start = time.perf_counter()
    gallery.search(query)
    first = time.perf_counter() - start
    vectors = gallery._slot_vectors[: given.people]
    tensor = torch.from_numpy(vectors)
    ways: dict[str, Callable[[], object]] = {
        "top 10 of one query": lambda: gallery.search(query),
        "NumPy's bare product": lambda: vectors @ query[0],
        "torch's bare product": lambda: torch.mv(tensor, torch.from_numpy(query[0])),
        "top 10 of 100 queries": lambda: gallery.search(hundred),
        "bare product of 100": lambda: torch.mm(torch.from_numpy(hundred), tensor.T),
    }
    if find_spec("faiss") and given.people * given.dimension * 4 < 6e9:
        import faiss

        index = faiss.IndexFlatIP(given.dimension)
        index.add(vectors)
        ways["faiss Flat, one query"] = lambda: index.search(query, 10)
        ways["faiss Flat, 100 queries"] = lambda: index.search(hundred, 10)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repetitions):
        for name, run in ways.items():
            # A library's threads wait for more work for a while, at the next one's expense.
            time.sleep(0.2)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in times.items()}
    one = min(medians["NumPy's bare product"], medians["torch's bare product"])
    rows = [
        {
            "people": given.people,
            "dimension": given.dimension,
            "what": name,
            "ms": round(1000 * median, 1),
            "ratio to one bare product": round(median / one, 2),
        }
        for name, median in medians.items()
    ]
    size = sum(path.stat().st_size for path in given.folder.glob(f"{given.people}x*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = Table("what", "ms", "ratio to one bare product")
    for row in rows:
        table.add_row(row["what"], f"{row['ms']}", f"{row['ratio to one bare product']}")
    console = Console()
    console.print(table)
    console.print(
        f"{given.people:,} people, {size / 1e9:.2f} GB on the disk, first search {first:.2f} s, "
        f"peak {peak / 1e6:.2f} GB with mapped vectors; {platform.processor() or 'processor'}, "
        f"{torch.get_num_threads()} threads"
    )
    former = list(csv.DictReader(OUTPUT.open())) if OUTPUT.exists() else []
    kept = [row for row in former if int(row["people"]) != given.people]
    with OUTPUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
