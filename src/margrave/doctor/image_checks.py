"""Checks a data set by the measurements of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from margrave.doctor.findings import Finding
from margrave.doctor.measurements import Measurements

MAX_EXAMPLES = 5
"""Maximum number of examples in a finding."""
BLANK_STD = 4.0
"""Standard deviation of the gray values below which an image counts as blank."""
MIN_COLOR = 6.0
"""Colorfulness (see `Measurements`) above which an image counts as colored."""
REVERSED_REDNESS = -4.0
"""Redness (see `Measurements`) below which the channels of a colored image count as reversed."""
MIN_COLORED_IMAGES = 20
"""Minimum number of colored images for a verdict on the color order."""
MIN_SIDE = 48
"""Side length in pixels below which an image counts as too small."""
GRAY_SHARE = 0.95
"""Share of gray images above which the data set counts as gray."""
MAX_DIFFERENT_BITS, MAX_DIFFERENCE = 8, 3.0
"""Near duplicates differ in at most 8 of 128 hash bits, and the mean absolute difference of their
thumbnails' gray values is at most 3."""
NEIGHBORS = 8
"""After sorting by hash, each image is compared with this many of the images that follow it."""

NameFunction = Callable[[int], str]
"""A function from an image's index to its name."""


def check_reading(measured: Measurements, image_name: NameFunction) -> Iterator[Finding]:
    """Check for unreadable and blank images."""
    total = len(measured) + len(measured.unreadable)
    if measured.unreadable:
        share = len(measured.unreadable) / total
        yield Finding(
            fault="unreadable_images",
            severity="serious" if share >= 0.01 else "warning",
            message=f"{len(measured.unreadable)} of {total} images cannot be read",
            remedy="download or convert them again, or remove them; training skips them",
            share=share,
            examples=tuple(list(measured.unreadable.values())[:MAX_EXAMPLES]),
            figures={"unreadable": len(measured.unreadable), "images": total},
        )
    blank = measured.std < BLANK_STD
    if blank.any():
        yield Finding(
            fault="blank_images",
            severity="serious" if blank.mean() >= 0.01 else "warning",
            message=f"{blank.sum()} of {len(measured)} readable images are blank or nearly so",
            remedy="remove them: nothing can be learned from them",
            share=float(blank.mean()),
            examples=_example_names(measured, blank, image_name),
            figures={"blank": int(blank.sum()), "images": len(measured)},
        )


def check_color(measured: Measurements, image_name: NameFunction) -> Iterator[Finding]:
    """Check whether the red and blue channels are exchanged.

    Skin of every tone is more red than blue.
    """
    colored = (measured.colorfulness > MIN_COLOR) & (measured.std >= BLANK_STD)
    if colored.sum() < MIN_COLORED_IMAGES:
        yield _colors_unchecked(measured, int(colored.sum()))
        return
    reversed_colors = colored & (measured.redness < REVERSED_REDNESS)
    share = float(reversed_colors.sum() / colored.sum())
    figures = {
        "share": round(share, 4),
        "median_redness": round(float(np.median(measured.redness[colored])), 2),
    }
    if share > 0.2:
        yield Finding(
            fault="reversed_colors" if share > 0.6 else "mixed_color_orders",
            severity="serious",
            message=f"in {100 * share:.0f} % of the colored images skin is more blue than red: "
            "their channels are in BGR order instead of RGB",
            remedy="exchange the channels in the program that wrote the images (OpenCV reads and "
            "writes BGR: cv2.cvtColor(image, cv2.COLOR_BGR2RGB)), and write them again",
            share=share,
            examples=_example_names(measured, reversed_colors, image_name),
            figures=figures,
        )


def _colors_unchecked(measured: Measurements, num_colored: int) -> Finding:
    """The finding that the color order was not checked, with the reason."""
    gray_share = float((measured.colorfulness <= MIN_COLOR).mean()) if len(measured) else 0.0
    reason = f"only {num_colored} images have colors, but at least {MIN_COLORED_IMAGES} are needed"
    if gray_share > GRAY_SHARE:
        reason = f"{100 * gray_share:.0f} % of the images are gray"
    return Finding(
        fault="gray_images" if gray_share > GRAY_SHARE else "colors_not_checked",
        severity="note" if gray_share > GRAY_SHARE else "unchecked",
        message=f"the color order was not checked, because {reason}",
        remedy="none needed",
        share=0.0,
        figures={"gray": round(gray_share, 4), "colored": num_colored},
    )


def check_sizes(
    measured: Measurements, image_name: NameFunction, min_side: int = MIN_SIDE
) -> Iterator[Finding]:
    """Check for images that are too small."""
    if not len(measured):
        return
    small = measured.sizes.min(axis=1) < min_side
    if small.mean() > 0.05:
        yield Finding(
            fault="small_images",
            severity="serious" if small.mean() > 0.5 else "warning",
            message=f"{100 * small.mean():.0f} % of the images are less than {min_side} pixels "
            f"wide or high (median {np.median(measured.sizes.min(axis=1)):.0f})",
            remedy="align from the original photos (margrave align) instead of enlarging crops",
            share=float(small.mean()),
            examples=_example_names(measured, small, image_name),
            figures={"share": round(float(small.mean()), 4)},
        )


def near_duplicates(measured: Measurements) -> np.ndarray:
    """Find near duplicates among the measured images.

    The 128-bit hash of an image consists of four 32-bit quarters. The hashes of near duplicates
    usually have at least one quarter in common. Therefore images are sorted by each quarter in
    turn, and each image is compared with the next `NEIGHBORS` images, if they have the same
    quarter.

    Returns:
        (M, 2) positions in `measured` of each pair of near duplicates, the lower position first.
    """
    usable = np.flatnonzero(measured.std >= BLANK_STD)
    hashes = measured.hashes[usable]
    if len(usable) < 2:
        return np.empty((0, 2), np.int64)
    quarters = hashes.view(np.uint32).reshape(-1, 4)
    candidates = []
    for quarter in range(4):
        order = np.lexsort((hashes[:, 1], hashes[:, 0], quarters[:, quarter]))
        for offset in range(1, min(NEIGHBORS + 1, len(order))):
            first, second = order[:-offset], order[offset:]
            equal = quarters[first, quarter] == quarters[second, quarter]
            first, second = first[equal], second[equal]
            different_bits = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
            close = different_bits <= MAX_DIFFERENT_BITS
            candidates.append(np.sort(np.stack([first[close], second[close]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(candidates), axis=0)
    first_thumbnails, second_thumbnails = (
        measured.thumbnails[usable[pairs[:, column]]].astype(np.int16) for column in (0, 1)
    )
    is_duplicate = np.abs(first_thumbnails - second_thumbnails).mean(axis=(1, 2)) <= MAX_DIFFERENCE
    return usable[pairs[is_duplicate]]


def check_duplicates(
    measured: Measurements,
    image_name: NameFunction,
    labels: np.ndarray,
    class_name: Callable[[int], str],
) -> Iterator[Finding]:
    """Check for near duplicates in different identities, and within an identity.

    Args:
        measured: measurements of images.
        image_name: an image's name by its index.
        labels: labels of all images of the set.
        class_name: an identity's name by its label.
    """
    pairs = near_duplicates(measured)
    if not len(pairs):
        return
    measured_labels = labels[measured.indices]
    crosses_identities = measured_labels[pairs[:, 0]] != measured_labels[pairs[:, 1]]
    if crosses_identities.any():
        yield _across_identities(
            measured, image_name, measured_labels, class_name, pairs[crosses_identities]
        )
    pairs_within = pairs[~crosses_identities]
    repeated = np.unique(pairs_within[:, 1])
    share = len(repeated) / len(measured)
    if share > 0.02:
        yield Finding(
            fault="repeated_images",
            severity="serious" if share > 0.3 else "warning",
            message=f"{len(repeated)} of {len(measured)} images repeat another image of the same "
            "identity",
            remedy="keep only one copy of each: repetitions distort class sizes and "
            "KappaFace's concentrations",
            share=share,
            examples=tuple(
                f"{image_name(int(measured.indices[first]))} = "
                f"{image_name(int(measured.indices[second]))}"
                for first, second in pairs_within[:MAX_EXAMPLES]
            ),
            figures={"repeated": len(repeated), "images": len(measured)},
        )


def _across_identities(
    measured: Measurements,
    image_name: NameFunction,
    measured_labels: np.ndarray,
    class_name: Callable[[int], str],
    pairs: np.ndarray,
) -> Finding:
    """The finding for near duplicates in different identities.

    Args:
        measured: measurements of N images.
        image_name: an image's name by its index.
        measured_labels: (N,) labels of the measured images.
        class_name: an identity's name by its label.
        pairs: (M, 2) positions of near duplicates with different labels.
    """
    affected = np.unique(pairs)
    sizes = np.bincount(measured_labels)
    identity_pairs, counts = np.unique(
        np.sort(measured_labels[pairs], axis=1), axis=0, return_counts=True
    )
    smaller_sizes = np.minimum(sizes[identity_pairs[:, 0]], sizes[identity_pairs[:, 1]])
    # Two identities count as the same person if they have at least two pairs of near duplicates,
    # and at least half as many as the smaller identity has images.
    same_person = counts >= np.maximum(2, 0.5 * smaller_sizes)
    share = len(affected) / len(measured)
    message = f"{len(affected)} of {len(measured)} images also occur in another identity"
    if same_person.any():
        same_names = [
            f"{class_name(int(first))} = {class_name(int(second))}"
            for first, second in identity_pairs[same_person][:MAX_EXAMPLES]
        ]
        message += (
            f"; {same_person.sum()} pairs of identities are the same person: "
            f"{', '.join(same_names)}"
        )
    return Finding(
        fault="duplicate_identities" if same_person.any() else "images_under_two_identities",
        severity="serious" if same_person.any() or share > 0.01 else "warning",
        message=message,
        remedy="merge the identities, or remove the images from the wrong identity: training would "
        "push equal images apart",
        share=share,
        examples=tuple(
            f"{image_name(int(measured.indices[first]))} = "
            f"{image_name(int(measured.indices[second]))}"
            for first, second in pairs[:MAX_EXAMPLES]
        ),
        figures={"images": len(affected), "identity_pairs": int(same_person.sum())},
    )


def _example_names(
    measured: Measurements, affected: np.ndarray, image_name: NameFunction
) -> tuple[str, ...]:
    """Names of the first few images for which the (N,) bool array `affected` is True."""
    return tuple(image_name(int(index)) for index in measured.indices[affected][:MAX_EXAMPLES])
