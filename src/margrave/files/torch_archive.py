"""Check files that ``torch.save`` wrote before torch reads them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from margrave.files.budget import Budget
from margrave.files.messages import first_sentence
from margrave.files.torch_pickle import check_legacy_torch_file, check_torch_pickle

ARCHIVE = b"PK\3\4"
# The records at the end of a ZIP archive that locate its directory.
# Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
ZIP64_END = struct.Struct("<4sQ2H2I4Q")


def check_torch_file(path: Path) -> None:
    """Reject a PyTorch file that would take too much memory, is damaged, or is a program.

    Raises:
        ValueError: the file is rejected; the message gives the reason.
    """
    budget = Budget(path.stat().st_size, str(path))
    try:
        with open(path, "rb") as file:
            # Like torch, recognize ZIP archives by these bytes; PyTorch < 1.6 wrote other files.
            if file.read(len(ARCHIVE)) != ARCHIVE:
                file.seek(0)
                check_legacy_torch_file(file, budget)
                return
            _check_directory(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            sizes = [part.file_size for part in archive.infolist()]
            parts = {name.partition("/")[2] for name in archive.namelist()}
    # A damaged directory can raise nearly any error.
    except Exception as error:
        if budget.remaining < 0:
            raise
        raise ValueError(
            f"{path} is damaged or not a PyTorch file ({first_sentence(error)})"
        ) from error
    if "constants.pkl" in parts:
        raise ValueError(
            f"{path} is a TorchScript archive (torch.jit.save), a program that is not run here; "
            "save only its weights: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if any(name.startswith("models/") and name.endswith(".json") for name in parts):
        raise ValueError(
            f"{path} is a torch.export program, which is not run here; save only its weights: "
            f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pth')"
        )
    # The parts can exceed the file's size only if they are compressed or overlap.
    budget.charge(sum(sizes))
    # Unpickling has a separate budget of the same size.
    budget = Budget(path.stat().st_size, str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                # torch ignores the case of this name.
                if part.filename.lower().endswith("data.pkl"):
                    check_torch_pickle(io.BytesIO(archive.read(part)), budget)
    except Exception as error:
        if budget.remaining < 0:
            raise
        raise ValueError(
            f"{path} is damaged or not a PyTorch file ({first_sentence(error)})"
        ) from error


def _check_directory(file: BinaryIO, size: int) -> None:
    """Reject an archive in which Python and torch could find different directories.

    Python expects the directory right before the archive's end record; torch expects it where that
    record points. They also search for the end record in different ways.
    """
    file.seek(max(0, size - END.size - LOCATOR.size - ZIP64_END.size))
    tail = file.read()
    *_, count, length, start, comment_length = END.unpack(tail[-END.size :])
    end = size - END.size
    if not tail[-END.size :].startswith(b"PK\5\6") or comment_length:
        raise ValueError("the archive does not end with its end record")
    locator = tail[-END.size - LOCATOR.size : -END.size]
    if locator.startswith(b"PK\6\7"):
        end -= LOCATOR.size + ZIP64_END.size
        if LOCATOR.unpack(locator)[2] != end or not tail.startswith(b"PK\6\6"):
            raise ValueError("the archive's directory is not where its end record points")
        *_, count, length, start = ZIP64_END.unpack(tail[: ZIP64_END.size])
    if start + length != end:
        raise ValueError("the archive's directory is not where its end record points")
    file.seek(start)
    directory = file.read(length)
    if directory.count(b"PK\1\2") < count:
        raise ValueError("the archive's directory lacks entries")
