from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margrave.data import (
    ImageFolder,
    PairList,
    balanced_pairs,
    is_path_list,
    read_csv_pairs,
    read_lfw_pairs,
    read_pairs_by_path,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 5), st.integers(1, 6))
def test_balanced_pairs_hold_their_promises(
    seed: int, identities: int, folds: int, each: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(
        np.repeat(np.arange(identities), generator.integers(1, 9, identities))
    )
    wanted = 2 * folds * each
    try:
        pairs = balanced_pairs(labels, wanted, seed, folds)
    except ValueError as error:
        sizes = np.bincount(labels)
        genuine = int((sizes * (sizes - 1) // 2).sum())
        impostor = len(labels) * (len(labels) - 1) // 2 - genuine
        assert min(genuine, impostor) < wanted // 2
        assert f"at most {min(genuine, impostor) // folds * folds * 2} " in str(error)
        return
    assert len(pairs) == wanted and pairs.folds == folds
    np.testing.assert_array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    assert (pairs.same.reshape(folds, -1).sum(1) == each).all()
    keys = {
        frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    }
    assert len(keys) == wanted and all(len(key) == 2 for key in keys)
    people = [
        set(labels[half].reshape(folds, -1)[fold])
        for fold in range(folds)
        for half in (pairs.first, pairs.second)
    ]
    together = [people[2 * fold] | people[2 * fold + 1] for fold in range(folds)]
    if pairs.identity_disjoint:
        assert sum(map(len, together)) == len(set().union(*together))


def test_genuine_pairs_are_spread_over_identities() -> None:
    labels = np.repeat(np.arange(40), [200] + [5] * 39)
    pairs = balanced_pairs(labels, 320, folds=10)
    assert pairs.identity_disjoint
    used = np.bincount(labels[pairs.first[pairs.same]], minlength=40)
    assert used.min() == used.max() == 4


def test_folds_share_identities_where_they_must() -> None:
    assert not balanced_pairs(np.repeat(np.arange(4), 20), 100, folds=10).identity_disjoint


def test_every_possible_pair_can_be_asked_for() -> None:
    labels = np.repeat(np.arange(3), 3)
    pairs = balanced_pairs(labels, 18, folds=1)
    assert pairs.same.sum() == 9


def test_seed_decides() -> None:
    labels = np.repeat(np.arange(30), 5)
    first, again, other = (balanced_pairs(labels, 200, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.second, again.second)
    assert not np.array_equal(first.second, other.second)


def test_wrong_numbers_of_pairs_are_named() -> None:
    labels = np.repeat(np.arange(30), 5)
    with pytest.raises(ValueError, match="multiple of 20, for example 100"):
        balanced_pairs(labels, 101)
    with pytest.raises(ValueError, match="300 genuine and 10875 impostor pairs, so at most 600"):
        balanced_pairs(labels, 1000)
    with pytest.raises(ValueError, match="must be between 1 and the number of pairs"):
        PairList(np.zeros(2, int), np.ones(2, int), np.ones(2, bool), folds=3)
    with pytest.raises(ValueError, match="have equal lengths"):
        PairList(np.zeros(2, int), np.ones(3, int), np.ones(2, bool))


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for name, number in {"Al_Gore": 3, "Bo_Li": 2, "Cy": 1}.items():
        for image in range(1, number + 1):
            path = tmp_path / "faces" / name / f"{name}_{image:04d}.{'png' if image % 2 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    return ImageFolder(tmp_path / "faces")


LFW = "2\t1\nAl_Gore\t1\t3\nBo_Li\t2\tCy\t1\nBo_Li\t1\t2\nAl_Gore\t2\tCy\t1\n"


def test_lfw_pairs(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(LFW)
    pairs = read_lfw_pairs(tmp_path / "pairs.txt", folder)
    assert pairs.folds == 2 and not pairs.identity_disjoint
    assert pairs.same.tolist() == [True, False, True, False]
    names = [Path(folder.name(index)).name for index in (*pairs.first[:2], *pairs.second[:2])]
    assert names == ["Al_Gore_0001.png", "Bo_Li_0002.jpg", "Al_Gore_0003.png", "Cy_0001.png"]
    (tmp_path / "dev.txt").write_text("1\nAl_Gore 1 3\nBo_Li 2 Cy 1\n")
    assert read_lfw_pairs(tmp_path / "dev.txt", folder).folds == 1


def test_a_list_without_a_first_line_has_ten_folds(folder: ImageFolder, tmp_path: Path) -> None:
    lines = "Al_Gore\t1\t3\nBo_Li\t2\tCy\t1\n"
    (tmp_path / "rfw.txt").write_text(10 * lines + "\n")
    pairs = read_lfw_pairs(tmp_path / "rfw.txt", folder)
    assert pairs.folds == 10 and pairs.same.tolist() == 10 * [True, False]
    for repetitions, folds in ((7, 10), (2, 4)):
        (tmp_path / "short.txt").write_text(repetitions * lines)
        pairs = read_lfw_pairs(tmp_path / "short.txt", folder)
        assert len(pairs) == 2 * repetitions and pairs.folds == folds


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t1", "ten", r"pairs\.txt:1: 'ten'; expected a header such as '10 300'"),
        ("2\t1", "3\t1", r"4 pairs after the header, which declares 3 folds of 2 x 1 pairs"),
        ("Bo_Li\t2\tCy\t1", "Bo_Li\t2\t1", r"pairs\.txt:3: .*expected"),
        ("Bo_Li\t2\tCy\t1", "Bo_Li\tx\tCy\t1", r"pairs\.txt:3: .*name number name number"),
        ("Bo_Li\t2\tCy\t1", "Cy\t2\tCy\t1", r"pairs\.txt:3: .*two"),
        ("Al_Gore\t1\t3", "Al_Gore\t1", r"pairs\.txt:2: .*'name number number'"),
        ("Al_Gore\t1\t3", "Al_Gore\t1\tCy\t1", r"pairs\.txt:2"),
        ("Al_Gore\t1\t3", "Al_Gore\t1\t9", r"1 missing image: Al_Gore/Al_Gore_0009"),
    ],
)
def test_malformed_lfw_lists(
    folder: ImageFolder, tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "pairs.txt").write_text(LFW.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_lfw_pairs(tmp_path / "pairs.txt", folder)


def _csv(folder: ImageFolder, tmp_path: Path, text: str) -> tuple[PairList, list[str]]:
    (tmp_path / "pairs.csv").write_text(text)
    pairs, files = read_csv_pairs(tmp_path / "pairs.csv", folder.root)
    assert files.read(0).shape == (4, 4, 3)
    return pairs, [
        f"{files.path(a)} {files.path(b)}" for a, b in zip(pairs.first, pairs.second, strict=True)
    ]


A, B, C = "Al_Gore/Al_Gore_0001.png", "Al_Gore/Al_Gore_0002.jpg", "Cy/Cy_0001.png"


def test_csv_pairs(folder: ImageFolder, tmp_path: Path) -> None:
    pairs, names = _csv(folder, tmp_path, f"path_a,path_b,same\n{A},{B},1\n{A},{C},False\n")
    assert names == [f"{A} {B}", f"{A} {C}"]
    assert pairs.same.tolist() == [True, False] and pairs.folds == 2
    text = f"\n Path_A, path_b ,same \n\n{A} , {B},1\n{A},{C},False\n"
    assert _csv(folder, tmp_path, text)[1] == names
    text = f"\ufeffsame,fold,path_a,path_b,age\n1,7,{A},{B},3\nno,3,{A},{C},4\n"
    pairs, names = _csv(folder, tmp_path, text)
    assert names == [f"{A} {C}", f"{A} {B}"] and pairs.folds == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path_a,same\n", r"pairs\.csv:1: .*a column 'path_b' \(nearest is 'path_a'\)"),
        ("path_a,path_b,same\n", "contains no pairs"),
        (f"path_a,path_b,same\n{A},{B},1\n{A},{C},maybe\n", r"pairs\.csv:3: .*expected two paths"),
        (f"path_a,path_b,same\n{A},{B}\n", r"pairs\.csv:2"),
        (f"path_a,path_b,same,fold\n{A},{B},1,1x\n", r"pairs\.csv:2: .*'fold' \(a whole number\)"),
        (
            f"path_a,path_b,same,fold\n{A},{B},1,1\n{A},{C},0,\n",
            r"csv:3: .*a fold either on every line",
        ),
        (f"path_a,path_b,same\n{A},gone.png,1\n", r"1 missing image: .*gone\.png"),
        (
            f"path_a,path_b,same,fold\n{A},{B},1,0\n{A},{C},0,0\n{B},{C},0,0\n{B},{A},1,1\n",
            r"folds have \[3, 1\] pairs but must have \[2, 2\]",
        ),
    ],
)
def test_malformed_tables(folder: ImageFolder, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _csv(folder, tmp_path, text)


@pytest.mark.parametrize("separator", ["\t", ",", " ", ", ", "   "])
@pytest.mark.parametrize("suffix", ["txt", "csv", "list"])
def test_lists_of_two_paths_and_a_label(
    separator: str, suffix: str, folder: ImageFolder, tmp_path: Path
) -> None:
    path = tmp_path / f"pairs.{suffix}"
    lines = [separator.join(fields) for fields in ((A, B, "1"), (A, C, "0"), (C, B, "0"))]
    path.write_text("\n".join(lines) + "\n")
    assert is_path_list(path)
    pairs, files = read_csv_pairs(path, folder.root)
    assert pairs.same.tolist() == [True, False, False] and pairs.folds == 3
    assert [str(files.path(n)) for n in pairs.first] == [A, A, C]
    names = [A, B, C]
    named = read_pairs_by_path(path, names)
    assert [names[n] for n in named.second] == [B, C, B]


def test_spaces_in_paths_want_another_separator(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(f"{A} {B} 1\n{A} my {C} 0\n")
    with pytest.raises(ValueError, match=r"pairs.txt:2: .*separate fields by commas or tabs"):
        read_csv_pairs(tmp_path / "pairs.txt", folder.root)


@pytest.mark.parametrize("line", ["Al_Gore\t1\t3", "Al_Gore 1 0", "10\t300", "10", "a 1 b 2"])
def test_lfws_lists_are_not_taken_for_paths(line: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(line + "\n")
    assert not is_path_list(tmp_path / "pairs.txt")


@pytest.mark.parametrize(
    "text",
    [
        f"path_a,path_b,same\n{A},{B},1\n{A},{C},0\n{B},{A},no\n",
        f"same,path_a,path_b,fold\n1,{A},{B},1\n0,{A},{C},2\n0,./{A},{B},3\n",
        f"\n{A}\t{B}\t1\n\n{B}\t{A}\t0\n",
    ],
)
def test_a_pair_labeled_both_ways_is_refused(
    text: str, folder: ImageFolder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"pairs\.csv:4: .*label that line 2 gives"):
        _csv(folder, tmp_path, text)
    with pytest.raises(ValueError, match=r"pairs\.csv:4: .*label that line 2 gives"):
        read_pairs_by_path(tmp_path / "pairs.csv", [A, B, C])


def test_an_image_is_no_impostor_of_itself(folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.csv:2: .*same identity as itself"):
        _csv(folder, tmp_path, f"path_a,path_b,same\n{A},./{A},0\n")


def test_lists_stay_in_their_images_folder(folder: ImageFolder, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((4, 4, 3), np.uint8))
    path = tmp_path / "pairs.csv"
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "Cy/../../secret.png"):
        path.write_text(f"path_a,path_b,same\n{A},{B},1\n{A},{outside},0\n")
        with pytest.raises(ValueError, match=r"pairs\.csv:3: .*--allow-outside"):
            read_csv_pairs(path, folder.root)
        pairs, files = read_csv_pairs(path, folder.root, allow_outside=True)
        assert files.read(int(pairs.second[1])).shape == (4, 4, 3)
    # An absolute path below the folder stays in it.
    path.write_text(f"path_a,path_b,same\n{A},{B},1\n{A},{folder.root / C},0\n")
    assert len(read_csv_pairs(path, folder.root)[0]) == 2


def test_an_absent_list_is_named(folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.csv cannot be read"):
        read_csv_pairs(tmp_path / "absent.csv", folder.root)


def test_names_and_numbers_beyond_measure_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"a.jpg,{'b' * 5000},1\n")
    with pytest.raises(ValueError, match=r"pairs\.csv names 2 missing images"):
        read_csv_pairs(path, tmp_path)
    text = tmp_path / "pairs.txt"
    for line in ("1" * 5000, f"Ann {'1' * 5000} 2"):
        text.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"pairs\.txt:1"):
            read_pairs_by_path(text, ["Ann/Ann_0001.jpg"])
