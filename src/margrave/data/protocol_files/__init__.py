"""The metadata files of face-recognition test sets, and Margrave's own tables for your own."""

from margrave.data.protocol_files.ijb import (
    IjbFiles,
    Landmarks,
    TemplateImages,
    TemplatePairs,
    TemplateSubjects,
    find_ijb_files,
    read_landmarks,
    read_template_images,
    read_template_pairs,
    read_template_subjects,
)
from margrave.data.protocol_files.layouts import (
    IdentificationTable,
    TemplateTable,
    read_group_pairs,
    read_identification_table,
    read_template_pair_table,
    read_template_table,
)
from margrave.data.protocol_files.megaface import (
    facescrub_identity,
    read_megaface_list,
    read_noise_list,
)
from margrave.data.protocol_files.tinyface import TinyFaceFiles, read_tinyface
from margrave.data.protocol_files.youtube_faces import (
    VideoPairs,
    frames_of_videos,
    read_youtube_pairs,
)

__all__ = [
    "IdentificationTable",
    "IjbFiles",
    "Landmarks",
    "TemplateImages",
    "TemplatePairs",
    "TemplateSubjects",
    "TemplateTable",
    "TinyFaceFiles",
    "VideoPairs",
    "facescrub_identity",
    "find_ijb_files",
    "frames_of_videos",
    "read_group_pairs",
    "read_identification_table",
    "read_landmarks",
    "read_megaface_list",
    "read_noise_list",
    "read_template_images",
    "read_template_pair_table",
    "read_template_pairs",
    "read_template_subjects",
    "read_template_table",
    "read_tinyface",
    "read_youtube_pairs",
]
