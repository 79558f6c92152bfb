"""Every official loss: value, both gradients and the buffers, to 1e-9 in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from margrave.heads import DenseHead
from margrave.losses import create
from margrave.statistics.class_concentration import concentration_weight, size_weight

FOLDER = Path(__file__).parents[1] / "golden" / "losses"


def specification(name: str, param: dict) -> dict:
    """Our loss for an official one with the parameters of its golden file."""
    family = name.rsplit("_", 1)[0] if name[-1].isdigit() else name
    scale = {"scale": param["scale"]}
    margin = scale | {"margin": param.get("margin")}
    easy = {"easy_margin": param.get("easy_margin")}
    if family.startswith("mv_mv"):
        base = "cosine" if "_am_" in family else "angular"
        hard = {"kind": "mv_softmax", "base": base, "hard_weight": param["t"]}
        return hard | margin | easy
    return {
        "sv_am": {"kind": "sv_softmax", "base": "cosine", "hard_weight": param.get("t")} | margin,
        "sv_arc": {"kind": "sv_softmax", "base": "angular", "hard_weight": param.get("t")} | margin,
        "mv_am_easy": {"kind": "cosface"} | margin | easy,
        "mv_am_full": {"kind": "cosface"} | margin | easy,
        "mv_arc_easy": {"kind": "arcface", "beyond_pi": "none"} | margin | easy,
        "mv_arc_full": {"kind": "arcface", "beyond_pi": "none"} | margin | easy,
        "mv_fc_full": {"kind": "normface"} | scale,
        "arcface_monotone": {"kind": "arcface"} | margin,
        "adaface_repo_arcface": {"kind": "arcface", "beyond_pi": "clip"} | margin,
        "adaface_repo_cosface": {"kind": "cosface"} | margin,
        "insightface_combined_arc": {
            "kind": "combined",
            "angle_margin": param.get("m2"),
            "straight_through": True,
        }
        | scale,
        "insightface_combined_cos": {
            "kind": "combined",
            "angle_margin": param.get("m2"),
            "cosine_margin": param.get("m3"),
        }
        | scale,
        "curricularface": {"kind": "curricularface", "momentum": param.get("momentum")} | margin,
        "adaface": {
            "kind": "adaface",
            "concentration": param.get("h"),
            "norm_update_weight": param.get("t_alpha"),
            "epsilon": param.get("eps"),
        }
        | margin,
        "kappaface": {
            "kind": "kappaface",
            "temperature": param.get("temperature"),
            "concentration_share": param.get("gamma"),
            "estimator": "momentum_encoder",
            "beyond_pi": "none",
        }
        | margin,
    }[family]


def load(path: Path) -> tuple[dict, dict, dict[str, torch.Tensor]]:
    """A golden file as parameters, official buffers after each step, and tensors."""
    with np.load(path, allow_pickle=False) as archive:
        items = {key: archive[key] for key in archive.files}
    param = {k.removeprefix("param_"): v.item() for k, v in items.items() if k.startswith("param_")}
    buffers = {k.removeprefix("buffer_"): v for k, v in items.items() if k.startswith("buffer_")}
    tensors = {k: torch.from_numpy(v) for k, v in items.items() if v.ndim}
    return param, buffers, tensors


def assert_close(ours: torch.Tensor, official: torch.Tensor, relative: float = 1e-9) -> None:
    """Within `relative` of the official array's own magnitude."""
    assert (ours - official).abs().max() <= relative * official.abs().max()


def built(path: Path) -> tuple[DenseHead, dict, dict, dict[str, torch.Tensor]]:
    param, buffers, data = load(path)
    classes, features = data["weight"].shape
    head = DenseHead(create(specification(path.stem, param)), classes, features).double()
    with torch.no_grad():
        head.weight.copy_(data["weight"])
    return head, param, buffers, data


def our_buffer(head: DenseHead, official: str) -> torch.Tensor:
    statistic, attribute = {
        "t": ("target_cosine", "mean"),
        "batch_mean": ("feature_norm", "mean"),
        "batch_std": ("feature_norm", "deviation"),
    }[official]
    return getattr(head.statistics[statistic], attribute)


FILES = [path for path in sorted(FOLDER.glob("*.npz")) if path.stem != "kappaface_memory_buffer"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_official_steps(path: Path) -> None:
    head, param, buffers, data = built(path)
    if "t0" in param:
        our_buffer(head, "t").fill_(param["t0"])
    if "class_weights" in data:
        head.eval()
        head.statistics["class_concentration"].margin_weight.copy_(data["class_weights"])
    for step in range(len(data["loss"])):
        embeddings = data["embeddings"][step].clone().requires_grad_()
        head.weight.grad = None
        loss = head(embeddings, data["labels"][step])
        loss.backward()
        assert_close(loss, data["loss"][step])
        assert_close(embeddings.grad, data["grad_embeddings"][step])
        assert_close(head.weight.grad, data["grad_weight"][step])
        for name, after in buffers.items():
            if path.stem.startswith("adaface") and name == "t":
                continue  # a buffer that the official head never uses
            torch.testing.assert_close(
                our_buffer(head, name), torch.from_numpy(after[step]).squeeze(), rtol=1e-9, atol=0
            )


@pytest.mark.parametrize("name", ["kappaface_0", "kappaface_1"])
def test_kappaface_epoch(name: str) -> None:
    head, _, _, data = built(FOLDER / f"{name}.npz")
    for embeddings, labels in zip(data["epoch_embeddings"], data["epoch_labels"], strict=True):
        head(embeddings, labels, momentum_embeddings=embeddings)
    statistic = head.statistics["class_concentration"]
    torch.testing.assert_close(statistic.count, data["class_counts"].long())
    head.end_epoch()
    torch.testing.assert_close(statistic.concentration, data["kappa"], rtol=1e-9, atol=0)
    torch.testing.assert_close(statistic.margin_weight, data["class_weights"], rtol=1e-6, atol=1e-7)
    assert statistic.count.sum() == 0


def test_kappaface_memory_buffer() -> None:
    """One-image classes are left out: official κ ~ 1e17 there is the rounding error of 1 − r̄²."""
    param, _, data = load(FOLDER / "kappaface_memory_buffer.npz")
    samples, features = data["initial_memory"].shape
    loss = create(
        {
            "kind": "kappaface",
            "temperature": param["temperature"],
            "concentration_share": param["gamma"],
            "estimator": "memory_buffer",
            "memory_update_weight": param["memory_momentum"],
        }
    )
    head = DenseHead(loss, len(data["class_counts"]), features, num_samples=samples).double()
    statistic = head.statistics["class_concentration"]
    statistic.memory.copy_(data["initial_memory"])
    steps = len(data["embeddings"]) // len(data["kappa"])
    for step, (embeddings, labels) in enumerate(
        zip(data["embeddings"], data["labels"], strict=True)
    ):
        head(embeddings, labels, sample_indices=data["indices"][step])
        if (step + 1) % steps == 0:
            head.end_epoch()
            epoch = step // steps
            official, count = data["kappa"][epoch], data["class_counts"]
            torch.testing.assert_close(
                statistic.concentration[count > 1], official[count > 1], rtol=1e-9, atol=0
            )
            weight = param["gamma"] * concentration_weight(
                official, torch.ones_like(count, dtype=torch.bool), param["temperature"]
            )
            weight += (1 - param["gamma"]) * size_weight(count.double())
            torch.testing.assert_close(weight, data["class_weights"][epoch], rtol=1e-6, atol=1e-7)
