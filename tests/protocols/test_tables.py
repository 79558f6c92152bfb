from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from margrave.protocols.groups import find_group_files
from margrave.protocols.identification import read_identification_table
from margrave.protocols.template_tables import read_template_pair_table, read_template_table

IDENTIFICATION = "path,identity,role"
TEMPLATES = "path,template,subject"
PAIRS = "template_a,template_b,same"


def test_identification_tables_are_read(write: Callable[..., Path]) -> None:
    table = read_identification_table(
        write(
            "table.csv",
            "role,note,identity,path",
            "gallery,x,Zoë,g/1.jpg",
            'probe,,"Bo, Jr",p/1.jpg',
            "distractor,,,d/1.jpg",
            "distractor,,Eve,d/2.jpg",
            "probe,,Zoë,p/2.jpg",
        )
    )
    assert table.names == ("g/1.jpg", "p/1.jpg", "d/1.jpg", "d/2.jpg", "p/2.jpg")
    assert table.identities.tolist() == [0, 1, -1, 2, 0] and table.identities.dtype == np.int64
    assert table.identity_names == ("Zoë", "Bo, Jr", "Eve")
    assert table.roles.tolist() == ["gallery", "probe", "distractor", "distractor", "probe"]


def test_template_tables_are_read(write: Callable[..., Path]) -> None:
    table = read_template_table(
        write(
            "table.csv",
            "path,template,subject,media,score,role,more",
            "1.jpg,5,Bo,7,0.5,gallery_1,x",
            "2.jpg,5,Bo,7,,gallery_1,x",
            "1.jpg,6,Bo,,-1e-1,probe,x",
            "3.jpg,2,Al,8",
        )
    )
    assert table.names == ("1.jpg", "2.jpg", "1.jpg", "3.jpg")
    assert table.templates.tolist() == [5, 5, 6, 2] and table.templates.dtype == np.int64
    assert table.media[[0, 1, 3]].tolist() == [7, 7, 8] and table.media.dtype == np.int64
    assert table.media[2] not in (7, 8)
    assert table.subjects.tolist() == [0, 0, 0, 1] and table.subjects.dtype == np.int64
    assert table.subject_names == ("Bo", "Al")
    np.testing.assert_array_equal(table.scores, [0.5, np.nan, -0.1, np.nan])
    assert table.scores.dtype == np.float64
    assert table.roles.tolist() == ["gallery_1", "gallery_1", "probe", ""]


def test_template_tables_need_three_columns(write: Callable[..., Path]) -> None:
    table = read_template_table(write("table.csv", TEMPLATES, "1.jpg,5,Bo", "2.jpg,5,Bo"))
    assert table.media.tolist() == [0, 1]
    assert np.isnan(table.scores).all() and table.roles.tolist() == ["", ""]


def test_template_pair_tables_are_read(write: Callable[..., Path]) -> None:
    pairs = read_template_pair_table(
        write("table.csv", "same,template_b,template_a", "1,2,3", "No,4,5", "TRUE, 6 ,7")
    )
    assert pairs.first.tolist() == [3, 5, 7] and pairs.first.dtype == np.int64
    assert pairs.second.tolist() == [2, 4, 6] and pairs.second.dtype == np.int64
    assert pairs.same.tolist() == [True, False, True] and pairs.same.dtype == bool


MALFORMED = [
    (read_identification_table, (), r":1: ''; expected a column 'path'"),
    (
        read_identification_table,
        ("path,identiy,role",),
        r":1: 'path,identiy,role'; expected a column 'identity' \(nearest is 'identiy'\)",
    ),
    (read_identification_table, (IDENTIFICATION,), r" has no image of role gallery or probe"),
    (
        read_identification_table,
        (IDENTIFICATION, "a,Bo,probe"),
        r" has no image of role gallery;",
    ),
    (read_identification_table, (IDENTIFICATION, "a,Bo"), r":2: 'a,Bo'; expected 3 comma-sep"),
    (
        read_identification_table,
        (IDENTIFICATION, "a,Bo,mate"),
        r":2: .*; expected a relative path,",
    ),
    (read_identification_table, (IDENTIFICATION, "/a,Bo,probe"), r":2: .*; expected a relative"),
    (
        read_identification_table,
        (IDENTIFICATION, "a,,probe"),
        r":2: .*; expected an identity, which",
    ),
    (
        read_identification_table,
        (IDENTIFICATION, "a,Bo,probe", "a,Bo,gallery"),
        r":3: 'a,Bo,gallery'; expected each image once, but it is also on line 2",
    ),
    (
        read_identification_table,
        (IDENTIFICATION, "a,Bo,probe", "b,Bo,distractor"),
        r":3: .*; expected identity Bo to have the role \(distractor or not\) that line 2 gives",
    ),
    (read_template_table, ("path,templates,subject",), r":1: .*nearest is 'templates'"),
    (read_template_table, (TEMPLATES,), r" holds no images below its header line"),
    (
        read_template_table,
        (TEMPLATES, "a,,Bo"),
        r":2: 'a,,Bo'; expected a relative path, a template",
    ),
    (read_template_table, (TEMPLATES, "a,1,"), r":2: 'a,1,'; expected a relative path, a template"),
    (
        read_template_table,
        (TEMPLATES, "../a,1,Bo"),
        r":2: .*; expected a relative path",
    ),
    (read_template_table, (TEMPLATES + ",score", "a,1,Bo,inf"), r":2: .*; expected score as a"),
    (
        read_template_table,
        (TEMPLATES + ",role", "a,1,Bo,gallery"),
        r":2: .*role as one of gallery_1",
    ),
    (
        read_template_table,
        (TEMPLATES, "a,1,Bo", "b,2,Al", "c,1,Al"),
        r":4: 'c,1,Al'; expected template 1 to have the subject that line 2 gives",
    ),
    (
        read_template_table,
        (TEMPLATES + ",role", "a,1,Bo,probe", "b,1,Bo"),
        r":3: 'b,1,Bo'; expected template 1 to have the role that line 2 gives",
    ),
    (
        read_template_table,
        (TEMPLATES, "a,1,Bo", "a,2,Al"),
        r":3: 'a,2,Al'; expected image a to have the subject that line 2 gives",
    ),
    (
        read_template_table,
        (TEMPLATES, "a,1,Bo", "a,1,Bo"),
        r":3: 'a,1,Bo'; expected each image once in a template, but it is also on line 2",
    ),
    (read_template_pair_table, ("template_a,template_b",), r":1: .*; expected a column 'same'"),
    (read_template_pair_table, (PAIRS,), r" holds no pairs of templates"),
    (read_template_pair_table, (PAIRS, "1,2,3"), r":2: '1,2,3'; expected whole numbers as templ"),
    (read_template_pair_table, (PAIRS, "1,,1"), r":2: '1,,1'; expected whole numbers as template"),
    (read_template_pair_table, (PAIRS, "1,-2,1"), r":2: '1,-2,1'; expected whole numbers as temp"),
    (
        read_template_pair_table,
        (PAIRS, "", "1,2,1", "3,2,0", "2,1,no"),
        r":5: '2,1,no'; expected the pair to have the label of line 3",
    ),
]


@pytest.mark.parametrize(("read", "lines", "message"), MALFORMED)
def test_malformed_tables_are_refused(
    write: Callable[..., Path],
    read: Callable[[Path], object],
    lines: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=r"table\.csv" + message):
        read(write("table.csv", *lines))


@pytest.mark.parametrize(
    "read", [read_identification_table, read_template_table, read_template_pair_table]
)
def test_missing_files_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ValueError, match=r"cannot be read \(.*check the path"):
        read(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "names",
    [
        ("Group10_pairs.txt", "Group2_pairs.txt", "Group2_images.txt", "_pairs.txt"),
        ("txts/Group10/Group10_pairs.txt", "txts/Group2/Group2_pairs.txt", "data/x.bin"),
        ("Group10/Group10_pairs.txt", "Group2/Group2_pairs.txt"),
        ("Group2.bin", "Group10_pairs.bin"),
    ],
)
def test_groups_are_found(
    tmp_path: Path, touch: Callable[..., None], names: tuple[str, ...]
) -> None:
    touch(*names)
    groups = find_group_files(tmp_path)
    assert list(groups) == ["Group2", "Group10"]
    assert {path.relative_to(tmp_path).as_posix() for path in groups.values()} <= set(names)


def test_missing_groups_are_refused(tmp_path: Path, touch: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="cannot be listed"):
        find_group_files(tmp_path / "absent")
    with pytest.raises(ValueError, match="pairs of 0 groups, but at least two are required"):
        find_group_files(tmp_path)
    touch("Asian_pairs.txt")
    with pytest.raises(ValueError, match="pairs of 1 groups, but at least two are required"):
        find_group_files(tmp_path)
    touch("Asian.bin")
    with pytest.raises(
        ValueError, match=r"two files of the group Asian: .*\.bin and .*_pairs\.txt"
    ):
        find_group_files(tmp_path)
