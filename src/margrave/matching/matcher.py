"""Verifies, enrolls and identifies the faces in photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from margrave.faces import AlignedFace, Detector, FaceFinder
from margrave.gallery import (
    Candidate,
    ForgetResult,
    Gallery,
    NoGallery,
    create_gallery,
    open_gallery,
)
from margrave.inference import Embedder
from margrave.matching.choosing import FaceChoice
from margrave.matching.contract import Enrollment, Face, Identification, Refused, Verification
from margrave.matching.cropping import Cropper, cropper_for
from margrave.matching.decisions import probability, threshold_for_fpir
from margrave.matching.gallery_card import new_gallery_card, uses_flips
from margrave.models import Model, OperatingPoint, open_model
from margrave.protocols import operating_point
from margrave.quantity import quantity

BASELINE = "baseline"
"""The default model (extra ``baseline``)."""
QUALITY_FLOOR = 0.5
"""Default minimum of ``Face.quality``, in percent."""


class Matcher:
    """Matches faces with a model, a detector and optionally a gallery; `load` opens them.

    Args:
        model: the open model, see ``margrave.models.open_model``.
        gallery: a gallery of this model's vectors, or None.
        finder: detects faces and cuts them out; None treats every image as an aligned crop.
        checker: if `finder` is None, the detector that checks whether images are aligned crops;
            None skips the check.
        far: FAR of the operating point for decisions; None takes the smallest FAR that the model
            has a threshold for.
        quality_floor: minimum ``Face.quality`` in percent; faces below it are refused.

    Raises:
        ValueError: the gallery belongs to another model, or the model has no threshold for `far`.
    """

    def __init__(
        self,
        model: Model,
        gallery: Gallery | None = None,
        *,
        finder: FaceFinder | None = None,
        checker: Detector | None = None,
        far: float | None = None,
        quality_floor: float = QUALITY_FLOOR,
    ) -> None:
        self.model, self.gallery, self.far = model, gallery, far
        self.finder, self.checker, self.quality_floor = finder, checker, quality_floor
        self.embedder = Embedder(model.backbone, model.card, model.card.fit)
        if gallery is not None:
            gallery.card.check_same_model(new_gallery_card(model), gallery.place)
        if far is not None:
            operating_point(self.embedder, far)  # raises if there is no threshold for `far`

    @classmethod
    def load(
        cls,
        model: str | Path = BASELINE,
        gallery: str | Path | Gallery | None = None,
        *,
        detector: str | Path | Detector | None = None,
        aligned: bool = False,
        check_alignment: bool = True,
        far: float | None = None,
        quality_floor: float = QUALITY_FLOOR,
        create: bool = False,
        keep_images: bool = False,
        key: str | None = None,
        device: str | None = None,
        trust_code: bool = False,
    ) -> Matcher:
        """Create a matcher: open a model, and optionally a gallery.

        Args:
            model: a model file, a run's folder, an ONNX file, or ``baseline``.
            gallery: an open gallery, or a path or address, see ``margrave.gallery.open_gallery``;
                None opens none.
            detector: ``mtcnn`` (the default), the path of a YuNet file, or a detector object.
            aligned: True treats images as aligned crops, in which no faces are detected.
            check_alignment: with `aligned`, refuse crops that do not show an upright face aligned
                to ArcFace's template.
            far: FAR of the operating point for decisions; None takes the smallest FAR that the
                model has a threshold for.
            quality_floor: minimum ``Face.quality`` in percent; faces below it are refused.
            create: create the gallery if it does not exist.
            keep_images: True makes a newly created gallery keep crops.
            key: the key of an encrypted gallery; None if it is not encrypted.
            device: the network's device; None uses a CUDA device if there is one.
            trust_code: import the custom network code that the model names.

        Raises:
            ValueError: the model, the detector or the gallery cannot be opened, or the model has no
                threshold for `far`.
        """
        opened_model = open_model(model, device=device, trust_code=trust_code)
        cropper = cropper_for(
            opened_model.card, detector, aligned=aligned, check_alignment=check_alignment
        )
        if isinstance(gallery, str | Path):
            card = new_gallery_card(opened_model, keep_images)
            try:
                gallery = open_gallery(str(gallery), card=card, key=key)
            except NoGallery:
                if not create:
                    raise
                gallery = create_gallery(str(gallery), card, key=key)
        return cls(
            opened_model,
            gallery,
            finder=cropper.finder,
            checker=cropper.checker,
            far=far,
            quality_floor=quality_floor,
        )

    @property
    def flips(self) -> bool:
        """Whether to use flip fusion: True if the thresholds were measured with it."""
        return uses_flips(self.model.card)

    def find(self, image: Any, *, which: FaceChoice = "auto", name: str = "") -> list[AlignedFace]:
        """Detect and cut out the intended faces of an image, without embedding them.

        Args:
            image: a path, an image file's bytes, or (height, width, 3) uint8 RGB.
            which: ``auto`` takes the largest face, but refuses the image if another face is of
                similar size; ``largest`` always takes the largest; ``all`` takes every face that is
                large enough.
            name: the image's name in messages; by default its path, or "the image".

        Raises:
            Refused: the image cannot be read, shows no face or several faces, or is not aligned.
        """
        return self.cropper.find(image, which=which, name=name)

    @property
    def cropper(self) -> Cropper:
        """The object that finds faces and cuts them out; it does not need the model's network."""
        card = self.model.card
        return Cropper(self.finder, self.checker, card.image_size, card.fit)

    def embed(self, aligned_faces: Sequence[AlignedFace], names: Sequence[str]) -> list[Face]:
        """Embed faces in batches; return one `Face` per aligned face.

        Args:
            aligned_faces: the faces, as returned by `find`.
            names: for each face, the name of its image.

        Raises:
            Refused: an embedding is zero, infinite or NaN.
        """
        if not aligned_faces:
            return []
        plain, flipped = self.embedder.embed_images(
            [face.crop for face in aligned_faces], flips=self.flips
        )
        fused = plain + flipped if self.flips else plain
        faces = []
        for face, name, embedding, plain_embedding in zip(
            aligned_faces, names, fused, plain, strict=True
        ):
            norm = float(np.linalg.norm(plain_embedding))
            if not np.isfinite(embedding).all() or not np.linalg.norm(embedding) > 0:
                raise Refused(
                    f"{name}: the model's embedding is zero, infinite or NaN; give another photo, "
                    "or check the model with margrave doctor",
                    "no_face",
                )
            faces.append(
                Face(
                    image=name,
                    crop=face.crop,
                    detection=None if self.finder is None else face.detection,
                    embedding=embedding,
                    norm=norm,
                    quality=self._quality(norm),
                )
            )
        return faces

    def faces(self, image: Any, *, which: FaceChoice = "auto", name: str = "") -> list[Face]:
        """Find and embed the intended faces of an image.

        Raises:
            Refused: see `find`; or a face is below the quality floor.
        """
        aligned_faces = self.find(image, which=which, name=name)
        name = name or (str(image) if isinstance(image, str | Path) else "the image")
        faces = self.embed(aligned_faces, [name] * len(aligned_faces))
        self.check_quality(faces)
        return faces

    def check_quality(self, faces: Sequence[Face]) -> None:
        """Refuse faces below the quality floor.

        Raises:
            Refused: a face is below the quality floor; the message names its image.
        """
        for face in faces:
            if face.quality is not None and face.quality < self.quality_floor:
                raise Refused(
                    f"{face.image}: the quality of the face is too low: it exceeds the quality of "
                    f"{face.quality:.1f} % of the reference faces, but at least "
                    f"{self.quality_floor:g} % is required; give a sharper, larger or more frontal "
                    "photo",
                    "low_quality",
                )

    def verify(
        self, first: Any, second: Any, *, far: float | None = None, which: FaceChoice = "auto"
    ) -> Verification:
        """Decide whether two images show the same person.

        Args:
            first: the first image, see `find`.
            second: the second image, see `find`.
            far: FAR of the operating point; None takes the matcher's.
            which: the faces to compare, see `find`; ``all`` compares all faces of both images and
                takes the most similar pair.

        Raises:
            Refused: an image was refused.
            ValueError: the model has no thresholds, or none for this FAR.
        """
        first_faces, second_faces = (self.faces(image, which=which) for image in (first, second))
        results = [
            self.decide(first_face, second_face, far=far)
            for first_face in first_faces
            for second_face in second_faces
        ]
        return max(results, key=lambda result: result.similarity)

    def decide(self, first: Face, second: Face, *, far: float | None = None) -> Verification:
        """Decide whether two faces show the same person. See `verify`."""
        point = self.operating_point(far)
        # Rounding may put the product of equal unit vectors slightly above 1.
        similarity = min(max(float(self.unit(first) @ self.unit(second)), -1.0), 1.0)
        log_likelihood_ratio = self._log_likelihood_ratio(similarity)
        return Verification(
            same=similarity > point.threshold,
            similarity=similarity,
            point=point,
            log_likelihood_ratio=log_likelihood_ratio,
            probability=None if log_likelihood_ratio is None else probability(log_likelihood_ratio),
            first=first,
            second=second,
        )

    def operating_point(self, far: float | None = None) -> OperatingPoint:
        """The operating point used for decisions.

        Args:
            far: FAR of the operating point; None takes the matcher's.

        Raises:
            ValueError: the model has no operating points, or none for this FAR.
        """
        return operating_point(self.embedder, self.far if far is None else far)

    def enroll(
        self,
        name: str,
        images: Sequence[Any],
        *,
        add: bool = False,
        replace: bool = False,
        allow_similar: bool = False,
        largest: bool = False,
    ) -> Enrollment:
        """Enroll a person with one or more images.

        Args:
            name: the person's name, any text of at most 512 bytes.
            images: the images, see `find`; each must show one face, or one face that is clearly
                the largest.
            add: add the images if the person is enrolled already.
            replace: replace the enrolled images if the person is enrolled already.
            allow_similar: skip the checks that all images show the same person and that the face is
                not enrolled under another name. A model without thresholds always skips them.
            largest: take each image's largest face, even if others are of similar size.

        Raises:
            Refused: an image was refused, the name is taken, the face is enrolled under another
                name, or the images show several people.
            ValueError: no gallery is open, or no images are given.
        """
        which: FaceChoice = "largest" if largest else "auto"
        faces = [face for image in images for face in self.faces(image, which=which)]
        return self.enroll_faces(name, faces, add=add, replace=replace, allow_similar=allow_similar)

    def enroll_faces(
        self,
        name: str,
        faces: Sequence[Face],
        *,
        add: bool = False,
        replace: bool = False,
        allow_similar: bool = False,
    ) -> Enrollment:
        """Enroll a person with faces. See `enroll`."""
        gallery = self._require_gallery()
        if not faces:
            raise ValueError(f"no images are given for {name!r}; give at least one")
        enrolled = gallery.get(name)
        if enrolled is not None and not (add or replace):
            raise Refused(
                f"{enrolled.name!r} is enrolled already, with "
                f"{quantity(enrolled.images, 'image')}; to add images, use --add, or add=True in "
                "Python or the API; to replace them, use --replace, or replace=True",
                "already_enrolled",
            )
        embeddings = np.array([face.embedding for face in faces])
        # Two results, because one of them may be this person.
        other_people = [
            candidate
            for candidate in gallery.search(embeddings.mean(0, keepdims=True), 2)[0]
            if enrolled is None or candidate.name != enrolled.name
        ]
        most_similar = other_people[0] if other_people else None
        if not allow_similar and self.model.card.operating_points:
            compares_enrolled = enrolled is not None and not replace
            enrolled_vector = gallery.vector(name) if compares_enrolled else None
            self._check_one_person(name, faces, enrolled_vector)
            self._check_not_enrolled(most_similar)
        crops = [encode_png(face.crop) for face in faces] if gallery.card.keep_images else []
        person = gallery.add(name, embeddings, crops=crops, replace=replace)
        return Enrollment(person=person, faces=tuple(faces), most_similar=most_similar)

    def identify(
        self, image: Any, *, top_k: int = 5, fpir: float | None = None, which: FaceChoice = "auto"
    ) -> list[Identification]:
        """Search the gallery for the faces of an image; return one result per face.

        Args:
            image: the image, see `find`.
            top_k: number of candidates per face; below 1 counts as 1.
            fpir: the allowed false positive identification rate: the share of strangers who may be
                identified as someone in the gallery. None uses the threshold of `operating_point`,
                for which this rate grows with the number of people in the gallery.
            which: which faces to identify, see `find`.

        Raises:
            Refused: the image was refused.
            ValueError: no gallery is open, or the model's reference does not support the FPIR.
        """
        return self.identify_faces(self.faces(image, which=which), top_k=top_k, fpir=fpir)

    def identify_faces(
        self, faces: Sequence[Face], *, top_k: int = 5, fpir: float | None = None
    ) -> list[Identification]:
        """Search the gallery for faces; return one result per face. See `identify`."""
        gallery = self._require_gallery()
        people = len(gallery)
        if fpir is None:
            point = self.operating_point()
            threshold, far = point.threshold, point.far
        else:
            threshold, far = threshold_for_fpir(self.model.card, fpir, people)
        if not faces:
            return []
        # The decision needs at least one candidate.
        results = gallery.search(np.array([face.embedding for face in faces]), max(top_k, 1))
        return [
            Identification(
                face=face,
                person=candidates[0].name
                if candidates and candidates[0].similarity > threshold
                else None,
                candidates=tuple(candidates),
                threshold=threshold,
                far=far,
                people=people,
                fpir=-math.expm1(people * math.log1p(-far)),  # 1 − (1 − FAR)^N
            )
            for face, candidates in zip(faces, results, strict=True)
        ]

    def forget(self, name: str) -> ForgetResult:
        """Remove a person; overwrite the person's stored bytes if the gallery's storage allows it.

        Raises:
            ValueError: no gallery is open, or nobody is enrolled under this name.
        """
        return self._require_gallery().forget(name)

    @staticmethod
    def unit(face: Face) -> np.ndarray:
        """(D,) float64: the face's embedding, scaled to unit length."""
        embedding = face.embedding.astype(np.float64)
        return embedding / np.linalg.norm(embedding)

    def _require_gallery(self) -> Gallery:
        if self.gallery is None:
            raise ValueError("no gallery is open; give one with --gallery, or gallery= in Python")
        return self.gallery

    def _log_likelihood_ratio(self, similarity: float) -> float | None:
        reference = self.model.card.reference
        if reference is None or reference.calibration is None:
            return None
        return reference.calibration.log_likelihood_ratio(similarity)

    def _quality(self, norm: float) -> float | None:
        """The percentile of a norm among the norms of the reference faces, see ``Face.quality``."""
        reference = self.model.card.reference
        if reference is None or not reference.norm_percentiles:
            return None
        # norm_percentiles[p] is the norm that p percent of the reference faces do not exceed.
        norms = np.asarray(reference.norm_percentiles)
        return float(np.interp(norm, norms, np.arange(101.0)))

    def _check_one_person(
        self, name: str, faces: Sequence[Face], enrolled_vector: np.ndarray | None
    ) -> None:
        """Refuse faces that do not match the person's enrolled vector.

        If there is no enrolled vector, refuse faces that do not match the first face.
        """
        threshold = self.operating_point().threshold
        units = [self.unit(face) for face in faces]
        if enrolled_vector is None:
            anchor, anchor_name = units[0], faces[0].image
        else:
            anchor = enrolled_vector / np.linalg.norm(enrolled_vector)
            anchor_name = f"the images enrolled as {name!r}"
        for face, unit in zip(faces, units, strict=True):
            if (similarity := float(unit @ anchor)) <= threshold:
                raise Refused(
                    f"{face.image} shows a different person than {anchor_name} (cosine "
                    f"{similarity:.3f}, threshold {threshold:.3f}); leave the image out. "
                    "If it does show the same person, use --allow-similar, or allow_similar=True "
                    "in Python or the API",
                    "several_people",
                )

    def _check_not_enrolled(self, most_similar: Candidate | None) -> None:
        """Refuse the enrollment if another enrolled person matches."""
        if most_similar is not None and most_similar.similarity > self.operating_point().threshold:
            raise Refused(
                f"this face is enrolled already, as {most_similar.name!r} (cosine "
                f"{most_similar.similarity:.3f}); add the images to that person. If it "
                "is a different person, use --allow-similar, or allow_similar=True in Python or "
                "the API",
                "already_enrolled",
            )


def encode_png(crop: np.ndarray) -> bytes:
    """Encode an (S, S, 3) RGB crop as a PNG file, without loss."""
    return cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes()
