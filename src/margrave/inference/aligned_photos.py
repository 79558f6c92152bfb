"""Photos in, aligned crops out: with a list of what was found, in parallel, resumable."""

from __future__ import annotations

import json
import os
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

from margrave.data import ImageFiles, decode_image, image_paths
from margrave.faces import MTCNN, Detection, Detector, YuNet, align_face
from margrave.files import atomic_write, read_json

LIST = "aligned.jsonl"
CHUNK = 4
JPEG_QUALITY = 95

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """How photos become crops.

    Attributes:
        detector: ``mtcnn`` (extra ``align``) or ``yunet``.
        model: YuNet's file.
        every_face: crop all faces of a photo, instead of the largest.
        size: of a crop's side, pixels.
        minimum_face: narrower faces are rejected, pixels.

    Raises:
        ValueError: an unknown detector, or YuNet without its file.
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
            raise ValueError("yunet needs its model file, which is not part of Margrave")

    def build(self) -> Detector:
        """The detector."""
        if self.detector == "mtcnn":
            return MTCNN(minimum_face=max(self.minimum_face, 20))
        assert self.model is not None
        return YuNet(self.model)


@dataclass(frozen=True, kw_only=True)
class AlignedPhoto:
    """What became of one photo.

    Attributes:
        photo: its path below the folder of photos.
        crops: theirs, below the folder of crops, the largest face first.
        boxes, landmarks, scores: of the faces cropped, in pixels of the upright photo.
        rejected: why there is no crop.
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
    """Crop the faces of every photo below a folder, into the same folders below another.

    Photos listed in ``aligned.jsonl`` of the crops' folder are done already, so an interrupted call
    goes on where it stopped.

    Args:
        photos: a folder.
        crops: where crops and the list go.
        settings: how.
        workers: processes.
        progress: called with (photos done, photos in all).

    Raises:
        ValueError: no photos, or crops made with other settings.
    """
    photos, crops = Path(photos), Path(crops)
    paths = image_paths(photos)
    if not paths:
        raise ValueError(f"{photos} holds no photos")
    settings.build()
    done = _read_list(crops, settings)
    names = _crop_names(paths)
    left = [(path, names[path]) for path in paths if path not in done]
    crops.mkdir(parents=True, exist_ok=True)
    count = len(paths) - len(left)
    progress(count, len(paths))
    with open(crops / LIST, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps({"settings": asdict(settings)}) + "\n")
        for found in _each(photos, crops, settings, left, workers):
            file.write(json.dumps(asdict(found)) + "\n")
            file.flush()
            done[found.photo] = found
            count += 1
            progress(count, len(paths))
    return [done[path] for path in paths]


def _each(
    photos: Path,
    crops: Path,
    settings: AlignmentSettings,
    left: list[tuple[str, str]],
    workers: int,
) -> Iterator[AlignedPhoto]:
    if workers == 1 or len(left) < 2 * CHUNK:
        _Worker.start(photos, crops, settings)
        yield from map(_Worker.work, left)
        return
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), _Worker.start, (photos, crops, settings, 1)
    )
    with pool:
        yield from pool.map(_Worker.work, left, chunksize=CHUNK)


class _Worker:
    """What a process keeps between photos."""

    photos: Path
    crops: Path
    settings: AlignmentSettings
    detector: Detector

    @classmethod
    def start(
        cls, photos: Path, crops: Path, settings: AlignmentSettings, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
        cls.photos, cls.crops, cls.settings = photos, crops, settings
        cls.detector = settings.build()

    @classmethod
    def work(cls, task: tuple[str, str]) -> AlignedPhoto:
        path, name = task
        return align_photo(cls.photos, path, cls.crops, name, cls.detector, cls.settings)


def align_photo(
    photos: Path, path: str, crops: Path, name: str, detector: Detector, settings: AlignmentSettings
) -> AlignedPhoto:
    """Crop one photo's faces; ``name`` is the crop's path without its ending."""
    try:
        image = ImageFiles(photos, [path]).read(0)
    except ValueError as error:
        return AlignedPhoto(photo=path, rejected=str(error))
    faces = sorted(detector.detect(image), key=lambda face: -face.area)
    if not faces:
        return AlignedPhoto(
            photo=path, rejected="no face found; a larger or sharper photo may help"
        )
    wide = [face for face in faces if face.width >= settings.minimum_face]
    if not wide:
        said = f"the largest face is {faces[0].width:.0f} pixels wide, of {settings.minimum_face}"
        return AlignedPhoto(photo=path, rejected=f"{said} that are asked for")
    chosen = wide if settings.every_face else wide[:1]
    written = []
    for number, face in enumerate(chosen):
        suffix = f"-{number + 1}" if len(chosen) > 1 else ""
        crop = align_face(image, face.landmarks, settings.size)
        written.append(_write(crop, crops, f"{name}{suffix}.jpg"))
    return _aligned(path, written, chosen)


def _aligned(path: str, written: Iterable[str], faces: Iterable[Detection]) -> AlignedPhoto:
    faces = list(faces)
    return AlignedPhoto(
        photo=path,
        crops=tuple(written),
        boxes=tuple(tuple(face.box.round(2).tolist()) for face in faces),
        landmarks=tuple(
            tuple(tuple(point) for point in face.landmarks.round(2).tolist()) for face in faces
        ),
        scores=tuple(round(face.score, 4) for face in faces),
    )


def _write(crop: np.ndarray, folder: Path, name: str) -> str:
    bgr = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    # What is listed can be read.
    decode_image(content, name)
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(content)
    return name


def _crop_names(paths: list[str]) -> dict[str, str]:
    """Photos without their ending, which stays where two would be called alike."""
    stems = {path: os.path.splitext(path)[0] for path in paths}
    counts = Counter(stems.values())
    return {path: stem if counts[stem] == 1 else path for path, stem in stems.items()}


def _read_list(crops: Path, settings: AlignmentSettings) -> dict[str, AlignedPhoto]:
    """What was done before; a last line that was cut off is forgotten."""
    path = crops / LIST
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with open(path, "r+", encoding="utf-8") as file:
            file.truncate(len(whole.encode()))
    lines = whole.splitlines()
    done: dict[str, AlignedPhoto] = {}
    before = settings
    for number, line in enumerate(lines, 1):
        try:
            entry: Mapping[str, Any] = read_json(line, "it")
            if number == 1:
                before = AlignmentSettings(**entry["settings"])
                continue
            found = AlignedPhoto(**entry)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); remove it") from None
        done[found.photo] = found
    if before != settings:
        raise ValueError(
            f"{crops} holds crops made otherwise ({lines[0][:200]}); choose another folder, "
            "or the same settings"
        )
    return done
