"""The bodies of the service's responses; their descriptions appear in the OpenAPI schema."""

from __future__ import annotations

import base64

from pydantic import BaseModel, Field

from margrave.gallery import Candidate, Person
from margrave.matching import Face, Identification, Verification
from margrave.matching.matcher import encode_png


class Problem(BaseModel):
    """An error."""

    error: str
    """What is wrong and what to do, for humans."""
    reason: str
    """A code for the kind of error, for programs."""


class FaceAnswer(BaseModel):
    """A face in an image."""

    box: list[float] | None = Field(
        description="left, top, right, bottom in pixels of the image; null for an aligned crop"
    )
    quality: float | None = Field(
        description="percentage of the reference faces that have lower quality; null if the model "
        "cannot measure it"
    )
    crop: str | None = Field(description="the aligned crop as a data URL; null if not requested")


class VerificationAnswer(BaseModel):
    """Whether two images show the same person."""

    same: bool
    similarity: float = Field(description="cosine similarity, -1 to 1")
    threshold: float = Field(
        description="the person is the same if the similarity is above this value"
    )
    far: float = Field(description="false accept rate at the threshold")
    threshold_interval: tuple[float, float] | None = Field(
        description="95 % confidence interval of the threshold; null if unknown"
    )
    measured_on: str = Field(description="the images on which the threshold was measured")
    log_likelihood_ratio: float | None = Field(
        description="natural logarithm; positive values support the same person; null if the model "
        "has no calibration"
    )
    probability: float | None = Field(
        description="probability of the same person, given equal prior probabilities; null if the "
        "model has no calibration"
    )
    faces: list[FaceAnswer]


class CandidateAnswer(BaseModel):
    """An enrolled person similar to a face."""

    name: str
    similarity: float


class IdentificationAnswer(BaseModel):
    """The enrolled person that a face belongs to, if any."""

    person: str | None = Field(description="null if no enrolled person is above the threshold")
    candidates: list[CandidateAnswer] = Field(
        description="the most similar enrolled people, most similar first, including those below "
        "the threshold"
    )
    threshold: float = Field(description="similarity above which a person is accepted")
    far: float = Field(description="false accept rate of one comparison at the threshold")
    people: int = Field(description="number of enrolled people that the face was compared with")
    fpir: float = Field(
        description="false positive identification rate: share of non-enrolled people who are "
        "identified as someone, if comparisons are independent"
    )
    face: FaceAnswer


class PersonAnswer(BaseModel):
    """An enrolled person."""

    name: str
    images: int = Field(description="number of enrolled images")
    enrolled: str = Field(description="time of the last enrollment, UTC in ISO 8601")


class PeopleAnswer(BaseModel):
    """A page of the enrolled people, sorted by name, and the total number of enrolled people."""

    people: list[PersonAnswer]
    total: int


class EnrollmentAnswer(BaseModel):
    """The result of an enrollment."""

    person: PersonAnswer
    most_similar: CandidateAnswer | None = Field(
        description="the most similar other person; null if nobody else is enrolled"
    )
    faces: list[FaceAnswer]


class ForgottenAnswer(BaseModel):
    """The result of removing a person."""

    name: str
    erased: bool = Field(
        description="true if the service verified that all of the person's data was erased; false "
        "if some bytes may still be on disk"
    )
    explanation: str = Field(description="what was removed and what is left")


class OperatingPointAnswer(BaseModel):
    """A threshold of the model and its error rates."""

    far: float
    threshold: float
    true_accept_rate: float | None = Field(
        description="true accept rate at the threshold; null if not measured"
    )
    measured_on: str = Field(description="the images on which the threshold was measured")


class ModelAnswer(BaseModel):
    """The model that the service uses."""

    source: str
    operating_points: list[OperatingPointAnswer]
    genuine: list[float] = Field(
        description="histogram of genuine cosine similarities: the share of pairs in each of the "
        "equal-width bins from -1 to 1; empty if the model has none"
    )
    impostors: list[float] = Field(description="the same histogram for impostor pairs")
    cllr: float | None = Field(
        description="log-likelihood-ratio cost of the calibration; null if the model has none"
    )
    keeps_images: bool | None = Field(
        description="whether the gallery stores face crops; null without a gallery"
    )


class ServiceStatus(BaseModel):
    """Whether the service is alive or ready."""

    status: str


def face_answer(face: Face, include_crop: bool = False) -> FaceAnswer:
    """Convert a face, with its aligned crop if requested."""
    content = base64.b64encode(encode_png(face.crop)).decode() if include_crop else None
    return FaceAnswer(
        box=None if face.detection is None else face.detection.box.round(1).tolist(),
        quality=None if face.quality is None else round(face.quality, 1),
        crop=None if content is None else f"data:image/png;base64,{content}",
    )


def verification_answer(result: Verification, include_crops: bool) -> VerificationAnswer:
    """Convert a verification, with the faces' aligned crops if requested."""
    point = result.point
    return VerificationAnswer(
        same=result.same,
        similarity=result.similarity,
        threshold=point.threshold,
        far=point.far,
        threshold_interval=point.threshold_interval,
        measured_on=point.measured_on,
        log_likelihood_ratio=result.log_likelihood_ratio,
        probability=result.probability,
        faces=[face_answer(face, include_crops) for face in (result.first, result.second)],
    )


def candidate_answer(candidate: Candidate) -> CandidateAnswer:
    """Convert a candidate."""
    return CandidateAnswer(name=candidate.name, similarity=candidate.similarity)


def person_answer(person: Person) -> PersonAnswer:
    """Convert a person."""
    return PersonAnswer(name=person.name, images=person.images, enrolled=person.enrolled)


def identification_answer(result: Identification, include_crop: bool) -> IdentificationAnswer:
    """Convert an identification, with the face's aligned crop if requested."""
    return IdentificationAnswer(
        person=result.person,
        candidates=[candidate_answer(candidate) for candidate in result.candidates],
        threshold=result.threshold,
        far=result.far,
        people=result.people,
        fpir=result.fpir,
        face=face_answer(result.face, include_crop),
    )
