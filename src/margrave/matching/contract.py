"""The results of verifying, identifying and enrolling faces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from margrave.faces import Detection
from margrave.gallery import Candidate, Person
from margrave.models import OperatingPoint


@dataclass(frozen=True, eq=False, kw_only=True)
class Face:
    """One face of an image and its embedding.

    Attributes:
        image: the image's name.
        crop: (S, S, 3) uint8 RGB, the model's input.
        detection: the face's position in the photo; None if the image was an aligned crop.
        embedding: (D,) float32, the raw embedding; with flip fusion, the sum of the embeddings of
            the crop and of the flipped crop, see ``Matcher.flips``.
        norm: norm of the crop's embedding, without the flipped crop's.
        quality: percentage of the reference faces (``ModelCard.reference``) whose embeddings have a
            smaller norm than this face's; None if the model has no reference norms, or if
            all embeddings of the model have the same norm.
    """

    image: str
    crop: np.ndarray = field(repr=False)
    detection: Detection | None
    embedding: np.ndarray = field(repr=False)
    norm: float
    quality: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Verification:
    """Whether two faces show the same person.

    Attributes:
        same: True if the similarity is above the threshold.
        similarity: the cosine, in [-1, 1].
        point: the operating point that decided: the threshold, its FAR, and confidence intervals.
        log_likelihood_ratio: natural logarithm of p(similarity | same person) /
            p(similarity | different people); None if the model has no calibration.
        probability: the probability of the same person, given equal prior probabilities; None if
            the model has no calibration.
        first, second: the two faces.
    """

    same: bool
    similarity: float
    point: OperatingPoint
    log_likelihood_ratio: float | None
    probability: float | None
    first: Face
    second: Face


@dataclass(frozen=True, eq=False, kw_only=True)
class Identification:
    """The result of searching a gallery for a face.

    Attributes:
        face: the face.
        person: the name of the most similar person, or None if nobody's similarity is above the
            threshold.
        candidates: the most similar people, most similar first, including those below the
            threshold.
        threshold: the cosine above which a person is accepted.
        far: false accept rate of one comparison at this threshold.
        people: N, the number of people in the gallery.
        fpir: expected false positive identification rate (FPIR): the share of strangers who are
            identified as someone. It is 1 − (1 − FAR)^N, which assumes that the N comparisons are
            independent; the true rate is lower if one stranger's false accepts tend to coincide.
    """

    face: Face
    person: str | None
    candidates: tuple[Candidate, ...]
    threshold: float
    far: float
    people: int
    fpir: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Enrollment:
    """The result of an enrollment.

    Attributes:
        person: the person as now enrolled.
        faces: the faces that this call enrolled.
        most_similar: the other enrolled person who is most similar to the faces, or None if nobody
            else is enrolled.
    """

    person: Person
    faces: tuple[Face, ...]
    most_similar: Candidate | None


class Refused(ValueError):
    """An image or an enrollment was refused; the message says why and what to do.

    Attributes:
        reason: a fixed code that programs can test: ``no_face``, ``several_faces``,
            ``several_people``, ``low_quality``, ``not_aligned``, ``unreadable`` or
            ``already_enrolled``.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
