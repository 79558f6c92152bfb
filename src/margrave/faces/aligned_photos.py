"""Align the faces of all photos in a folder; runs in parallel and can be resumed."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import ValidationError

from margrave.data import ImageFiles, decode_image, image_paths
from margrave.faces.alignment import align_face
from margrave.faces.contract import Detection, Detector
from margrave.faces.mtcnn import MTCNN
from margrave.faces.yunet import YuNet
from margrave.files import atomic_write, read_json
from margrave.progress import Progress
from margrave.registry import checked_settings, explain, settings_schema

LIST_FILE = "aligned.jsonl"
"""The file in the crop folder: the settings in its first line, then one photo's result per line."""
CHUNK_SIZE = 4
"""Number of photos that are sent to a worker process at a time."""
JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """Settings of face detection and cropping.

    Attributes:
        detector: ``mtcnn``, which needs the extra ``align``, or ``yunet``.
        model: path of YuNet's ONNX file; None for MTCNN.
        every_face: crop all faces of a photo instead of only the largest.
        size: side of the crops in pixels.
        minimum_face: minimum width of a face in pixels; narrower faces are not cropped.

    Raises:
        ValueError: the detector is unknown, or YuNet's file is not given.
    """

    detector: str = "mtcnn"
    model: str | None = None
    every_face: bool = False
    size: int = 112
    minimum_face: int = 24

    def __post_init__(self) -> None:
        if self.detector not in ("mtcnn", "yunet"):
            raise ValueError(f"detector = {self.detector!r}; choices: mtcnn, yunet")
        if self.detector == "yunet" and self.model is None:
            raise ValueError(
                "yunet needs its model file, which Margrave does not include; set model"
            )

    def build(self) -> Detector:
        """Create the detector."""
        if self.detector == "mtcnn":
            # Never search for faces below MTCNN's default of 20 pixels.
            return MTCNN(minimum_face=max(self.minimum_face, 20))
        assert self.model is not None
        return YuNet(self.model)


@dataclass(frozen=True, kw_only=True)
class AlignedPhoto:
    """The result for one photo.

    Attributes:
        photo: path of the photo relative to the photo folder.
        crops: paths of the crops relative to the crop folder, largest face first.
        boxes: left, top, right and bottom of each cropped face, in pixels of the upright photo.
        landmarks: five (x, y) landmarks of each cropped face, in the same pixels.
        scores: detector score of each cropped face.
        rejected: why there are no crops; empty if there are any.
    """

    photo: str
    crops: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    landmarks: tuple[tuple[tuple[float, ...], ...], ...] = ()
    scores: tuple[float, ...] = ()
    rejected: str = ""


def align_photos(
    photos: str | Path,
    crops: str | Path,
    settings: AlignmentSettings,
    *,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> list[AlignedPhoto]:
    """Crop the faces of all photos in a folder; the crop folder gets the same subfolders.

    The file ``aligned.jsonl`` in the crop folder lists the results. Photos that it already lists
    are skipped, so repeating an interrupted call resumes it.

    Args:
        photos: the photo folder; its subfolders are included.
        crops: the folder for the crops and the list.
        settings: settings of the detector and the crops.
        workers: number of processes.
        progress: called with (photos done, total photos).

    Returns:
        The result of each photo, in natural order of the paths.

    Raises:
        ValueError: there are no photos, the crop folder contains crops made with other settings, or
            ``aligned.jsonl`` is damaged.
    """
    photos, crops = Path(photos), Path(crops)
    if not photos.is_dir():
        raise ValueError(
            f"{photos} is a file; give the photo folder"
            if photos.exists()
            else f"{photos}: no such folder"
        )
    paths = image_paths(photos)
    if not paths:
        raise ValueError(f"{photos} and its subfolders contain no photos; check the folder")
    settings.build()  # if the detector cannot be created, fail here instead of in a worker
    results = _read_list(crops, settings)
    names = _crop_names(paths, results)
    remaining = [(path, *names[path]) for path in paths if path not in results]
    crops.mkdir(parents=True, exist_ok=True)
    num_done = len(paths) - len(remaining)
    progress(num_done, len(paths))
    with open(crops / LIST_FILE, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps({"settings": asdict(settings)}) + "\n")
        for result in _align_all(photos, crops, settings, remaining, workers):
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            results[result.photo] = result
            num_done += 1
            progress(num_done, len(paths))
    return [results[path] for path in paths]


def _align_all(
    photos: Path,
    crops: Path,
    settings: AlignmentSettings,
    tasks: list[tuple[str, str, str]],
    workers: int,
) -> Iterator[AlignedPhoto]:
    """Align each photo and yield its result.

    A single worker or few photos are handled in this process, others in worker processes.

    Args:
        photos: the photo folder.
        crops: the folder for the crops.
        settings: settings of the detector and the crops.
        tasks: each photo's path, relative to the photo folder, and the two names of its crops
            (see `_crop_names`).
        workers: number of processes.
    """
    if workers == 1 or len(tasks) < 2 * CHUNK_SIZE:
        _Worker.initialize(photos, crops, settings)
        yield from map(_Worker.align, tasks)
        return
    threads = 1
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), _Worker.initialize, (photos, crops, settings, threads)
    )
    with pool:
        yield from pool.map(_Worker.align, tasks, chunksize=CHUNK_SIZE)


class _Worker:
    """Aligns photos in a worker process; class attributes keep the detector between photos."""

    photos: Path
    crops: Path
    settings: AlignmentSettings
    detector: Detector

    @classmethod
    def initialize(
        cls, photos: Path, crops: Path, settings: AlignmentSettings, threads: int | None = None
    ) -> None:
        """Build the detector; ``threads`` limits the process's threads, None leaves them."""
        if threads is not None:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
        cls.photos, cls.crops, cls.settings = photos, crops, settings
        cls.detector = settings.build()

    @classmethod
    def align(cls, task: tuple[str, str, str]) -> AlignedPhoto:
        path, single, numbered = task
        return align_photo(
            cls.photos, path, cls.crops, single, numbered, cls.detector, cls.settings
        )


def align_photo(
    photos: Path,
    path: str,
    crops: Path,
    single_name: str,
    numbered_name: str,
    detector: Detector,
    settings: AlignmentSettings,
) -> AlignedPhoto:
    """Crop the faces of one photo, write the crops, and return the result.

    Args:
        photos: the photo folder.
        path: path of the photo, relative to the photo folder.
        crops: the crop folder.
        single_name: path of the crop if there is only one, relative to the crop folder, without
            extension.
        numbered_name: the same for several crops, without number and extension.
        detector: finds the faces and their landmarks.
        settings: settings of the crops.
    """
    try:
        image = ImageFiles(photos, [path]).read(0)
    except ValueError as error:
        return AlignedPhoto(photo=path, rejected=str(error))
    faces = [face for face in detector.detect(image) if face.can_be_aligned]
    faces.sort(key=lambda face: -face.area)
    if not faces:
        return AlignedPhoto(
            photo=path, rejected="no face found; a larger or sharper photo may help"
        )
    wide_enough = [face for face in faces if face.width >= settings.minimum_face]
    if not wide_enough:
        reason = (
            f"the largest face is {faces[0].width:.0f} pixels wide; at least "
            f"{settings.minimum_face} are required"
        )
        return AlignedPhoto(photo=path, rejected=reason)
    chosen = wide_enough if settings.every_face else wide_enough[:1]
    crop_names = []
    for number, face in enumerate(chosen, start=1):
        name = f"{numbered_name}-{number}" if len(chosen) > 1 else single_name
        crop = align_face(image, face.landmarks, settings.size)
        crop_names.append(_write_crop(crop, crops, f"{name}.jpg"))
    return _build_result(path, crop_names, chosen)


def _build_result(path: str, crop_names: Iterable[str], faces: Iterable[Detection]) -> AlignedPhoto:
    faces = list(faces)
    return AlignedPhoto(
        photo=path,
        crops=tuple(crop_names),
        boxes=tuple(tuple(face.box.round(2).tolist()) for face in faces),
        landmarks=tuple(
            tuple(tuple(point) for point in face.landmarks.round(2).tolist()) for face in faces
        ),
        scores=tuple(round(face.score, 4) for face in faces),
    )


def _write_crop(crop: np.ndarray, folder: Path, name: str) -> str:
    """Write a crop as JPEG and return its name."""
    bgr = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    # Check that the crop can be read, before it is written and listed.
    decode_image(content, name)
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(content)
    return name


def _crop_names(
    paths: list[str], results: Mapping[str, AlignedPhoto]
) -> dict[str, tuple[str, str]]:
    """Map each photo to two names: one for a single crop, and one for several numbered crops.

    Names are paths without extension: the single crop of ``a.png`` is ``a.jpg``, several crops are
    ``a-1.jpg``, ``a-2.jpg`` and so on. No two photos can write the same file. If photos differ only
    by their extensions, the crops keep them: ``a.png`` becomes ``a.png.jpg``.

    Args:
        paths: the photos.
        results: the results of earlier calls; new crops must not overwrite theirs.
    """
    photos = dict.fromkeys([*paths, *results])
    photo_of_crop = {
        crop.removesuffix(".jpg"): photo
        for photo, result in results.items()
        for crop in result.crops
    }
    single, tried = _distinct_names(
        photos, lambda name, photo: photo_of_crop.get(name, photo) != photo
    )
    # Photo a-1.jpg may write a-1.jpg, so a.jpg must not number its crops a-1.jpg, a-2.jpg, ...
    reserved_names = {
        match[1] for name in tried if (match := re.fullmatch(r"(.*)-\d+", name, re.S))
    }
    numbered, _ = _distinct_names(photos, lambda name, photo: name in reserved_names)
    return {path: (single[path], numbered[path]) for path in paths}


def _distinct_names(
    photos: Iterable[str], is_taken: Callable[[str, str], bool]
) -> tuple[dict[str, str], Counter[str]]:
    """Give each photo the first name of a sequence that no other photo tries.

    The sequence of photo ``a.png`` is ``a``, ``a.png``, ``a.png_``, ``a.png__`` and so on.

    A name that several photos try is given to none of them. A photo keeps its name when an
    interrupted call is resumed, because the names depend only on the set of photos.

    Args:
        photos: paths of the photos.
        is_taken: called with a name and a photo; returns True if the photo must not have the name.

    Returns:
        Each photo's name, and the number of photos that tried each name.
    """
    names = {photo: os.path.splitext(photo)[0] for photo in photos}
    tried = Counter(names.values())
    while colliding := [
        photo for photo, name in names.items() if tried[name] > 1 or is_taken(name, photo)
    ]:
        for photo in colliding:
            names[photo] = f"{names[photo]}_" if names[photo].startswith(photo) else photo
            tried[names[photo]] += 1
    return names, tried


def _read_list(crops: Path, settings: AlignmentSettings) -> dict[str, AlignedPhoto]:
    """Read earlier calls' results (photo -> result); remove an incomplete last line of the file."""
    path = crops / LIST_FILE
    if not path.is_file():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        os.truncate(path, len(complete))
    lines = complete.split(b"\n")[:-1]
    results: dict[str, AlignedPhoto] = {}
    earlier_settings = settings
    schema = settings_schema(AlignedPhoto)
    for number, line in enumerate(lines, 1):
        try:
            fields: Mapping[str, Any] = read_json(line, "the line")
            if number == 1:
                earlier_settings = AlignmentSettings(
                    **checked_settings(AlignmentSettings, fields["settings"], "settings")
                )
                continue
            # The schema also turns JSON's lists into tuples.
            result = AlignedPhoto(**dict(schema(**fields)))
        except ValidationError as error:
            raise _damaged_line(path, number, explain(error, schema, "the result")) from None
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged_line(path, number, error) from None
        results[result.photo] = result
    if earlier_settings != settings:
        raise ValueError(
            f"{crops} contains crops made with other settings "
            f"({lines[0][:200].decode(errors='replace')}); choose another crop folder, or use "
            "these settings"
        )
    return results


def _damaged_line(path: Path, number: int, reason: object) -> ValueError:
    return ValueError(
        f"{path}, line {number} is damaged ({reason}); delete the file to align all photos again"
    )
