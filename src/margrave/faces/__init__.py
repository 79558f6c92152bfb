"""From photos to aligned crops: detectors behind one small interface, and the alignment."""

from margrave.faces.alignment import TEMPLATE, align_face, similarity
from margrave.faces.contract import Detection, Detector
from margrave.faces.mtcnn import MTCNN
from margrave.faces.yunet import YuNet

__all__ = ["MTCNN", "TEMPLATE", "Detection", "Detector", "YuNet", "align_face", "similarity"]
