"""Face detection and alignment: from photos to aligned crops."""

from margrave.faces.aligned_images import AlignedImages
from margrave.faces.aligned_photos import AlignedPhoto, AlignmentSettings, align_photos
from margrave.faces.alignment import TEMPLATE, align_face, fit_similarity_transform
from margrave.faces.contract import AlignedFace, Detection, Detector, FaceFinder
from margrave.faces.finding import TemplateFinder, build_detector
from margrave.faces.landmark_file import Landmarks, read_landmarks
from margrave.faces.landmarked_images import open_landmarked_images
from margrave.faces.mtcnn import MTCNN
from margrave.faces.placement import alignment_errors, detect_face_in_crop, template_transforms
from margrave.faces.yunet import YuNet

__all__ = [
    "MTCNN",
    "TEMPLATE",
    "AlignedFace",
    "AlignedImages",
    "AlignedPhoto",
    "AlignmentSettings",
    "Detection",
    "Detector",
    "FaceFinder",
    "Landmarks",
    "TemplateFinder",
    "YuNet",
    "align_face",
    "align_photos",
    "alignment_errors",
    "build_detector",
    "detect_face_in_crop",
    "fit_similarity_transform",
    "open_landmarked_images",
    "read_landmarks",
    "template_transforms",
]
