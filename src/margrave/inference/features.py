"""Features: the embeddings of images with names and labels, in memory or mapped from a store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data import ImageSource, ReadableImages, open_source
from margrave.evaluation.results import Origin
from margrave.files import listed, read_rows
from margrave.inference.embedder import Embedder
from margrave.models import ModelCard, weights_digest
from margrave.progress import Progress
from margrave.quantity import quantity

ROWS_PER_READ = 2048
"""Maximum number of selected rows that are read together."""
NAMES_SHOWN = 5
"""Maximum number of missing images that an error message names."""


class FusedRows:
    """(N, D) sums of the raw embeddings of each image and its flipped copy, computed when read.

    Args:
        embeddings: (N, D) raw embeddings.
        flipped: (N, D) raw embeddings of the flipped images; None leaves them out of the sums.
    """

    def __init__(self, embeddings: np.ndarray, flipped: np.ndarray | None) -> None:
        self._arrays = [array for array in (embeddings, flipped) if array is not None]
        self.shape: tuple[int, ...] = embeddings.shape

    def __getitem__(self, row_slice: slice, /) -> np.ndarray:
        """A slice of the sums."""
        rows = range(self.shape[0])[row_slice]
        start, stop = (min(rows), max(rows) + 1) if rows else (0, 0)
        fused = read_rows(self._arrays[0], start, stop)
        for array in self._arrays[1:]:
            fused = fused + read_rows(array, start, stop)
        # torch.from_numpy does not accept arrays with negative strides.
        return np.ascontiguousarray(fused[:: rows.step])


class ChosenRows:
    """Selected rows of a larger array, in any order; rows are read only when they are needed.

    Args:
        rows: (N, D) rows to select from.
        chosen: (M,) indices of the selected rows.
    """

    def __init__(self, rows: FusedRows | np.ndarray, chosen: np.ndarray) -> None:
        self._rows, self._indices = rows, np.asarray(chosen)
        self.shape: tuple[int, ...] = (len(self._indices), rows.shape[1])

    def __getitem__(self, selection_slice: slice, /) -> np.ndarray:
        """A slice of the selected rows."""
        indices = self._indices[selection_slice]
        if len(indices) and (np.diff(indices) == 1).all():
            return self._rows[int(indices[0]) : int(indices[-1]) + 1]
        result = np.empty((len(indices), self.shape[1]), np.float32)
        # Read chunks of rows in ascending order. If a chunk's rows lie close together, that is, if
        # a full chunk needs at least every eighth row of its range, read the whole range at once;
        # otherwise read each row.
        order = np.argsort(indices, kind="stable")
        for start in range(0, len(order), ROWS_PER_READ):
            positions = order[start : start + ROWS_PER_READ]
            low, high = int(indices[positions[0]]), int(indices[positions[-1]])
            if high - low < 8 * ROWS_PER_READ:
                result[positions] = self._rows[low : high + 1][indices[positions] - low]
            else:
                for position in positions.tolist():
                    index = int(indices[position])
                    result[position] = self._rows[index : index + 1][0]
        return result


class Features:
    """Embeddings of N images by one model, with the images' names and labels.

    Args:
        embeddings: (N, D) float32 raw embeddings.
        names: (N,) bytes, each image's path.
        description: the model, preprocessing and images of the features, with the keys ``model``,
            ``weights`` (a digest), ``card``, ``fit``, ``flips``, ``count``, ``images`` and
            ``identities``.
        card: the model's card.
        flipped: (N, D) float32 raw embeddings of the flipped images, or None.
        labels: (N,) int64 identity indices; −1 if unknown.
        unreadable: row -> reason, for images that could not be read; their rows are zero.
        quality: (N,) ground-truth image quality, or None if unknown.
        display_name: the name of these features in messages.
        checksums: checksums of the embeddings: one per block of a store, or a single checksum for
            features in memory.
        digest: a digest of `description` and `checksums`, which identifies the features.

    Attributes:
        identities: the identities' names, indexed by label.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        names: np.ndarray,
        description: dict[str, Any],
        card: ModelCard,
        *,
        flipped: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        unreadable: Mapping[int, str] | None = None,
        quality: np.ndarray | None = None,
        display_name: str = "the features",
        checksums: Sequence[str] = (),
        digest: str = "",
    ) -> None:
        self.embeddings, self.flipped, self._names = embeddings, flipped, names
        self.labels: np.ndarray = np.full(len(names), -1) if labels is None else labels
        self.description, self.card, self.display_name = description, card, display_name
        self.identities: tuple[str, ...] = tuple(description.get("identities", ()))
        self.unreadable: dict[int, str] = dict(unreadable or {})
        self.quality = quality
        self.checksums = list(checksums)
        self.digest = digest

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def preparation(self) -> dict[str, Any]:
        """The weights' digest and the preprocessing, which are the same for comparable features."""
        card = {
            name: getattr(self.card, name) for name in ("image_size", "mean", "std", "color_order")
        }
        return {name: self.description.get(name) for name in ("weights", "fit", "flips")} | card

    @property
    def origin(self) -> Origin:
        """The model and the images of the features, as evaluation results record them."""
        preparation = self.preparation
        images = self.description["images"]
        return Origin(
            model=self.description.get("model", ""),
            weights=str(preparation.pop("weights", "") or ""),
            preparation=preparation,
            features=self.digest,
            images=images["source"],
            images_digest=images["digest"],
        )

    def check_comparable(self, other: Features) -> None:
        """Check that other features are usable as distractors: same preparation, other images.

        Raises:
            ValueError: weights or preprocessing differ, or the images are the same.
        """
        first, second = self.preparation, other.preparation
        differing = [
            name if name == "weights" else f"{name} ({first[name]} and {second[name]})"
            for name in first
            if first[name] != second[name]
        ]
        if differing:
            raise ValueError(
                f"{self.display_name} and {other.display_name} were made with different "
                f"{', '.join(differing)}, so they are not comparable; embed both with the same "
                "model and preprocessing"
            )
        if self.checksums and self.checksums == other.checksums:
            raise ValueError(
                f"{self.display_name} and {other.display_name} are features of the same images; "
                "use images of other identities as distractors"
            )

    def has_images(self, images: ImageSource) -> bool:
        """Whether these are the features' images: compares the paths and labels, in order."""
        names, labels = names_and_labels(images)
        return digest_of(names, labels) == self.description["images"]["digest"]

    @property
    def rows(self) -> FusedRows:
        """(N, D) raw embeddings, fused with those of the flipped images if there are any."""
        return FusedRows(self.embeddings, self.flipped)

    @property
    def readable_rows(self) -> np.ndarray:
        """The row indices of the images that could be read, ascending."""
        readable = np.ones(len(self), bool)
        readable[list(self.unreadable)] = False
        return np.flatnonzero(readable)

    def name(self, row: int) -> str:
        """The path of a row's image."""
        return os.fsdecode(bytes(self._names[row]))

    @property
    def names(self) -> list[str]:
        """Each image's path."""
        return [os.fsdecode(name) for name in self._names.tolist()]

    def rows_of(self, names: Sequence[str], source: str | Path = "the list") -> np.ndarray:
        """(M,) row index of each named image.

        Args:
            names: the images' paths.
            source: the file that lists the names, for messages.

        Raises:
            ValueError: an image was not embedded, or could not be read.
        """
        row_of = {name: row for row, name in enumerate(self._names.tolist())}
        encoded_names = [os.fsencode(name) for name in names]
        missing = [
            name
            for name, encoded in zip(names, encoded_names, strict=True)
            if encoded not in row_of
        ]
        if missing:
            raise ValueError(
                f"{source} lists {quantity(len(missing), 'image')} that "
                f"{self.display_name} does not contain: "
                f"{listed(missing, NAMES_SHOWN)}; give names of the form {self.name(0)!r}"
            )
        return self.check_readable(
            np.array([row_of[encoded] for encoded in encoded_names], np.int64)
        )

    def check_readable(self, rows: np.ndarray) -> np.ndarray:
        """Return the row indices unchanged, after checking that their images could be read.

        Raises:
            ValueError: the image of a row could not be read when the images were embedded.
        """
        if self.unreadable:
            unreadable_rows = rows[np.isin(rows, list(self.unreadable))]
            if len(unreadable_rows):
                first_reason = self.unreadable[int(unreadable_rows[0])]
                raise ValueError(
                    f"{len(unreadable_rows)} of the required images could not be read when they "
                    f"were embedded; fix them and embed again. The first error: {first_reason}"
                )
        return rows


def describe(
    embedder: Embedder, images: ReadableImages, model: str, source: str, flips: bool
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the description of the features (see `Features`), and the images' names and labels.

    Args:
        embedder: the model.
        images: the N images to describe.
        model: the model's name in the description.
        source: the images' name in the description.
        flips: whether flipped images are embedded too.

    Returns:
        The description, (N,) names as bytes, and (N,) int64 labels, −1 where unknown.
    """
    count = len(images)
    if not count:
        raise ValueError("there are no images to embed; check the folder or the list")
    names, labels = names_and_labels(images)
    alignment = {"alignment": images.alignment} if images.alignment else {}
    description = {
        "model": model,
        "weights": fingerprint(embedder),
        "card": card_of_features(embedder.card),
        "fit": embedder.fit,
        "flips": flips,
        "count": count,
        "images": {
            "source": source,
            "digest": digest_of(names, labels),
            "content_digest": images.content_digest,
            **alignment,
        },
        "identities": list(images.class_names),
    }
    return description, names, labels


def names_and_labels(images: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    """(N,) paths of the images as bytes, and (N,) int64 labels, −1 where unknown."""
    images = open_source(images)
    count = len(images)
    names = np.array([os.fsencode(images.path(index)) for index in range(count)], dtype=np.bytes_)
    labels = np.full(count, -1) if images.labels is None else images.labels
    return names, np.asarray(labels, np.int64)


def embed_features(
    embedder: Embedder,
    images: ImageSource,
    *,
    model: str = "",
    source: str = "",
    flips: bool = True,
    maximum_unreadable: int = 0,
    progress: Progress | None = None,
) -> Features:
    """Embed images and return their features, which stay in memory.

    Args:
        embedder: the model.
        images: the images to embed: anything that ``margrave.data.open_source`` accepts.
        model: the model's name in the description.
        source: the images' name in the description.
        flips: embed flipped images too.
        maximum_unreadable: maximum number of unreadable images; their rows are zero.
        progress: called with (images done, total images).

    Raises:
        ValueError: there are no images, or too many cannot be read.
    """
    images = open_source(images)
    description, names, labels = describe(embedder, images, model, source, flips)
    unreadable: dict[int, str] = {}
    plain, flipped = embedder.embed_images(
        images, flips=flips, progress=progress, unreadable=unreadable
    )
    check_unreadable(list(unreadable.values()), len(unreadable), maximum_unreadable)
    check_finite(plain, flipped, images)
    checksums = [digest_of(plain, flipped)]
    return Features(
        plain,
        names,
        description,
        embedder.card,
        flipped=flipped if flips else None,
        labels=labels,
        unreadable=unreadable,
        quality=images.quality,
        display_name=source or "the images",
        checksums=checksums,
        digest=digest_of_description(description, checksums),
    )


def check_unreadable(reasons: Sequence[str], count: int, maximum: int, note: str = "") -> None:
    """Raise an error that lists the first reasons if more than `maximum` images are unreadable.

    Args:
        reasons: why images are unreadable, to be listed.
        count: number of unreadable images; exceeds the number of reasons if some images were found
            unreadable in earlier blocks.
        maximum: maximum number of unreadable images.
        note: text to add to the message.
    """
    if count > maximum:
        shown = "\n  ".join(reasons[:10])
        raise ValueError(
            f"{count} images cannot be read, more than maximum_unreadable = {maximum}; fix the "
            f"images, or raise the limit with --maximum-unreadable{note}. First errors:\n  {shown}"
        )


def check_finite(
    embeddings: np.ndarray, flipped: np.ndarray, images: ReadableImages, start: int = 0
) -> None:
    """Raise an error that names the first image with an infinite or NaN embedding.

    Args:
        embeddings: (n, D) embeddings of consecutive images.
        flipped: (n, D) embeddings of the flipped images, or an empty array.
        images: the images, for their names.
        start: index in `images` of the first row's image.
    """
    for array, suffix in ((embeddings, ""), (flipped, " (flipped)")):
        invalid_rows = np.flatnonzero(~np.isfinite(array).all(1))
        if len(invalid_rows):
            raise ValueError(
                f"the embedding of {images.name(start + int(invalid_rows[0]))}{suffix} is infinite "
                "or NaN; check the model with margrave doctor"
            )


def digest_of_description(description: Mapping[str, Any], checksums: Sequence[Any]) -> str:
    """SHA-256 of the features' checksums and description, without the model's name.

    For a store, `checksums` are the lines of ``blocks.jsonl``, which contain the checksums.
    """
    return hashlib.sha256(
        json.dumps([{**description, "model": ""}, checksums]).encode()
    ).hexdigest()


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fingerprint(embedder: Embedder) -> str:
    """A digest of the model's weights: of the file for ONNX models, otherwise of the tensors."""
    content = getattr(embedder.backbone, "content_digest", None)
    return weights_digest(embedder.backbone.state_dict()) if content is None else str(content)


def card_of_features(card: ModelCard) -> dict[str, Any]:
    """A model's card without operating points and reference scores, as features record it."""
    return json.loads(replace(card, operating_points=(), reference=None).to_json())
