"""What the service answers, as OpenAPI describes it."""

from __future__ import annotations

import base64

from pydantic import BaseModel, Field

from margrave.gallery import Candidate, Person
from margrave.matching import Face, Identification, Verification
from margrave.matching.matcher import png


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    """What is wrong and what to do, for people."""
    reason: str
    """The same in a word, for programs."""


class FaceAnswer(BaseModel):
    """A face of an image."""

    box: list[float] | None = Field(description="left, top, right, bottom in pixels of the image")
    quality: float | None = Field(description="percent of the reference's faces that are poorer")
    crop: str | None = Field(description="a data URL of the aligned crop, where it was asked for")


class VerificationAnswer(BaseModel):
    """Whether two images show the same person."""

    same: bool
    similarity: float = Field(description="cosine, -1 to 1")
    threshold: float
    far: float = Field(description="false accept rate that the threshold was chosen for")
    threshold_interval: tuple[float, float] | None = Field(description="95 %")
    measured_on: str
    log_likelihood_ratio: float | None = Field(description="natural logarithm")
    probability: float | None = Field(
        description="of the same person, given equal prior probabilities"
    )
    faces: list[FaceAnswer]


class CandidateAnswer(BaseModel):
    """Someone who is similar."""

    name: str
    similarity: float


class IdentificationAnswer(BaseModel):
    """Who a face is."""

    person: str | None = Field(description="null for a stranger")
    candidates: list[CandidateAnswer]
    threshold: float
    far: float
    people: int = Field(description="how many the face was compared with")
    fpir: float = Field(description="how often a stranger is taken for someone, at most")
    face: FaceAnswer


class PersonAnswer(BaseModel):
    """Someone who is enrolled."""

    name: str
    images: int
    enrolled: str


class PeopleAnswer(BaseModel):
    """Some of those who are enrolled, by name."""

    people: list[PersonAnswer]
    total: int


class EnrollmentAnswer(BaseModel):
    """What enrolling did."""

    person: PersonAnswer
    most_alike: CandidateAnswer | None = Field(description="the most similar other person")
    faces: list[FaceAnswer]


class ForgottenAnswer(BaseModel):
    """What forgetting achieved."""

    name: str
    erased: bool = Field(description="no byte is left, which was verified")
    explanation: str


class OperatingPointAnswer(BaseModel):
    """A threshold of the model."""

    far: float
    threshold: float
    true_accept_rate: float | None
    measured_on: str


class ModelAnswer(BaseModel):
    """The model that decides."""

    source: str
    operating_points: list[OperatingPointAnswer]
    genuine: list[float] = Field(description="shares of cosines in equal bins over -1 to 1")
    impostors: list[float]
    cllr: float | None
    keeps_images: bool | None = Field(description="null without a gallery")


class State(BaseModel):
    """How the service is."""

    status: str


def face_answer(face: Face, crop: bool = False) -> FaceAnswer:
    """A face as it is answered."""
    content = base64.b64encode(png(face.crop)).decode() if crop else None
    return FaceAnswer(
        box=None if face.detection is None else face.detection.box.round(1).tolist(),
        quality=None if face.quality is None else round(face.quality, 1),
        crop=None if content is None else f"data:image/png;base64,{content}",
    )


def verification_answer(answer: Verification, crops: bool) -> VerificationAnswer:
    """A verification as it is answered."""
    point = answer.point
    return VerificationAnswer(
        same=answer.same,
        similarity=answer.similarity,
        threshold=point.threshold,
        far=point.far,
        threshold_interval=point.threshold_interval,
        measured_on=point.measured_on,
        log_likelihood_ratio=answer.log_likelihood_ratio,
        probability=answer.probability,
        faces=[face_answer(face, crops) for face in (answer.first, answer.second)],
    )


def candidate_answer(candidate: Candidate) -> CandidateAnswer:
    """A candidate as it is answered."""
    return CandidateAnswer(name=candidate.name, similarity=candidate.similarity)


def person_answer(person: Person) -> PersonAnswer:
    """A person as it is answered."""
    return PersonAnswer(name=person.name, images=person.images, enrolled=person.enrolled)


def identification_answer(answer: Identification, crops: bool) -> IdentificationAnswer:
    """An identification as it is answered."""
    return IdentificationAnswer(
        person=answer.person,
        candidates=[candidate_answer(each) for each in answer.candidates],
        threshold=answer.threshold,
        far=answer.far,
        people=answer.people,
        fpir=answer.fpir,
        face=face_answer(answer.face, crops),
    )
