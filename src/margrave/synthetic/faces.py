"""Procedural face images with known identity, nuisance factors and quality, free to distribute."""

from __future__ import annotations

import csv
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from margrave.images import FaceImages
from margrave.synthetic.degradation import (
    NUM_DEGRADATION_FACTORS,
    degrade,
    in_physical_units,
    quality_of,
    severities,
)
from margrave.synthetic.factors import (
    NUM_CAPTURE_FACTORS,
    NUM_IDENTITY_FACTORS,
    Expression,
    FaceCapture,
    FaceIdentity,
    Light,
    Pose,
    from_uniforms,
)
from margrave.synthetic.relief import relief
from margrave.synthetic.renderer import Appearance, render_face

# Each kind of random numbers has its own stream. A generator's seed ends with its stream's number,
# so that no two streams share random numbers. No stream has number 0, because NumPy ignores zeros
# at the end of a seed.
IDENTITY_STREAM, IMAGE_STREAM, PIXEL_STREAM, LABEL_STREAM, SIZE_STREAM = 1, 2, 3, 4, 5
NUISANCE_STREAM, FAMILY_STREAM, LIKENESS_STREAM = 6, 7, 8
NUM_IMAGE_FACTORS = NUM_CAPTURE_FACTORS + NUM_DEGRADATION_FACTORS
UNRECOGNIZABLE = (1.0, 1.0, 1.0, 0.0, 0.8)
"""Severities of blur, resolution, noise, occlusion and compression that hide the identity."""


class Family(NamedTuple):
    """How identities form families of look-alikes.

    Attributes:
        size: number of identities in each family.
        likeness: probability that an identity shares a given factor with its family.
    """

    size: int = 1
    likeness: float = 0.0


NO_FAMILY = Family()


class FaceTruth(NamedTuple):
    """The ground truth of one image.

    Attributes:
        identity: index of the identity: ``first_identity`` plus the true label.
        pose: head pose in degrees.
        light: direction, hardness, exposure and temperature of the light; see `Light` for units.
        expression: strength of each expression.
        glasses: ``none``, ``clear`` or ``dark``.
        blur: standard deviation of the blur in pixels; 0 means no blur.
        resolution: side in pixels to which the image is reduced before it is enlarged again; the
            image size means no reduction.
        noise: standard deviation of the noise in gray levels; 0 means no noise.
        occlusion: fraction of the face's bounding box that is covered; 0 means no occlusion.
        compression: JPEG quality; 100 means no compression.
        quality: image quality in [0, 1]; 1 without the five degradations above.
    """

    identity: int
    pose: Pose
    light: Light
    expression: Expression
    glasses: str
    blur: float
    resolution: int
    noise: float
    occlusion: float
    compression: int
    quality: float

    def flat(self) -> dict[str, object]:
        """Flatten to a table row with the keys ``pose_yaw``, …, ``quality``."""
        row: dict[str, object] = {}
        for key, value in self._asdict().items():
            if isinstance(value, (Pose, Light, Expression)):
                row |= {f"{key}_{name}": number for name, number in value._asdict().items()}
            else:
                row[key] = value
        return row


def long_tailed_sizes(total: int, count: int, exponent: float) -> np.ndarray:
    """(count,) int64 class sizes max(2, c · rank^−exponent), descending, that sum to `total`.

    Args:
        total: sum of the sizes, at least 2 · count.
        count: number of classes.
        exponent: exponent of the power law.

    >>> long_tailed_sizes(40, 5, 1.0)
    array([18,  9,  6,  4,  3])
    """
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    # Bisection finds the largest c for which the sizes do not sum to more than `total`. The largest
    # class has c images, so c is at most `total`.
    low, high = 0.0, float(total + 1)
    for _ in range(100):
        middle = (low + high) / 2
        too_many = np.maximum(2, np.floor(middle * weights)).sum() > total
        low, high = (low, middle) if too_many else (middle, high)
    sizes = np.maximum(2, np.floor(low * weights)).astype(np.int64)
    # The largest classes get the images that rounding down has left over.
    sizes[: total - int(sizes.sum())] += 1
    return sizes


class SyntheticFaces(FaceImages):
    """Images of fictitious identities, rendered deterministically when read.

    Identity k looks the same in every data set with the same ``seed``, ``family_size`` and
    ``likeness``. Its n-th image is the same too if ``nuisance``, ``uneven_nuisance``, ``degraded``,
    ``degradation``, ``unrecognizable`` and ``image_size`` are also the same. Images are identical
    byte for byte with the same versions of NumPy and OpenCV. Use disjoint ranges of identities for
    training and test sets.

    Args:
        num_identities: number of identities, at least 1.
        images_per_identity: average number of images of an identity, at least 1 (2 if long-tailed).
        class_sizes: ``balanced``, or ``long_tailed``: sizes max(2, c · rank^−tail_exponent) in
            random order, with c chosen to keep the average ``images_per_identity``.
        tail_exponent: exponent of the long tail, at least 0; a larger one concentrates the images
            on fewer identities.
        image_size: height and width in pixels, 32 to 512.
        seed: random seed, 0 to 2³² − 1.
        first_identity: index of the first of the ``num_identities`` identities.
        nuisance: variation of pose, light, expression, glasses and background, 0 to 1.
        degraded: fraction of the images with blur, low resolution, noise, occlusion or
            compression.
        degradation: strength of these degradations, 0 to 1.
        label_noise: fraction of images with a wrong label (rounded to a number of images).
        unrecognizable: fraction of images that are degraded beyond recognition.
        uneven_nuisance: how much identities differ in their nuisance, 0 to 1: identity k's
            nuisance is nuisance · (1 − uneven_nuisance · u_k), where u_k is uniform in [0, 1].
        family_size: number of identities in a family of look-alikes; 1 means no families.
        likeness: probability that an identity shares a given factor with its family, 0 to 1.

    Attributes:
        labels: (N,) int64, with label noise; label 0 is ``first_identity``.
        true_labels: (N,) int64, without label noise.
        class_names: name of each identity, indexed by label.

    Raises:
        ValueError: a setting is out of range; the message gives the range.

    >>> faces = SyntheticFaces(num_identities=3, images_per_identity=4)
    >>> len(faces), faces.read(5).shape, faces.truth(5).identity
    (12, (112, 112, 3), 1)
    """

    def __init__(
        self,
        *,
        num_identities: int = 1000,
        images_per_identity: int = 20,
        class_sizes: Literal["balanced", "long_tailed"] = "balanced",
        tail_exponent: float = 1.0,
        image_size: int = 112,
        seed: int = 0,
        first_identity: int = 0,
        nuisance: float = 0.8,
        degraded: float = 0.4,
        degradation: float = 0.8,
        label_noise: float = 0.0,
        unrecognizable: float = 0.0,
        uneven_nuisance: float = 0.0,
        family_size: int = 1,
        likeness: float = 0.8,
    ) -> None:
        long_tailed = class_sizes == "long_tailed"
        if class_sizes not in ("balanced", "long_tailed"):
            raise ValueError(f"class_sizes = {class_sizes!r} must be 'balanced' or 'long_tailed'")
        _check_range("num_identities", num_identities, 1, 2**32)
        _check_range("images_per_identity", images_per_identity, 2 if long_tailed else 1, 2**32)
        _check_range("tail_exponent", tail_exponent, 0, 10)
        _check_range("image_size", image_size, 32, 512)
        _check_range("seed", seed, 0, 2**32 - 1)
        _check_range("first_identity", first_identity, 0, 2**32 - num_identities)
        for setting, value in {
            "nuisance": nuisance, "degraded": degraded,
            "degradation": degradation, "label_noise": label_noise,
            "unrecognizable": unrecognizable, "uneven_nuisance": uneven_nuisance,
            "likeness": likeness,
        }.items():  # fmt: skip
            _check_range(setting, value, 0, 1)
        if label_noise and num_identities == 1:
            raise ValueError(
                f"label_noise = {label_noise} needs a second identity; "
                "set num_identities to 2 or more, or label_noise to 0"
            )
        self.image_size, self.seed, self.first_identity = image_size, seed, first_identity
        _check_range("family_size", family_size, 1, 2**32)
        self.nuisance, self.degraded, self.degradation = nuisance, degraded, degradation
        self.unrecognizable, self.uneven_nuisance = unrecognizable, uneven_nuisance
        self._family = Family(family_size, likeness)
        sizes = np.full(num_identities, images_per_identity, np.int64)
        if long_tailed:
            sizes = long_tailed_sizes(int(sizes.sum()), num_identities, tail_exponent)
            sizes = np.random.default_rng([seed, first_identity, SIZE_STREAM]).permutation(sizes)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self.true_labels = np.repeat(np.arange(num_identities, dtype=np.int64), sizes)
        self.labels = self._add_label_noise(label_noise, num_identities)
        self.class_names = [f"person_{first_identity + k:06d}" for k in range(num_identities)]

    def _add_label_noise(self, label_noise: float, num_identities: int) -> np.ndarray:
        labels = self.true_labels.copy()
        rng = np.random.default_rng([self.seed, self.first_identity, LABEL_STREAM])
        indices = rng.permutation(len(labels))[: round(label_noise * len(labels))]
        if len(indices):
            shift = rng.integers(1, num_identities, len(indices))
            labels[indices] = (labels[indices] + shift) % num_identities
        return labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's identity and its index among that identity's images, for messages.

        An example is ``person_000001/0003``.
        """
        identity, image_index = self._locate(index)
        return f"person_{identity:06d}/{image_index:04d}"

    def read(self, index: int) -> np.ndarray:
        """The image as (image_size, image_size, 3) uint8, RGB.

        Raises:
            IndexError: the index is out of range.
        """
        identity, image_index = self._locate(index)
        capture, severity, choices = self._image_factors(identity, image_index)
        rng = np.random.default_rng([self.seed, identity, image_index, PIXEL_STREAM])
        appearance = appearance_of(self.seed, identity, self._family)
        nuisance = self._nuisance_of(identity)
        image = render_face(appearance, capture, self.image_size, nuisance, rng)
        return degrade(image, in_physical_units(severity, self.image_size), choices, rng)

    def truth(self, index: int) -> FaceTruth:
        """The ground truth of an image, computed without rendering the image.

        Raises:
            IndexError: the index is out of range.
        """
        identity, image_index = self._locate(index)
        capture, severity, _ = self._image_factors(identity, image_index)
        amounts = in_physical_units(severity, self.image_size)
        return FaceTruth(
            identity=identity,
            pose=Pose(capture.yaw, capture.pitch, capture.roll),
            light=Light(
                capture.light_azimuth, capture.light_elevation, capture.light_hardness,
                capture.exposure, capture.temperature,
            ),
            expression=Expression(
                capture.smile, capture.mouth_open, capture.brow_raise, capture.eye_closure
            ),
            glasses=capture.glasses_kind(
                appearance_of(self.seed, identity, self._family).factors,
                self._nuisance_of(identity),
            ),
            **amounts._asdict(),
            quality=float(quality_of(severity)),
        )  # fmt: skip

    @cached_property
    def quality(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(N,) float64, quality of each image in [0, 1], as in ``truth``."""
        quality = np.empty(len(self))
        for label, start in enumerate(self._starts[:-1]):
            stop = self._starts[label + 1]
            uniforms = self._uniforms(self.first_identity + label, 0, stop - start)
            degradation_uniforms = uniforms[:, NUM_CAPTURE_FACTORS:]
            quality[start:stop] = quality_of(self._severities(degradation_uniforms))
        return quality

    def _severities(self, uniforms: np.ndarray) -> np.ndarray:
        """(N, 5) severities of images, from their (N, NUM_DEGRADATION_FACTORS) uniforms."""
        severity = severities(uniforms, self.degraded, self.degradation)
        # In the first column, low values mark degraded images, high values unrecognizable ones.
        is_unrecognizable = uniforms[:, :1] >= 1 - self.unrecognizable
        return np.where(is_unrecognizable, UNRECOGNIZABLE, severity)

    def _nuisance_of(self, identity: int) -> float:
        """An identity's nuisance, reduced by `uneven_nuisance`."""
        if not self.uneven_nuisance:
            return self.nuisance
        reduction = np.random.default_rng([self.seed, identity, NUISANCE_STREAM]).random()
        return self.nuisance * (1 - self.uneven_nuisance * reduction)

    def write(
        self,
        folder: str | Path,
        *,
        file_format: Literal["png", "jpg"] = "png",
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write the images to one folder per label, and the ground truth to ``truth.csv``.

        The folder appears only after everything is written.

        Args:
            folder: the folder to create; it may exist if it is empty.
            file_format: ``png`` is lossless; ``jpg`` (quality 95) is smaller.
            progress: called with (images written, total images) after each image.

        Raises:
            ValueError: the folder is not empty, or the format is unknown.
        """
        folder = Path(folder)
        if file_format not in ("png", "jpg"):
            raise ValueError(f"file_format = {file_format!r} must be 'png' or 'jpg'")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} exists and is not an empty folder; give a new path, or empty it first"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            self._write_into(partial, file_format, progress)
            partial.chmod(0o755)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return folder

    def _write_into(
        self, folder: Path, file_format: str, progress: Callable[[int, int], None] | None
    ) -> None:
        for label in np.unique(self.labels):
            (folder / self.class_names[int(label)]).mkdir()
        settings = [cv2.IMWRITE_JPEG_QUALITY, 95] if file_format == "jpg" else []
        with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as file:
            columns = ["file", "label", "true_label", *self.truth(0).flat()]
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            for index, label in enumerate(self.labels):
                path = f"{self.class_names[int(label)]}/{index:07d}.{file_format}"
                pixels = cv2.cvtColor(self.read(index), cv2.COLOR_RGB2BGR)
                encoded = cv2.imencode(f".{file_format}", pixels, settings)[1]
                (folder / path).write_bytes(encoded.tobytes())
                row = {"file": path, "label": label, "true_label": self.true_labels[index]}
                table.writerow(row | self.truth(index).flat())
                if progress:
                    progress(index + 1, len(self))

    def _locate(self, index: int) -> tuple[int, int]:
        """The image's identity, and its index among the images of that identity."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} must be in 0..{len(self) - 1}")
        label = int(self.true_labels[index])
        return self.first_identity + label, int(index - self._starts[label])

    def _uniforms(self, identity: int, image_index: int, count: int) -> np.ndarray:
        """(count, NUM_IMAGE_FACTORS) uniform numbers in [0, 1); row 0 is for `image_index`."""
        bits = np.random.PCG64([self.seed, identity, IMAGE_STREAM])
        # The generator takes one step per number, so it can jump to any row.
        bits.advance(image_index * NUM_IMAGE_FACTORS)
        return np.random.Generator(bits).random((count, NUM_IMAGE_FACTORS))

    def _image_factors(
        self, identity: int, image_index: int
    ) -> tuple[FaceCapture, np.ndarray, np.ndarray]:
        """An image's factors, its (5,) severities, and the (4,) ``choices`` of `degrade`."""
        uniforms = self._uniforms(identity, image_index, 1)
        nuisance = self._nuisance_of(identity)
        capture = from_uniforms(FaceCapture, uniforms[0, :NUM_CAPTURE_FACTORS], nuisance)
        degradation_uniforms = uniforms[:, NUM_CAPTURE_FACTORS:]
        choices = degradation_uniforms[0, -4:]  # the last four; see NUM_DEGRADATION_FACTORS
        return capture, self._severities(degradation_uniforms)[0], choices


@lru_cache(maxsize=1024)
def appearance_of(seed: int, identity: int, family: Family = NO_FAMILY) -> Appearance:
    """An identity's appearance; cached, because an identity's images are often read in sequence."""
    generator = np.random.default_rng([seed, identity, IDENTITY_STREAM])
    uniforms = generator.random(NUM_IDENTITY_FACTORS)
    if family.size > 1:
        first_of_family = identity - identity % family.size
        family_rng = np.random.default_rng([seed, first_of_family, FAMILY_STREAM])
        family_uniforms = family_rng.random(NUM_IDENTITY_FACTORS)
        likeness_rng = np.random.default_rng([seed, identity, LIKENESS_STREAM])
        draws = likeness_rng.random(NUM_IDENTITY_FACTORS)
        uniforms = np.where(draws < family.likeness, family_uniforms, uniforms)
    factors = from_uniforms(FaceIdentity, uniforms)
    return Appearance(
        factors=factors,
        marks=generator.random((66, 3)),  # 6 for moles, 60 for freckles
        blotches=generator.standard_normal((9, 9)),
        strands=generator.random((60, 3)),
        height=relief(factors),
    )


def _check_range(setting: str, value: float, minimum: float, maximum: float) -> None:
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise ValueError(f"{setting} = {value!r} must be between {minimum} and {maximum}")
