"""Face images and their labels: reading, splitting, pairing and batching.

Each kind of image source has its own module in this package, and that module registers it with
``SOURCES``.
"""

import importlib
import pkgutil

from margrave.data.arrays import ArrayImages
from margrave.data.augment import Augmentation
from margrave.data.contract import SOURCES
from margrave.data.csv_pairs import is_path_list, read_csv_pairs, read_pairs_by_path
from margrave.data.decode import Fit, decode_image, fit_image
from margrave.data.drawn_pairs import balanced_pairs, max_balanced_pairs
from margrave.data.image_folder import ImageFiles, ImageFolder, image_paths
from margrave.data.lfw_pairs import read_lfw_pairs
from margrave.data.loading import (
    Batch,
    EpochSampler,
    TrainingImages,
    Unreadable,
    normalize,
    training_loader,
)
from margrave.data.packing import pack_pairs, pack_records
from margrave.data.pair_lists import PairList
from margrave.data.pairs_bin import EncodedImages, read_pairs_bin, write_pairs_bin
from margrave.data.record_images import RecordImages, write_record_images
from margrave.data.shard_packing import damaged_shards, pack_shards
from margrave.data.shards import ShardImages
from margrave.data.sources import ImageSource, detect_source, open_source
from margrave.data.splits import ImageSubset, split_identities
from margrave.data.window_sampler import WindowSampler
from margrave.images import FaceImages, ReadableImages

__all__ = [
    "SOURCES",
    "ArrayImages",
    "Augmentation",
    "Batch",
    "EncodedImages",
    "EpochSampler",
    "FaceImages",
    "Fit",
    "ImageFiles",
    "ImageFolder",
    "ImageSource",
    "ImageSubset",
    "PairList",
    "ReadableImages",
    "RecordImages",
    "ShardImages",
    "TrainingImages",
    "Unreadable",
    "WindowSampler",
    "balanced_pairs",
    "damaged_shards",
    "decode_image",
    "detect_source",
    "fit_image",
    "image_paths",
    "is_path_list",
    "max_balanced_pairs",
    "normalize",
    "open_source",
    "pack_pairs",
    "pack_records",
    "pack_shards",
    "read_csv_pairs",
    "read_lfw_pairs",
    "read_pairs_bin",
    "read_pairs_by_path",
    "split_identities",
    "training_loader",
    "write_pairs_bin",
    "write_record_images",
]

# Import every module, because importing a source's module registers the source.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
