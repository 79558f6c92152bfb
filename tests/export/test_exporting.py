"""Files that are read back without questions, and defects that leave none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave.data import open_source
from margrave.export import check_parity, compare_embedders, export_model
from margrave.inference import load_embedder
from margrave.matching import Matcher
from margrave.models import ModelCard, import_onnx, open_model, save_card, save_model
from margrave.protocols import Pairs


def test_the_card_is_read_back(model: Path, exported: Path, tmp_path: Path) -> None:
    card = open_model(model).card
    read = open_model(exported).card
    expected = replace(card, backbone={"kind": "onnx"}, source="mobilefacenet exported from a test")
    assert read == expected and len(read.operating_points) == 2
    _, imported = import_onnx(exported, tmp_path / "m.onnx", mean=None, std=None, color_order=None)
    assert imported == expected == open_model(tmp_path / "m.onnx").card


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_thresholds_decide_as_before(
    runtime: str, model: Path, exported: Path, faces: Path
) -> None:
    original, copy = (
        Matcher(opened, quality_floor=0)
        for opened in (open_model(model, device="cpu"), open_model(exported, runtime=runtime))
    )
    images = open_source(str(faces))
    read = [images.read(index) for index in range(0, 40, 3)]
    decisions = set()
    for far in (0.1, 1e-4):
        for other in read[1:]:
            before, after = (each.verify(read[0], other, far=far) for each in (original, copy))
            assert before.same == after.same and abs(before.similarity - after.similarity) < 1e-5
            decisions.add(before.same)
    assert decisions == {False, True}


@pytest.mark.parametrize(
    ("factor", "noise", "message"),
    [(1.0, 0.1, "cosine 0.9"), (1.0001, 0.0, "norm error 1.0e-04"), (1.0, 0.03, "decisions")],
)
def test_a_defect_is_refused_and_leaves_no_file(
    factor: float,
    noise: float,
    message: str,
    model: Path,
    as_written: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_written(factor, noise)
    if message == "decisions":
        monkeypatch.setattr("margrave.export.parity.MIN_COSINE", 0.0)
        monkeypatch.setattr("margrave.export.parity.MAX_NORM_ERROR", 1.0)
    with pytest.raises(
        ValueError, match=f"differs from the original.*{message}.*nothing was written"
    ):
        export_model(model, tmp_path / "model.onnx", num_faces=32)
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_no_parity(model: Path) -> None:
    embedder = load_embedder(model, device="cpu")
    results = compare_embedders(embedder, embedder, num_faces=4)
    check_parity(results, "m")
    with pytest.raises(ValueError, match="cosine nan"):
        check_parity([replace(results[0], cosine=float("nan"))], "m")
    with pytest.raises(ValueError, match="needs at least 2 faces, got 1"):
        compare_embedders(embedder, embedder, num_faces=1)


def test_places_where_nothing_can_be_written(model: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "old.onnx").touch()
    for name, message in {
        "folder.onnx": r"is a folder; name a file in it: .*folder\.onnx/model\.onnx",
        "model.pt": r"must end in \.onnx; use .*model\.onnx",
        "old.onnx": "exists already: remove it, or choose another name",
    }.items():
        with pytest.raises(ValueError, match=message):
            export_model(model, tmp_path / name)
    with pytest.raises(ValueError, match=r"model\.onnx is an ONNX model already"):
        export_model(exported, tmp_path / "model.onnx")
    pytest.importorskip("dlib")
    with pytest.raises(ValueError, match="is not a torch network"):
        export_model("baseline", tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no such file"):
        export_model(tmp_path / "nothing", tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"--int8 shifts scores.*give --pairs"):
        export_model(model, tmp_path / "model.onnx", int8=True)
    # Another model's card there would be taken for this one's.
    (tmp_path / "new.onnx.card.json").write_text("{}")
    with pytest.raises(ValueError, match=r"new\.onnx\.card\.json exists already"):
        export_model(model, tmp_path / "new.onnx")


def test_custom_code_is_run_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "custom_code_to_export.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(3 * 8 * 8, 4)\n\n"
        "    def forward(self, images):\n        return self.layer(images.flatten(1))\n"
    )
    state = {"layer.weight": torch.randn(4, 192), "layer.bias": torch.zeros(4)}
    card = ModelCard(backbone={"kind": "custom_code_to_export:Net"}, image_size=8)
    source, target = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    save_model(source, state, card)
    with pytest.raises(ValueError, match="--trust-code"):
        export_model(source, target, num_faces=4)
    assert not target.exists() and "custom_code_to_export" not in sys.modules
    export_model(source, target, num_faces=4, trust_code=True)
    # The graph needs the code no more.
    assert open_model(target).card.backbone == {"kind": "onnx"}


def test_int8_keeps_thresholds_that_it_measured(
    model: Path, faces: Path, exported: Path, as_written: Callable[..., None], tmp_path: Path
) -> None:
    as_written()
    quantized = export_model(
        model,
        tmp_path / "int8.onnx",
        int8=True,
        pairs=Pairs(number=100),
        images=str(faces),
        allowed_loss=100,
        resamples=50,
        num_faces=8,
    )
    result = quantized.quantized
    assert result is not None and result.calibration_images > 10
    card = open_model(quantized.path).card
    assert card == quantized.card and card.reference is None
    # 50 impostor pairs measure FAR 0.1, and not FAR 1e-4.
    assert [point.far for point in card.operating_points] == [0.1]
    assert result.unsupported_fars == (1e-4,)
    figure = result.result.figure("TAR", FAR=0.1)
    assert card.operating_points[0].threshold == figure.threshold
    assert card.operating_points[0].true_accept_rate == figure.value
    assert figure.interval is not None
    assert quantized.path.stat().st_size < 0.6 * exported.stat().st_size
    first, second = (load_embedder(path) for path in (exported, quantized.path))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
    cosines = torch.cosine_similarity(first.embed_pixels(pixels), second.embed_pixels(pixels))
    # Noise is nothing like the faces that it was calibrated on.
    assert 0.5 < cosines.min() < 0.999999


def test_int8_beyond_the_allowed_loss_is_refused(
    model: Path,
    faces: Path,
    as_written: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_written()
    # Activations are cut off where calibration has seen hardly anything.
    dark = [{"images": np.full((4, 3, 32, 32), 1e-3, np.float32)}]
    monkeypatch.setattr("margrave.export.quantization._calibration_batches", lambda *_: iter(dark))
    with pytest.raises(
        ValueError, match=r"int8 costs .* points of TAR at FAR .*--allowed-loss 0.5"
    ):
        export_model(
            model,
            tmp_path / "int8.onnx",
            int8=True,
            pairs=Pairs(number=100),
            images=str(faces),
            resamples=0,
            num_faces=8,
        )
    assert not list(tmp_path.iterdir())


def test_another_card_next_to_the_file_wins(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(exported.read_bytes())
    save_card(copy, replace(open_model(copy).card, operating_points=()))
    assert open_model(copy).card.operating_points == ()
