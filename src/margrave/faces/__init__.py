"""Face detection and alignment: from photos to aligned crops."""

from margrave.faces.aligned_images import AlignedImages
from margrave.faces.aligned_photos import AlignedPhoto, AlignmentSettings, align_photos
from margrave.faces.alignment import TEMPLATE, align_face, fit_similarity_transform
from margrave.faces.contract import Detection, Detector, FaceFinder, FoundFace
from margrave.faces.finding import TemplateFinder, build_detector
from margrave.faces.landmark_file import Landmarks, read_landmarks
from margrave.faces.landmarked_images import open_landmarked
from margrave.faces.mtcnn import MTCNN
from margrave.faces.placement import displacements, face_of_crop, placements
from margrave.faces.yunet import YuNet

__all__ = [
    "MTCNN",
    "TEMPLATE",
    "AlignedImages",
    "AlignedPhoto",
    "AlignmentSettings",
    "Detection",
    "Detector",
    "FaceFinder",
    "FoundFace",
    "Landmarks",
    "TemplateFinder",
    "YuNet",
    "align_face",
    "align_photos",
    "build_detector",
    "displacements",
    "face_of_crop",
    "fit_similarity_transform",
    "open_landmarked",
    "placements",
    "read_landmarks",
]
