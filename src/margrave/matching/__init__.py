"""Matches faces in photos: verify, enroll, identify, forget."""

from margrave.matching.contract import Enrollment, Face, Identification, Refused, Verification
from margrave.matching.cropping import Cropper, cropper_for
from margrave.matching.matcher import Matcher
from margrave.matching.re_embedding import re_embed

__all__ = [
    "Cropper",
    "Enrollment",
    "Face",
    "Identification",
    "Matcher",
    "Refused",
    "Verification",
    "cropper_for",
    "re_embed",
]
