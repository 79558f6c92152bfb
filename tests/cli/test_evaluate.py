"""``margrave embed``, ``evaluate``, ``compare``, ``threshold``, ``verify``, as a user has them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from margrave.cli import app
from margrave.data import ImageFolder, read_pairs_bin, write_pairs_bin
from margrave.evaluation import Result, read_results
from margrave.inference import FeatureStore, load_embedder
from margrave.models import read_card
from margrave.synthetic import SyntheticFaces


def margrave(*arguments: object, fails: bool = False) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert fails == (result.exit_code != 0), result.output
    return result.output


def results(path: Path) -> dict[str, Result]:
    return {result.name: result for result in read_results(path)}


def only(path: Path) -> Result:
    (result,) = read_results(path)
    return result


def _write_model(path: Path, seed: int) -> None:
    """A random projection of shrunk pictures: enough to tell synthetic faces apart a little."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((192, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["pixels"], ["small"], kernel_shape=[4, 4], strides=[4, 4]
            ),
            helper.make_node("Flatten", ["small"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
        ],
        "projection",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, a model, and its features."""
    folder = tmp_path_factory.mktemp("work")
    SyntheticFaces(num_identities=30, images_per_identity=6, image_size=32, nuisance=0.2).write(
        folder / "faces"
    )
    _write_model(folder / "raw.onnx", 0)
    options = ["--mean", "0.5", "--std", "0.5", "--color-order", "rgb"]
    margrave("import", folder / "raw.onnx", folder / "model.onnx", *options)
    output = margrave("embed", folder / "model.onnx", folder / "faces", folder / "features")
    assert (
        "180 images of 30 identities, 16 features each" in output
        and "RGB, (pixel - 0.5) / 0.5" in output
    )
    return folder


def _table(path: Path, header: str, rows: list[list[object]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def _pairs(work: Path) -> Path:
    images = ImageFolder(work / "faces")
    rows: list[list[object]] = []
    for number in range(200):
        person = number % 30
        other = person if number % 2 else (person + 1) % 30
        first, second = person * 6 + number % 3, other * 6 + 3 + number % 2
        rows.append([images.path(first), images.path(second), int(person == other)])
    return _table(work / "pairs.csv", "path_a,path_b,same", rows)


def test_pairs(work: Path) -> None:
    output = margrave(
        "evaluate", "pairs", work / "features", _pairs(work), "-o", work / "pairs.json"
    )
    result = only(work / "pairs.json")
    accuracy = result.figure("accuracy")
    assert result.counts["pairs"] == 200 and accuracy.value and 0.6 < accuracy.value <= 1
    assert result.scores and result.scores.identities and accuracy.interval
    assert "LFW 10-fold" in output and f"{100 * accuracy.value:.2f} %" in output
    store = FeatureStore(work / "features")
    assert result.origin == store.origin and result.origin.weights
    options = ("--images", work / "faces", "--keep", work / "kept", "-o", work / "model.json")
    margrave("evaluate", "pairs", work / "model.onnx", work / "pairs.csv", *options)
    assert only(work / "model.json").figures == result.figures
    assert 0 < len(FeatureStore(work / "kept")) < 180


def test_pairs_are_drawn_where_there_is_no_list(work: Path) -> None:
    options = ("--number", 100, "--resamples", 0)
    margrave("evaluate", "pairs", work / "features", *options, "-o", work / "drawn.json")
    options = (*options, "--images", work / "faces", "-o", work / "of_model.json")
    margrave("evaluate", "pairs", work / "model.onnx", *options)
    drawn, of_model = only(work / "drawn.json"), only(work / "of_model.json")
    assert drawn.counts["pairs"] == 100 and drawn.figures == of_model.figures
    with pytest.raises(ValueError, match="--images FOLDER"):
        margrave("evaluate", "pairs", work / "model.onnx")
    with pytest.raises(ValueError, match="already contains features"):
        margrave("evaluate", "pairs", work / "features", "--images", work / "faces")
    with pytest.raises(ValueError, match="number must be at least 20"):
        margrave("evaluate", "pairs", work / "features", "--number", 3)


def test_groups(work: Path) -> None:
    images = ImageFolder(work / "faces")
    for index, label in enumerate(images.labels.tolist()):
        person = work / "races" / "AB"[label // 15] / f"p{label}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"p{label}_{index % 6 + 1:04d}.png").write_bytes(images.read_bytes(index))
    margrave("embed", work / "model.onnx", work / "races", work / "of_races")
    for group, first in (("A", 0), ("B", 15)):
        lines = ["10\t6"]
        for fold in range(10):
            people = [first + (fold + step) % 15 for step in range(7)]
            lines += [f"p{person}\t1\t{fold % 5 + 2}" for person in people[:6]]
            lines += [f"p{one}\t1\tp{other}\t2" for one, other in pairwise(people)]
        (work / "lists").mkdir(exist_ok=True)
        (work / "lists" / f"{group}_pairs.txt").write_text("\n".join(lines) + "\n")
    options = (work / "of_races", work / "lists", "-o", work / "groups.json")
    assert "skewed error ratio" in margrave("evaluate", "groups", *options).replace("\n", " ")
    groups = results(work / "groups.json")
    errors = [1 - (groups[group].figure("accuracy").value or 0) for group in "AB"]
    summary = {figure.metric: figure.value for figure in groups["all groups"].figures}
    assert summary["skewed error ratio"] == pytest.approx(max(errors) / min(errors))
    assert summary["mean accuracy"] == pytest.approx(1 - sum(errors) / 2)
    std = abs(errors[0] - errors[1]) / 2
    assert summary["std of the groups' accuracies"] == pytest.approx(std)


def test_identification(work: Path) -> None:
    images = ImageFolder(work / "faces")
    rows: list[list[object]] = []
    for index, label in enumerate(images.labels.tolist()):
        role = "distractor" if label >= 20 else "gallery" if index % 6 < 2 else "probe"
        rows.append([images.path(index), images.class_names[label] if label < 20 else "", role])
    table = _table(work / "search.csv", "path,identity,role", rows)
    output = margrave(
        "evaluate", "identification", work / "features", table, "-o", work / "search.json"
    )
    result = only(work / "search.json")
    counts = {"probes": 80, "probes_without_mate": 0, "gallery": 100, "distractors": 60}
    assert result.counts == counts
    first, last = (result.figure("identification rate", rank=rank).value for rank in (1, 20))
    assert first and last and 0.1 < first < last <= 1
    assert "closed set" in " ".join(output.split())


def test_templates_of_every_kind(work: Path) -> None:
    images = ImageFolder(work / "faces")
    rows: list[list[object]] = []
    for index, label in enumerate(images.labels.tolist()):
        part = index % 6 // 2
        role = ("gallery_1" if label < 15 else "gallery_2") if part == 0 else "probe"
        rows.append([images.path(index), label * 3 + part, images.class_names[label], role])
    table = _table(work / "templates.csv", "path,template,subject,role", rows)
    margrave("evaluate", "templates", work / "features", table, "-o", work / "open.json")
    search = only(work / "open.json")
    assert search.counts == {"mated": 60, "non_mated": 60, "gallery": 30}
    assert "mean of 2 galleries" in search.rules and "N1D0F2" in search.rules

    options = ("--surveillance", "--no-norm", "-o", work / "ijbs.json")
    margrave("evaluate", "templates", work / "features", table, *options)
    search = only(work / "ijbs.json")
    assert [search.figure("DIR", FAR=far, rank=1).value is not None for far in (0.01, 0.1)]
    assert search.rules.endswith("N0D0F2")
    with pytest.raises(ValueError, match=r"templates\.csv has no score for"):
        margrave("evaluate", "templates", work / "features", table, "--detector")
    moved = [[*row[:3], str(row[3]).replace("gallery_1", "gallery_2")] for row in rows]
    only_2 = _table(work / "gallery_2.csv", "path,template,subject,role", moved)
    with pytest.raises(ValueError, match="no template of role gallery_1"):
        margrave("evaluate", "templates", work / "features", only_2, "--surveillance")

    pairs = [[number, number + 1, int(number // 3 == (number + 1) // 3)] for number in range(89)]
    listed = _table(work / "template_pairs.csv", "template_a,template_b,same", pairs)
    options = ("--pairs", listed, "-o", work / "one.json")
    margrave("evaluate", "templates", work / "features", table, *options)
    assert results(work / "one.json")["1:1"].counts["pairs"] == 89

    plain = _table(work / "plain.csv", "path,template,subject", [row[:3] for row in rows])
    margrave("evaluate", "templates", work / "features", plain, "-o", work / "all.json")
    assert results(work / "all.json")["all pairs"].counts["images"] == 90
    named = [
        [f"t{row[1]}" if place == 1 else part for place, part in enumerate(row)] for row in rows
    ]
    named = _table(work / "named.csv", "path,template,subject", [row[:3] for row in named])
    named_pairs = [[f"t{one}", f"t{other}", same] for one, other, same in pairs]
    text_pairs = _table(work / "text_pairs.csv", "template_a,template_b,same", named_pairs)
    options = ("--pairs", text_pairs, "-o", work / "named.json")
    margrave("evaluate", "templates", work / "features", named, *options)
    by_name, by_number = results(work / "named.json"), results(work / "one.json")
    assert by_name["1:1"].figure("AUC") == by_number["1:1"].figure("AUC")

    pairs[4][2] = 1 - pairs[4][2]
    _table(listed, "template_a,template_b,same", pairs)
    with pytest.raises(
        ValueError, match=r"template_pairs.csv: same = . for the templates .* contradicts their"
    ):
        margrave("evaluate", "templates", work / "features", table, "--pairs", listed)


def test_ijb_files(work: Path) -> None:
    images, meta = ImageFolder(work / "faces"), work / "meta"
    meta.mkdir()
    template = np.arange(180) // 2
    (meta / "ijbb_face_tid_mid.txt").write_text(
        "".join(f"{images.path(index)} {template[index]} {index}\n" for index in range(180))
    )
    (meta / "ijbb_template_pair_label.txt").write_text(
        "".join(f"{one} {one + 1} {int(one // 3 == (one + 1) // 3)}\n" for one in range(89))
        + "".join(f"{one} {one + 2} 1\n" for one in range(0, 90, 3))
    )
    output = margrave("evaluate", "ijb", work / "features", meta)
    assert "90 templates, 119 pairs" in " ".join(output.split())
    for side, which in (("gallery_G1", 0), ("gallery_G2", 1), ("probe_mixed", 2)):
        rows: list[list[object]] = [
            [number, number // 3, "x.jpg"]
            for number in range(90)
            if (number % 3 > 0 if which == 2 else number % 3 == 0 and number // 45 == which)
        ]
        _table(meta / f"ijbb_1N_{side}.csv", "TEMPLATE_ID,SUBJECT_ID,FILENAME", rows)
    output = margrave(
        "evaluate", "ijb", work / "features", meta, "--no-flip", "-o", work / "ijb.json"
    )
    search = results(work / "ijb.json")["1:N"]
    assert search.counts["mated"] == 60 and "N1D0F1" in search.rules
    with pytest.raises(ValueError, match="name_5pts_score"):
        margrave("evaluate", "ijb", work / "features", meta, "--detector")


def test_ijb_photos_are_aligned_by_their_landmarks(work: Path) -> None:
    photos = work / "photos"
    photos.mkdir()
    images = ImageFolder(work / "faces")
    template = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
         [70.7299, 92.2041]]
    ) * (32 / 112)  # fmt: skip
    lines = []
    for index in range(3):
        canvas = np.zeros((60, 70, 3), np.uint8)
        canvas[11:43, 20:52] = images.read(index)[:, :, ::-1]
        cv2.imwrite(str(photos / f"{index}.png"), canvas)
        points = " ".join(f"{value:.4f}" for value in (template + [20, 11]).ravel())
        lines.append(f"{index}.png {points} 0.9\n")
    (work / "five.txt").write_text("".join(lines))
    landmarks = ("--landmarks", work / "five.txt")
    margrave("embed", work / "model.onnx", photos, work / "aligned", *landmarks)
    aligned, plain = FeatureStore(work / "aligned"), FeatureStore(work / "features")
    np.testing.assert_allclose(aligned.embeddings, plain.embeddings[:3], rtol=0.05, atol=0.3)
    assert (aligned.labels == -1).all() and aligned.name(2) == "2.png"


def test_youtube(work: Path) -> None:
    generator = np.random.default_rng(0)
    images = ImageFolder(work / "faces")
    for index, label in enumerate(images.labels.tolist()):
        video = work / "videos" / images.class_names[label] / str(index % 6 // 3)
        video.mkdir(parents=True, exist_ok=True)
        (video / f"{index}.png").write_bytes(images.read_bytes(index))
    margrave("embed", work / "model.onnx", work / "videos", work / "frames")
    text = "split number, pair number in split, first name, second name, is same:\n"
    for number in range(120):
        person = int(generator.integers(30))
        other = person if number % 2 else (person + 1 + int(generator.integers(29))) % 30
        names = images.class_names[person], images.class_names[other]
        text += f"{number // 12 + 1}, {number % 12 + 1}, {names[0]}/0, {names[1]}/1, {number % 2}\n"
    (work / "splits.txt").write_text(text)
    margrave("evaluate", "youtube", work / "frames", work / "splits.txt", "-o", work / "ytf.json")
    result = only(work / "ytf.json")
    assert result.counts["folds"] == 10 and "videos pooled, N1D0F2" in result.rules
    assert (result.figure("accuracy").value or 0) > 0.6 and result.scores.identities


def test_all_to_all_and_megaface(work: Path) -> None:
    loose = work / "strangers" / "any" / "where"
    loose.mkdir(parents=True)
    strangers = SyntheticFaces(
        num_identities=40, first_identity=1000, images_per_identity=1, image_size=32
    )
    for index in range(40):
        cv2.imwrite(str(loose / f"{index}.png"), strangers.read(index)[:, :, ::-1])
    options = ("--unlabeled",)
    margrave("embed", work / "model.onnx", work / "strangers", work / "others", *options)
    distractors = ("--distractors", work / "others")
    state = ("--state", work / "state.npz")
    output = margrave(
        "evaluate", "all-to-all", work / "features", *distractors, *state, "-o", work / "all.json"
    )
    alone = only(work / "all.json")
    assert alone.counts["impostors"] == 180 * 179 // 2 - 30 * 15 + 180 * 40
    assert not (work / "state.npz").exists() and "40 distractors" in " ".join(output.split())
    shared = [sys.executable, "-m", "margrave", "evaluate", "all-to-all", work / "features"]
    shared += [*distractors, *state, "--devices", "2", "-o", work / "shared.json"]
    ended = subprocess.run(shared, check=True, capture_output=True, text=True)
    assert ended.stdout.count("40 distractors") == 1
    assert only(work / "shared.json") == alone
    assert not list(work.glob("state.npz*"))
    names = FeatureStore(work / "others").names
    (work / "noise.txt").write_text(f"{names[3]}\n")
    (work / "probe_noise.txt").write_text(Path(FeatureStore(work / "features").name(7)).name + "\n")
    noise = ("--distractor-noise", work / "noise.txt", "--probe-noise", work / "probe_noise.txt")
    options = (work / "features", work / "others", *noise, "-o", work / "mega.json")
    margrave("evaluate", "megaface", *options)
    result = only(work / "mega.json")
    assert result.counts["distractors"] == 39 and result.counts["impostors"] == 180 * 39
    assert result.figure("identification rate", rank=10).value is not None
    listed = json.dumps({"path": names[:20]})
    (work / "megaface_list.json").write_text(listed)
    options = ("--distractor-list", work / "megaface_list.json", *options)
    margrave("evaluate", "megaface", *options)
    assert only(work / "mega.json").counts["distractors"] == 19


CROPS = ("--aligned", "--unchecked", "--quality-floor", "0")


def verify(model: Path, *arguments: object) -> str:
    return margrave("verify", "-m", model, *CROPS, *arguments)


def test_a_threshold_is_kept_with_the_model_and_decides(work: Path) -> None:
    model = work / "deciding.onnx"
    options = ["--mean", "0.5", "--std", "0.5", "--color-order", "rgb"]
    margrave("import", work / "raw.onnx", model, *options)
    images = ImageFolder(work / "faces")
    sides = [work / "faces" / images.path(index) for index in (0, 1, 6)]
    with pytest.raises(ValueError, match="no threshold yet"):
        verify(model, *sides[:2])
    output = margrave("threshold", model, work / "features", "--far", "0.01,0.001")
    assert "0.001" in output and "saved in" in output
    card = read_card((work / "deciding.onnx.card.json").read_text(), "card")
    assert [point.far for point in card.operating_points] == [0.01, 0.001]
    point = card.operating_points[0]
    assert point.threshold_interval and point.threshold_interval[0] <= point.threshold
    margrave("threshold", model, work / "features", "--far", "0.01")
    assert len(load_embedder(model).card.operating_points) == 2
    assert "same person: cosine 1.0000" in verify(model, sides[0], sides[0])
    scores = []
    for side in sides[1:]:
        arguments = ["verify", "-m", str(model), *CROPS, str(sides[0]), str(side)]
        result = CliRunner().invoke(app, arguments)
        scores.append(float(result.output.split("cosine ")[1].split(",")[0]))
        says = scores[-1] > load_embedder(model).card.operating_points[0].threshold
        assert result.exit_code == (0 if says else 3)
    with pytest.raises(ValueError, match=r"no threshold for FAR 0.5; available FARs: 0.001, 0.01"):
        verify(model, *sides[:2], "--far", "0.5")
    with pytest.raises(ValueError, match=r"FAR 1e-09 needs at least 1,000,000,000 impostor"):
        margrave("threshold", model, work / "features", "--far", "1e-9")
    _write_model(work / "raw2.onnx", 1)
    margrave("import", work / "raw2.onnx", work / "other.onnx", *options)
    with pytest.raises(ValueError, match="weights differ"):
        margrave("threshold", work / "other.onnx", work / "features", "--far", "0.01")
    options = ["--mean", "0.4", "--std", "0.5", "--color-order", "bgr"]
    margrave("import", work / "raw.onnx", work / "otherwise.onnx", *options)
    with pytest.raises(ValueError, match=r"mean, colou?r_order differ"):
        margrave("threshold", work / "otherwise.onnx", work / "features", "--far", "0.01")
    for wrong, message in (
        (("--mean", "123.7,116.3,103.5"), r"divide values for pixels in \[0, 255\] by 255"),
        (("--mean", "0.5", "--image-size", "64"), "takes only images of 32"),
    ):
        options = (*wrong, "--std", "0.5", "--color-order", "rgb")
        with pytest.raises(ValueError, match=message):
            margrave("import", work / "raw.onnx", work / "never.onnx", *options)


def test_lists_that_belong_to_other_images_are_refused(work: Path) -> None:
    margrave("pack", work / "faces", work / "one.bin", "--pairs", _pairs(work), "--size", 32)
    listed, images = read_pairs_bin(work / "one.bin")
    write_pairs_bin(work / "two.bin", images.encoded[::-1], listed.same[::-1].tolist())
    (work / "copy.bin").write_bytes((work / "one.bin").read_bytes())
    margrave("embed", work / "model.onnx", work / "one.bin", work / "of_bin")
    margrave("evaluate", "pairs", work / "of_bin", work / "copy.bin", "--resamples", 0)
    with pytest.raises(ValueError, match=r"of 'one\.bin', not of .*two\.bin"):
        margrave("evaluate", "pairs", work / "of_bin", work / "two.bin")
    with pytest.raises(ValueError, match=r"\.bin contains its own images"):
        margrave("evaluate", "groups", work / "of_bin", work)
    (work / "foreign.txt").write_text("363/nobody.jpg\n")
    with pytest.raises(ValueError, match="features of the same images"):
        margrave("evaluate", "megaface", work / "features", work / "features")
    strangers = SyntheticFaces(num_identities=3, first_identity=2000, image_size=32)
    strangers.write(work / "foreign")
    margrave("embed", work / "model.onnx", work / "foreign", work / "loose", "--unlabeled")
    with pytest.raises(ValueError, match="names none of the images"):
        noise = ("--distractor-noise", work / "foreign.txt")
        margrave("evaluate", "megaface", work / "features", work / "loose", *noise)


def test_few_images_are_judged_by_what_they_can_say(work: Path) -> None:
    few = work / "few"
    SyntheticFaces(num_identities=4, images_per_identity=2, image_size=32).write(few)
    margrave("embed", work / "model.onnx", few, work / "of_few")
    output = margrave("evaluate", "all-to-all", work / "of_few")
    assert "TAR at FAR 0.1" in output
    with pytest.raises(ValueError, match="resamples must be at least 2"):
        margrave("evaluate", "all-to-all", work / "of_few", "--resamples", 1)


def test_two_models_are_compared(work: Path) -> None:
    options = ["--mean", "0.5", "--std", "0.5", "--color-order", "rgb"]
    _write_model(work / "raw3.onnx", 3)
    margrave("import", work / "raw3.onnx", work / "third.onnx", *options)
    margrave("embed", work / "third.onnx", work / "faces", work / "third")
    stores = (work / "features", work / "third")
    output = margrave("compare", *stores, _pairs(work), "--far", "0.1", "-o", work / "diff.json")
    compared = only(work / "diff.json")
    assert compared.figures[3].label == "difference in TAR at FAR 0.1" and "p value" in output
    accuracy = compared.figure("difference in accuracy")
    details = accuracy.details
    assert accuracy.value == pytest.approx(details["second"] - details["first"])
    for name in ("features", "third"):
        output = ("-o", work / f"{name}.json")
        margrave("evaluate", "pairs", work / name, _pairs(work), "--resamples", 0, *output)
    files = (work / "features.json", work / "third.json")
    margrave("compare", *files, "--far", "0.1", "-o", work / "of_results.json")
    assert only(work / "of_results.json").figures == compared.figures
    itself = (work / "features", work / "features", _pairs(work))
    assert "give every pair the same score" in margrave("compare", *itself, "-o", work / "no.json")
    p_values = {figure.details["p_value"] for figure in only(work / "no.json").figures}
    assert p_values == {1, None}
    with pytest.raises(ValueError, match="contains features, which need a set of pairs"):
        margrave("compare", *stores)
    margrave("evaluate", "pairs", work / "features", "--number", 40, "-o", work / "40.json")
    with pytest.raises(ValueError, match="of different pairs"):
        margrave("compare", work / "40.json", work / "third.json")


def test_what_does_not_fit_is_said(work: Path) -> None:
    with pytest.raises(ValueError, match="is a folder without model"):
        margrave("evaluate", "all-to-all", work / "faces")
    with pytest.raises(ValueError, match="did you mean 'pairs'"):
        margrave("evaluate", "pears", work / "features")
    _table(work / "gone.csv", "path_a,path_b,same", [["a.jpg", "b.jpg", 1]] * 4)
    with pytest.raises(ValueError, match=r"names 2 missing images: a\.jpg, b\.jpg"):
        margrave("evaluate", "pairs", work / "features", work / "gone.csv")
    with pytest.raises(ValueError, match="--ranks"):
        margrave("evaluate", "identification", work / "features", work / "x.csv", "--ranks", "one")
