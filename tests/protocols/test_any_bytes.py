"""Whatever bytes a file holds, it is read or refused with a ValueError that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from margrave.faces import read_landmarks
from margrave.protocols.identification import read_identification_table
from margrave.protocols.ijb_files import (
    read_template_images,
    read_template_pairs,
    read_template_subjects,
)
from margrave.protocols.megaface import read_megaface_list, read_noise_list
from margrave.protocols.template_tables import read_template_pair_table, read_template_table
from margrave.protocols.youtube import read_youtube_pairs

EXAMPLES = {
    read_template_images: b"1.jpg 1 69544\n2.jpg 1 3\n",
    read_template_pairs: b"1 11065 1\n2 11066 0\n",
    read_landmarks: b"1.jpg 1 2 3 4 5 6 7 8 9 10 0.5\n2.jpg 1 2 3 4 5 6 7 8 9 10 -1e3\n",
    read_template_subjects: b"TEMPLATE_ID,SUBJECT_ID\n1,2\n3,4\n",
    read_youtube_pairs: b"split number, first name, second name, is same\n1, a/0, b/1, 0\n",
    read_megaface_list: b'{"path": ["a/b.png", "c.png"]}',
    read_noise_list: b"# noise\na/b.png\n",
    read_identification_table: b'path,identity,role\n"a",Bo,gallery\nb,Bo,probe\n',
    read_template_table: b"path,template,subject,media,score,role\na,1,Bo,2,0.5,probe\nb,2,Al\n",
    read_template_pair_table: b"template_a,template_b,same\n1,2,no\n3,4,1\n",
}
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"\n", b"\r", b",", b" ", b'"', b"\0", b"-", b"9" * 30, b"1e999", b"nan", b"\xef\xbb\xbf"]
    ),
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\r\r\n\x00\n\xff")
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    for read in EXAMPLES:
        read_or_refuse(read, path)


@pytest.mark.parametrize("read", EXAMPLES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, read: Callable[[Path], object], data: st.DataObject) -> None:
    content = EXAMPLES[read]
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    read(path)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(content)))
        end = begin + data.draw(st.integers(0, 4))
        content = content[:begin] + data.draw(PIECES) + content[end:]
    path.write_bytes(content)
    read_or_refuse(read, path)


def read_or_refuse(read: Callable[[Path], object], path: Path) -> None:
    try:
        read(path)
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error)
