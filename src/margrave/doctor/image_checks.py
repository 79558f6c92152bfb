"""What measurements of images say about a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from margrave.doctor.findings import Finding
from margrave.doctor.measurements import Measurements

SHOWN = 5
BLANK_DEVIATION = 4.0
COLOURED = 6.0
REVERSED_REDNESS = -4.0
FEW = 20
SMALLEST_SIDE = 48
GREY = 0.95
SAME_BITS, SAME_DIFFERENCE = 8, 3.0
NEIGHBOURS = 8

Name = Callable[[int], str]


def check_reading(seen: Measurements, name: Name) -> Iterator[Finding]:
    """Images that cannot be read, and images with nothing on them."""
    total = len(seen) + len(seen.unreadable)
    if seen.unreadable:
        share = len(seen.unreadable) / total
        yield Finding(
            fault="unreadable_images",
            severity="serious" if share >= 0.01 else "warning",
            said=f"{len(seen.unreadable)} of {total} images cannot be read",
            remedy="fetch or convert them again, or remove them; training leaves them out",
            share=share,
            examples=tuple(list(seen.unreadable.values())[:SHOWN]),
            figures={"unreadable": len(seen.unreadable), "images": total},
        )
    blank = seen.deviation < BLANK_DEVIATION
    if blank.any():
        yield Finding(
            fault="blank_images",
            severity="serious" if blank.mean() >= 0.01 else "warning",
            said=f"{blank.sum()} of {total} images are of one colour or nearly so",
            remedy="remove them: a class centre learns nothing from them",
            share=float(blank.mean()),
            examples=_examples(seen, blank, name),
            figures={"blank": int(blank.sum()), "images": total},
        )


def check_colour(seen: Measurements, name: Name) -> Iterator[Finding]:
    """Red and blue exchanged: skin of every tone is redder than blue."""
    coloured = (seen.colour > COLOURED) & (seen.deviation >= BLANK_DEVIATION)
    if coloured.sum() < FEW:
        yield _colours_unchecked(seen, int(coloured.sum()))
        return
    wrong = coloured & (seen.redness < REVERSED_REDNESS)
    share = float(wrong.sum() / coloured.sum())
    figures = {
        "share": round(share, 4),
        "median_redness": round(float(np.median(seen.redness[coloured])), 2),
    }
    if share > 0.2:
        yield Finding(
            fault="reversed_colours" if share > 0.6 else "mixed_colour_orders",
            severity="serious",
            said=f"in {100 * share:.0f} % of the coloured images skin is bluer than it is red: "
            "their channels are BGR where RGB belongs",
            remedy="exchange the channels where the images were written (OpenCV reads and writes "
            "BGR: cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), and write them again",
            share=share,
            examples=_examples(seen, wrong, name),
            figures=figures,
        )


def _colours_unchecked(seen: Measurements, coloured: int) -> Finding:
    grey = float((seen.colour <= COLOURED).mean()) if len(seen) else 0.0
    reason = f"only {coloured} images have colours, and {FEW} are needed"
    if grey > GREY:
        reason = f"{100 * grey:.0f} % of the images are grey"
    return Finding(
        fault="grey_images" if grey > GREY else "colours_not_checked",
        severity="note" if grey > GREY else "unchecked",
        said=f"the order of the colours is not checked, because {reason}",
        remedy="none needed",
        share=0.0,
        figures={"grey": round(grey, 4), "coloured": coloured},
    )


def check_sizes(seen: Measurements, name: Name, smallest: int = SMALLEST_SIDE) -> Iterator[Finding]:
    """Images too small to show a face."""
    if not len(seen):
        return
    small = seen.sizes.min(axis=1) < smallest
    if small.mean() > 0.05:
        yield Finding(
            fault="small_images",
            severity="serious" if small.mean() > 0.5 else "warning",
            said=f"{100 * small.mean():.0f} % of the images are less than {smallest} pixels "
            f"wide or high (median {np.median(seen.sizes.min(axis=1)):.0f})",
            remedy="align from the original photos (margrave align) instead of enlarging crops",
            share=float(small.mean()),
            examples=_examples(seen, small, name),
            figures={"share": round(float(small.mean()), 4)},
        )


def near_duplicates(seen: Measurements) -> np.ndarray:
    """(M, 2) positions of images that show the same, the lower first.

    Images whose hashes share a quarter come to lie beside each other when sorted by it; each is
    compared with those that follow.
    """
    usable = np.flatnonzero(seen.deviation >= BLANK_DEVIATION)
    hashes = seen.hashes[usable]
    if len(usable) < 2:
        return np.empty((0, 2), np.int64)
    quarters = hashes.view(np.uint32).reshape(-1, 4)
    found = []
    for quarter in range(4):
        order = np.lexsort((hashes[:, 1], hashes[:, 0], quarters[:, quarter]))
        for step in range(1, min(NEIGHBOURS + 1, len(order))):
            one, other = order[:-step], order[step:]
            alike = quarters[one, quarter] == quarters[other, quarter]
            one, other = one[alike], other[alike]
            bits = np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1)
            close = bits <= SAME_BITS
            found.append(np.sort(np.stack([one[close], other[close]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    first, second = (seen.thumbnails[usable[pairs[:, side]]].astype(np.int16) for side in (0, 1))
    same = np.abs(first - second).mean(axis=(1, 2)) <= SAME_DIFFERENCE
    return usable[pairs[same]]


def check_duplicates(
    seen: Measurements, name: Name, labels: np.ndarray, class_names: Callable[[int], str]
) -> Iterator[Finding]:
    """The same image under two identities, or many times under one."""
    pairs = near_duplicates(seen)
    if not len(pairs):
        return
    own = labels[seen.indices]
    across = own[pairs[:, 0]] != own[pairs[:, 1]]
    if across.any():
        yield _across_identities(seen, name, own, class_names, pairs[across])
    within = np.unique(pairs[~across][:, 1])
    share = len(within) / len(seen)
    if share > 0.02:
        yield Finding(
            fault="repeated_images",
            severity="serious" if share > 0.3 else "warning",
            said=f"{len(within)} of {len(seen)} images repeat another one of the same identity",
            remedy="keep one of each: repetitions weigh on class sizes and concentrations",
            share=share,
            examples=tuple(
                f"{name(int(seen.indices[one]))} = {name(int(seen.indices[other]))}"
                for one, other in pairs[~across][:SHOWN]
            ),
            figures={"repeated": len(within), "images": len(seen)},
        )


def _across_identities(
    seen: Measurements,
    name: Name,
    own: np.ndarray,
    class_names: Callable[[int], str],
    pairs: np.ndarray,
) -> Finding:
    involved = np.unique(pairs)
    sizes = np.bincount(own)
    identities, counts = np.unique(np.sort(own[pairs], axis=1), axis=0, return_counts=True)
    smaller = np.minimum(sizes[identities[:, 0]], sizes[identities[:, 1]])
    twice = counts >= np.maximum(2, 0.5 * smaller)
    share = len(involved) / len(seen)
    said = f"{len(involved)} of {len(seen)} images are also filed under another identity"
    if twice.any():
        named = [
            f"{class_names(int(one))} = {class_names(int(other))}"
            for one, other in identities[twice][:SHOWN]
        ]
        said += f"; {twice.sum()} pairs of identities are one: {', '.join(named)}"
    return Finding(
        fault="duplicate_identities" if twice.any() else "images_under_two_identities",
        severity="serious" if twice.any() or share > 0.01 else "warning",
        said=said,
        remedy="merge the identities, or remove the images from the wrong one: a margin pushes "
        "apart what is the same",
        share=share,
        examples=tuple(
            f"{name(int(seen.indices[one]))} = {name(int(seen.indices[other]))}"
            for one, other in pairs[:SHOWN]
        ),
        figures={"images": len(involved), "identity_pairs": int(twice.sum())},
    )


def _examples(seen: Measurements, which: np.ndarray, name: Name) -> tuple[str, ...]:
    return tuple(name(int(index)) for index in seen.indices[which][:SHOWN])
