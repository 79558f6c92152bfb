"""Commands as a user types them."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from typer.testing import CliRunner

from margrave import __version__, backbones
from margrave.cli import app, main
from margrave.evaluation import read_results
from margrave.models import load_model
from margrave.recipes import recipe_names, recipe_text
from margrave.synthetic import SyntheticFaces

SETTINGS = [
    "data.image_size=32",
    "data.cached=false",
    "backbone.channels=[8,8,8,8]",
    "backbone.block_counts=[1,1,1,1]",
    "training.epochs=1",
    "training.batch_size=8",
    "training.threads=1",
    "training.log_steps=1",
]
TINY = [word for setting in SETTINGS for word in ("--set", setting)]


def margrave(*arguments: str, cwd: Path, code: int = 0) -> str:
    """What a command prints; it must end with `code`."""
    printed, ended = io.StringIO(), 0
    given = sys.argv
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        sys.argv = ["margrave", *arguments]
        try:
            main()
        except SystemExit as exit:
            ended = exit.code or 0
        finally:
            sys.argv = given
    assert ended == code, printed.getvalue()
    return printed.getvalue()


def margrave_process(*arguments: str, cwd: Path) -> str:
    """The same in a process of its own, which finds modules in its folder."""
    done = subprocess.run(
        [sys.executable, "-m", "margrave", *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    SyntheticFaces(num_identities=12, images_per_identity=6, image_size=32).write(folder)
    return folder


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    output = margrave(
        "train", "small", "--data", str(faces), "--loss", "curricularface", "-o", "mine", *TINY,
        cwd=folder,
    )  # fmt: skip
    assert "training on 72 images of 12 identities" in output
    assert "loss curricularface uses the recipe's scale 24" in output
    assert "epoch 1/1: loss" in output
    return folder / "mine"


def test_a_run_leaves_everything_behind(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "checkpoint-1", "model.safetensors"}
    assert expected <= names
    state, card = load_model(run / "model.safetensors")
    backbones.create(card.backbone).load_state_dict(state)
    config = yaml.safe_load((run / "config.yaml").read_text())
    # Another loss keeps the recipe's scale, which goes with its images, and its own margin.
    assert config["loss"]["kind"] == "curricularface"
    assert (config["loss"]["scale"], config["loss"]["margin"]) == (24, 0.5)


def test_evaluate_a_run(run: Path, faces: Path, tmp_path: Path) -> None:
    output = margrave(
        "evaluate", "pairs", str(run), "--images", str(faces), "--number", "100", "-o",
        "results.json", cwd=tmp_path,
    )  # fmt: skip
    assert "95 % interval" in output and "results are in results.json" in output
    (result,) = read_results(tmp_path / "results.json")
    assert result.name == "faces" and result.rules.startswith("LFW 10-fold")
    assert len(result.curves["folds"]["accuracy"]) == 10


def test_evaluate_listed_pairs(run: Path, faces: Path, tmp_path: Path) -> None:
    people = sorted(path for path in faces.iterdir() if path.is_dir())
    lines = ["path_a,path_b,same"]
    for number, person in enumerate(people):
        own = sorted(path.relative_to(faces) for path in person.iterdir())
        other = sorted(people[number - 1].iterdir())[0].relative_to(faces)
        lines += [f"{own[0]},{own[1]},1", f"{own[0]},{other},0"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    output = margrave(
        "evaluate", "pairs", str(run), str(tmp_path / "pairs.csv"), "--images", str(faces),
        cwd=tmp_path,
    )  # fmt: skip
    assert "24" in output


def test_resuming_a_finished_run_is_quick_and_harmless(run: Path, tmp_path: Path) -> None:
    before = load_model(run / "model.safetensors")[0]
    output = margrave("train", "--resume", str(run), cwd=tmp_path)
    assert "resuming after 1 epoch and 0 steps; training has finished" in output
    after = load_model(run / "model.safetensors")[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_of_ones_own_without_touching_the_package(faces: Path, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "my_loss.py"
    (tmp_path / "my_loss.py").write_text(example.read_text())
    margrave_process(
        "train", "small", "--data", str(faces), "--loss", "my_loss:HalfwayFace", "-o", "run", *TINY,
        cwd=tmp_path,
    )  # fmt: skip
    assert "my_loss:HalfwayFace" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_network_of_ones_own(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, features: int = 4):\n"
        "        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(),\n"
        "                         nn.Linear(48, features), nn.BatchNorm1d(features))\n"
    )
    tiny = [
        word for setting in SETTINGS if "backbone" not in setting for word in ("--set", setting)
    ]
    margrave_process(
        "train", "small", "--data", str(faces), "-o", "run", *tiny,
        "--set", "backbone.kind=my_net:Net", "--set", "backbone.features=6", cwd=tmp_path,
    )  # fmt: skip
    assert load_model(tmp_path / "run" / "model.safetensors")[0]["2.weight"].shape == (6, 48)


@pytest.mark.parametrize(("batch", "alone"), [("batch", False), (1, True)])
def test_import_an_onnx_model_says_if_images_go_alone(
    batch: str | int, alone: bool, tmp_path: Path
) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixels"], ["embedding"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "raw.onnx")
    options = ["--mean", "0.5", "--std", "0.5", "--color-order", "rgb"]
    output = margrave("import", "raw.onnx", "model.onnx", *options, cwd=tmp_path)
    assert ("images are embedded one at a time" in " ".join(output.split())) == alone


def test_import_a_checkpoint(tmp_path: Path) -> None:
    network = backbones.create({"kind": "mbf", "embedding_size": 64})
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    output = margrave("import", "backbone.pth", "model.safetensors", cwd=tmp_path)
    assert "parameters, RGB input" in output
    state, card = load_model(tmp_path / "model.safetensors")
    assert card.backbone["kind"] == "mbf"
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_import_states_what_a_checkpoint_does_not_say(tmp_path: Path) -> None:
    network = backbones.create({"kind": "mbf", "embedding_size": 64})
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    output = margrave("import", "backbone.pth", "guessed.safetensors", cwd=tmp_path)
    assert "assumed from the tensor names" in output
    output = margrave(
        "import", "backbone.pth", "model.safetensors", "--color-order", "bgr",
        "--mean", "0.1,0.2,0.3", "--std", "0.25", cwd=tmp_path,
    )  # fmt: skip
    assert "assumed from the tensor names" not in output
    state, card = load_model(tmp_path / "model.safetensors")
    assert card.mean == (0.3, 0.2, 0.1) and card.std == 0.25
    first = "layers.0.layers.0.weight"
    assert torch.equal(state[first], network.state_dict()[first].flip(1))


def test_import_weights_of_no_known_layout_into_a_named_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "import_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width: int = 4):\n"
        "        super().__init__()\n"
        "        self.stem = nn.Conv2d(3, width, 3)\n"
        "        self.last = nn.Linear(width, 5)\n"
        "    def forward(self, images):\n"
        "        return self.last(self.stem(images).mean((2, 3)))\n"
    )
    state = {
        "stem.weight": torch.randn(6, 3, 3, 3), "stem.bias": torch.randn(6),
        "last.weight": torch.randn(5, 6), "last.bias": torch.randn(5),
    }  # fmt: skip
    content = {f"module.{name}": value for name, value in state.items()}
    content["head.weight"] = torch.randn(9, 5)
    torch.save({"whatever": content}, tmp_path / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    named = ("import", "weights.pth", "model.safetensors", "--backbone")
    assert "stem.weight is (6, 3, 3, 3)" in margrave(*named, "import_net:Net", cwd=tmp_path, code=1)
    output = margrave(
        *named, "{kind: 'import_net:Net', width: 6}", "--image-size", "32",
        "--color-order", "bgr", cwd=tmp_path,
    )  # fmt: skip
    assert "head left out: head.weight" in output and "mean 0.5, std 0.5 assumed" in output
    saved, card = load_model(tmp_path / "model.safetensors")
    assert card.backbone == {"kind": "import_net:Net", "width": 6} and card.image_size == 32
    assert torch.equal(saved["stem.weight"], state["stem.weight"].flip(1))
    network = backbones.create({"kind": "mbf", "embedding_size": 64})
    torch.save({"net": network.state_dict()}, tmp_path / "mbf.pth")
    spec = "{kind: mbf, embedding_size: 64}"
    margrave("import", "mbf.pth", "mbf.safetensors", "--backbone", spec, cwd=tmp_path)
    assert load_model(tmp_path / "mbf.safetensors")[1].backbone["kind"] == "mbf"


def test_a_printed_recipe_is_the_recipe() -> None:
    for name in recipe_names():
        assert CliRunner().invoke(app, ["recipes", name]).output == recipe_text(name)


def test_the_version(tmp_path: Path) -> None:
    assert margrave_process("--version", cwd=tmp_path).strip() == __version__


def test_losses_and_recipes_are_listed(tmp_path: Path) -> None:
    assert "curricularface" in margrave("losses", cwd=tmp_path)
    assert "arXiv 2204.00964" in CliRunner().invoke(app, ["losses", "adaface"]).output
    assert "adaface_ms1mv2" in CliRunner().invoke(app, ["recipes"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "smal"], "no recipe and no file 'smal'; did you mean 'small'"),
        (["train", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["train", "--set", "epochs=1"], "no setting 'epochs'; did you mean training.epochs?"),
        (["train", "--set", "data.train=faces"], "'faces': must be a block of settings by name"),
        (["compare", "nothing", "nothing"], "nothing: no such file or folder"),
        (["compare", ".", "."], ". contains neither features nor results"),
        (["evaluate", "pairs", "."], "is a folder without model.safetensors"),
        (["align", "nothing", "crops"], "nothing: no such folder"),
        (["verify", "m.onnx", "a.jpg", "b.jpg"], "margrave verify a.jpg b.jpg --model m.onnx"),
        (["verify", "a.jpg"], "give two photos"),
        (["train"], "no training images: give --data FOLDER"),
        (["train", "--set", "training.epoch=1"], "did you mean 'epochs'"),
        (
            ["train", "--data", ".", "--loss", "adafase"],
            "unknown loss 'adafase'; did you mean 'adaface'",
        ),
        (["train", "--resume", "nowhere"], "nowhere is not a run's folder"),
        (["train", "small", "--resume", "x"], "you can add only --set"),
        (
            ["evaluate", "pairs", "nothing.safetensors", "--images", "."],
            "nothing.safetensors: no such file or folder",
        ),
        (["import", "nothing.pth", "model.safetensors"], "nothing.pth"),
        (
            ["import", "nothing.pth", "model.pth"],
            "the name of the model file must end in .safetensors",
        ),
        (["losses", "adafase"], "did you mean 'adaface'"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    output = " ".join(margrave(*arguments, cwd=tmp_path, code=1).split())
    assert message in output


def test_a_run_goes_on_where_its_images_have_moved(run: Path, faces: Path, tmp_path: Path) -> None:
    moved, copy = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(faces, moved)
    shutil.copytree(run, copy)
    (moved / "s.gif").write_bytes(b"")
    (moved / faces_of(moved) / "animated.gif").write_bytes(b"")
    output = margrave("train", "--resume", str(copy), "--data", str(moved), cwd=tmp_path)
    assert "training has finished" in output
    assert "images left out because of their format: 1 .gif; convert them to JPEG or PNG" in output


def test_a_refused_resume_changes_nothing(run: Path, faces: Path, tmp_path: Path) -> None:
    copy, fewer = tmp_path / "run", tmp_path / "fewer"
    shutil.copytree(run, copy)
    shutil.copytree(faces, fewer)
    shutil.rmtree(fewer / faces_of(fewer))
    stored = (copy / "config.yaml").read_text()
    resume = ["train", "--resume", str(copy)]
    output = margrave(*resume, "--data", str(fewer), cwd=tmp_path, code=1)
    assert "the training images or their identities have changed" in output
    output = margrave(*resume, "--set", "loss.margin=0.3", cwd=tmp_path, code=1)
    assert "already finished all 1 epochs" in output
    assert (copy / "config.yaml").read_text() == stored


def faces_of(folder: Path) -> str:
    """Some identity's folder."""
    return min(entry.name for entry in folder.iterdir() if entry.is_dir())


def test_a_run_is_not_overwritten(run: Path, faces: Path) -> None:
    output = margrave(
        "train", "small", "--data", str(faces), "-o", run.name, cwd=run.parent, code=1
    )
    assert "already contains a run" in output


def test_the_demo_small(tmp_path: Path) -> None:
    output = margrave(
        "demo", "-o", "demo", *TINY,
        "--set", "data.train.num_identities=10", "--set", "data.train.images_per_identity=4",
        "--set", "evaluation.sets.unseen.images.num_identities=20",
        "--set", "evaluation.sets.unseen.pairs=100", cwd=tmp_path,
    )  # fmt: skip
    assert "held-out identities" in output
    assert "parts of the data" in output
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"faces.png", "curves.png", "results.json", "model.safetensors"} <= names


def test_insightfaces_files_are_taken_as_they_are(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "recordio"
    where = ("--data", str(golden), "--output", str(tmp_path / "run"))
    bin_set = f"evaluation.sets.lfw.pairs_file={golden / 'pairs_protocol2.bin'}"
    trained = CliRunner().invoke(app, ["train", "small", *where, *TINY, "--set", bin_set])
    assert trained.exit_code == 0, trained.output
    assert "40 images of 10 identities (records)" in trained.output
    (result,) = read_results(tmp_path / "run" / "results.json")
    assert result.name == "lfw" and result.counts["pairs"] == 40
    words = ["evaluate", "pairs", str(tmp_path / "run"), str(golden / "pairs_numpy_bool.bin")]
    evaluated = CliRunner().invoke(app, words)
    assert evaluated.exit_code == 0 and "pairs_numpy_bool" in evaluated.output
    both = CliRunner().invoke(app, [*words, "--images", "faces"])
    assert "contains its own images" in str(both.exception)
