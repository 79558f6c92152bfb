"""Face images and their labels: reading, drawing, splitting, pairing and batching them."""

from .augment import Augmentation
from .contract import FaceImages
from .decode import Fit, decode_image, fit_image
from .image_folder import ImageFiles, ImageFolder
from .loading import (
    Batch,
    EpochSampler,
    Sample,
    TrainingImages,
    Unreadable,
    collate,
    normalise,
    training_loader,
)
from .pair_lists import PairList, balanced_pairs, read_csv_pairs, read_lfw_pairs
from .sources import SOURCES, open_images
from .splits import ImageSubset, split_identities
from .synthetic import SyntheticFaces

__all__ = [
    "SOURCES",
    "Augmentation",
    "Batch",
    "EpochSampler",
    "FaceImages",
    "Fit",
    "ImageFiles",
    "ImageFolder",
    "ImageSubset",
    "PairList",
    "Sample",
    "SyntheticFaces",
    "TrainingImages",
    "Unreadable",
    "balanced_pairs",
    "collate",
    "decode_image",
    "fit_image",
    "normalise",
    "open_images",
    "read_csv_pairs",
    "read_lfw_pairs",
    "split_identities",
    "training_loader",
]
