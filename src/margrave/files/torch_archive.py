"""Check files written by ``torch.save``, before torch reads them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from margrave.files.budget import Budget
from margrave.files.messages import first_sentence
from margrave.files.torch_pickle import check_legacy_torch_file, check_torch_pickle

ZIP_MAGIC = b"PK\3\4"
# The records at the end of a ZIP archive that locate its directory.
# Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
ZIP64_END = struct.Struct("<4sQ2H2I4Q")


def check_torch_file(path: Path) -> None:
    """Reject a PyTorch file that is damaged, is a program, or would take too much memory.

    Raises:
        ValueError: the file is rejected; the message gives the reason.
    """
    budget = Budget(path.stat().st_size, str(path))
    try:
        with open(path, "rb") as file:
            # torch, too, recognizes a ZIP archive by these bytes. PyTorch < 1.6 wrote no archives.
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                file.seek(0)
                check_legacy_torch_file(file, budget)
                return
            _check_directory(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            sizes = [member.file_size for member in archive.infolist()]
            # torch.save puts all members into one folder, whose name varies.
            names = {name.partition("/")[2] for name in archive.namelist()}
    # A damaged directory can raise nearly any error.
    except Exception as error:
        # The budget's own error names the file already.
        if budget.remaining < 0:
            raise
        raise ValueError(
            f"{path} is damaged or not a PyTorch file ({first_sentence(error)})"
        ) from error
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript archive (torch.jit.save), a program that is not run here; "
            "save only its weights: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if any(name.startswith("models/") and name.endswith(".json") for name in names):
        raise ValueError(
            f"{path} is a torch.export program, which is not run here; save only its weights: "
            f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pth')"
        )
    # The members can exceed the file's size only if they are compressed or overlap.
    budget.charge(sum(sizes))
    # Unpickling has a separate budget of the same size.
    budget = Budget(path.stat().st_size, str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                # torch ignores the case of this name.
                if member.filename.lower().endswith("data.pkl"):
                    check_torch_pickle(io.BytesIO(archive.read(member)), budget)
    except Exception as error:
        # The budget's own error names the file already.
        if budget.remaining < 0:
            raise
        raise ValueError(
            f"{path} is damaged or not a PyTorch file ({first_sentence(error)})"
        ) from error


def _check_directory(file: BinaryIO, size: int) -> None:
    """Reject an archive in which Python and torch could find different lists of members.

    The list is called the archive's directory. Python expects it right before the archive's end
    record; torch expects it where that record points. They also search for the end record in
    different ways.
    """
    file.seek(max(0, size - END.size - LOCATOR.size - ZIP64_END.size))
    tail = file.read()
    *_, count, length, start, comment_length = END.unpack(tail[-END.size :])
    expected_end = size - END.size
    if not tail[-END.size :].startswith(b"PK\5\6") or comment_length:
        raise ValueError("the archive does not end with its end record")
    locator = tail[-END.size - LOCATOR.size : -END.size]
    if locator.startswith(b"PK\6\7"):
        expected_end -= LOCATOR.size + ZIP64_END.size
        # The ZIP64 end record follows the directory.
        _, _, zip64_end_offset, _ = LOCATOR.unpack(locator)
        if zip64_end_offset != expected_end or not tail.startswith(b"PK\6\6"):
            raise ValueError("the archive's directory is not where its end record points")
        *_, count, length, start = ZIP64_END.unpack(tail[: ZIP64_END.size])
    if start + length != expected_end:
        raise ValueError("the archive's directory is not where its end record points")
    file.seek(start)
    directory = file.read(length)
    # Each entry begins with this signature.
    if directory.count(b"PK\1\2") < count:
        raise ValueError("the archive's directory lacks entries")
