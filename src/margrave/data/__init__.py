"""Face images and their labels: reading, drawing, splitting, pairing and batching them."""

from margrave.data.augment import Augmentation
from margrave.data.contract import FaceImages, ReadableImages
from margrave.data.decode import Fit, decode_image, fit_image
from margrave.data.image_folder import ImageFiles, ImageFolder, image_paths
from margrave.data.loading import (
    Batch,
    EpochSampler,
    TrainingImages,
    Unreadable,
    normalise,
    training_loader,
)
from margrave.data.packing import pack_pairs, pack_records
from margrave.data.pair_lists import (
    PairList,
    balanced_pairs,
    lists_paths,
    read_csv_pairs,
    read_lfw_pairs,
    read_named_pairs,
)
from margrave.data.pairs_bin import PackedImages, read_pairs_bin, write_pairs_bin
from margrave.data.record_images import RecordImages, write_record_images
from margrave.data.shard_packing import damaged_shards, pack_shards
from margrave.data.shards import ShardImages
from margrave.data.sources import SOURCES, open_images, recognise
from margrave.data.splits import ImageSubset, split_identities
from margrave.data.window_sampler import WindowSampler

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
    "PackedImages",
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
    "fit_image",
    "image_paths",
    "lists_paths",
    "normalise",
    "open_images",
    "pack_pairs",
    "pack_records",
    "pack_shards",
    "read_csv_pairs",
    "read_lfw_pairs",
    "read_named_pairs",
    "read_pairs_bin",
    "recognise",
    "split_identities",
    "training_loader",
    "write_pairs_bin",
    "write_record_images",
]
