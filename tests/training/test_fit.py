"""The loop: it learns, resumes bit for bit, accumulates exactly, and stops with a diagnosis."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave.data import FaceImages, ShardImages, TrainingImages, WindowSampler, pack_shards
from margrave.heads import RowwiseSGD
from margrave.losses import create
from margrave.training import (
    NonFiniteLossError,
    TrainingSettings,
    TrainingState,
    fit,
    latest_checkpoint,
    read_metrics,
    set_up,
)
from margrave.training import loop as loop_module
from margrave.training.interruption import StopSignals
from margrave.training.transfer import PrefetchedBatches

SIZE, CLASSES, EACH = 16, 4, 12


class Patches:
    """Tiny images whose identity is a pattern under noise; some can be made unreadable."""

    def __init__(self, unreadable: tuple[int, ...] = ()) -> None:
        self.labels = np.repeat(np.arange(CLASSES), EACH)
        self.class_names = [f"pattern {number}" for number in range(CLASSES)]
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"patch {index}"

    def read(self, index: int) -> np.ndarray:
        if index in self.unreadable:
            raise ValueError(f"patch {index} is torn")
        pattern = np.random.default_rng(int(self.labels[index])).integers(0, 256, (SIZE, SIZE, 3))
        noise = np.random.default_rng(1000 + index).normal(0, 30, (SIZE, SIZE, 3))
        return (pattern + noise).clip(0, 255).astype(np.uint8)


BACKBONE = {
    "kind": "iresnet",
    "block_counts": (1, 1, 1, 1),
    "channels": (4, 4, 8, 8),
    "image_size": SIZE,
    "embedding_size": 8,
    "dropout": 0.1,
}


def training(
    images: FaceImages | None = None,
    loss: dict | None = None,
    head: dict | None = None,
    **settings,
) -> TrainingState:
    values = {"epochs": 3, "batch_size": 8, "log_steps": 1, "threads": 1, "accelerator": "cpu"}
    values["precision"] = "float32"
    return set_up(
        TrainingSettings.model_validate(values | settings),
        TrainingImages(images or Patches(), SIZE),
        CLASSES,
        BACKBONE,
        create(loss or {"kind": "adaface", "scale": 16}),
        head or {"kind": "chunked"},
    )


def weights(trained: TrainingState) -> dict[str, torch.Tensor]:
    return trained.tensors()


def assert_identical(one: TrainingState, other: TrainingState) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(folder: Path, kind: str | None = None) -> list[dict]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k != "images_per_second"}
        for line in lines
        if kind in (None, line["kind"])
    ]


def test_it_learns(tmp_path: Path) -> None:
    trained = training(epochs=6, optimizer={"learning_rate": 0.05})
    fit(trained, tmp_path)
    losses = [line["loss"] for line in curve(tmp_path, "training")]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


class Stop(Exception):
    """Raised in the middle of a run in place of kill -9, which `tests/training/test_kill` sends."""


@pytest.mark.parametrize(
    ("loss", "stop_at"),
    [
        ({"kind": "adaface"}, 1),
        ({"kind": "curricularface"}, 6),
        ({"kind": "kappaface", "estimator": "momentum_encoder"}, 13),
        ({"kind": "kappaface", "estimator": "memory_buffer"}, 7),
        ({"kind": "sphereface"}, 12),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else str(value),
)
def test_resuming_continues_the_very_same_curve(tmp_path: Path, loss: dict, stop_at: int) -> None:
    settings = {"weight_average": 0.9, "checkpoint_seconds": 0.0}
    full = training(loss=loss, **settings)
    fit(full, tmp_path / "whole")

    def stop(report) -> None:
        if report.step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        fit(training(loss=loss, **settings), tmp_path / "cut", report=stop)
    again = training(loss=loss, **settings)
    torch.rand(5)  # whatever state the process is in
    resume = latest_checkpoint(tmp_path / "cut") is not None
    fit(again, tmp_path / "cut", resume=resume)
    assert_identical(again, full)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_shards_resume_at_the_very_next_image(tmp_path: Path) -> None:
    pack_shards(Patches(), tmp_path / "shards", SIZE, images_per_shard=20)
    settings = {"checkpoint_seconds": 0.0, "workers": 2, "epochs": 2}

    def one() -> TrainingState:
        return training(ShardImages(tmp_path / "shards", piece_images=4), **settings)

    full = one()
    assert isinstance(full.sampler, WindowSampler)
    fit(full, tmp_path / "whole")

    def stop(report) -> None:
        if report.step == 9:
            raise Stop

    with pytest.raises(Stop):
        fit(one(), tmp_path / "cut", report=stop)
    again = one()
    fit(again, tmp_path / "cut", resume=True)
    assert_identical(again, full)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone, helped = training(epochs=1), training(epochs=1, workers=2)
    fit(alone, tmp_path / "alone")
    fit(helped, tmp_path / "helped")
    assert_identical(alone, helped)


def test_accumulated_gradient_is_the_whole_batchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the network's batch norm and dropout at rest, and an uneven cut of 7 into 3."""
    gradients = []
    for accumulate in (1, 3):
        settings = {"batch_size": 7, "accumulate": accumulate, "epochs": 1}
        one = training(loss={"kind": "arcface"}, **settings)
        one.network.eval()
        monkeypatch.setattr(one.optimizer, "zero_grad", lambda: None)
        one.sampler.start_at(0, 0)
        batches = PrefetchedBatches(one.loader, one.fabric.device)
        loop_module._train_step(
            one, batches, [7], tmp_path, checkpoint_due=False, stop_signals=StopSignals()
        )
        gradients.append([p.grad.clone() for p in one.network.parameters() if p.grad is not None])
    for full, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(full, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "accumulate"), [("arcface", 1), ("arcface", 2), ("softmax", 1)])
def test_the_mean_target_cosine_is_reported(tmp_path: Path, kind: str, accumulate: int) -> None:
    one = training(loss={"kind": kind}, accumulate=accumulate, epochs=2)
    seen, reported = [], []
    prepare = one.head.prepare

    def watch(*given, **named):
        batch = prepare(*given, **named)
        assert one.head.target_cosines.equal(batch.target_cosine)
        if one.head.training:  # What the loss adapts is measured with the same call.
            seen.append(batch.target_cosine.mean().item())
        return batch

    one.head.prepare = watch
    fit(one, tmp_path, report=lambda step: reported.append(step.target_cosine))
    logged = [line.get("target_cosine") for line in curve(tmp_path, "training")]
    assert logged == reported
    if kind == "softmax":
        assert set(reported) == {None}
        return
    means = np.array(seen).reshape(-1, accumulate).mean(1)
    np.testing.assert_allclose(reported, means, rtol=1e-5)
    assert reported[-1] > reported[0]


def test_norms_and_biases_do_not_decay() -> None:
    groups = training().optimizer.param_groups
    decaying, resting = groups
    assert decaying["weight_decay"] > 0
    assert resting["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
    assert all(parameter.ndim <= 1 for parameter in resting["params"])


def test_bfloat16_runs(tmp_path: Path) -> None:
    trained = training(epochs=1, precision="bfloat16")
    fit(trained, tmp_path)
    assert all(torch.isfinite(value).all() for value in weights(trained).values())
    assert trained.head.weight.dtype == torch.float32


def test_a_non_finite_loss_stops_with_a_diagnosis(tmp_path: Path) -> None:
    broken = training(optimizer={"learning_rate": 1e30})
    with pytest.raises(NonFiniteLossError) as caught:
        fit(broken, tmp_path)
    message = str(caught.value)
    assert "training stopped at step" in message
    assert "lower training.optimizer.learning_rate" in message
    assert "no checkpoint yet" in message


def test_the_diagnosis_names_samples_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    first = training(epochs=1)
    fit(first, tmp_path)
    again = training(epochs=2)

    def poison(report) -> None:
        with torch.no_grad():
            again.network.conv1.weight.fill_(float("nan"))  # type: ignore[union-attr]

    with pytest.raises(
        NonFiniteLossError, match="8 of 8 embeddings from the backbone are not finite"
    ) as caught:
        fit(again, tmp_path, resume=True, report=poison)
    assert f"the last good checkpoint is {latest_checkpoint(tmp_path)}" in str(caught.value)
    assert "samples: patch" in str(caught.value)


def test_unreadable_images_are_named_and_skipped(tmp_path: Path) -> None:
    trained = training(Patches(unreadable=(3, 17)), epochs=2)
    fit(trained, tmp_path)
    assert trained.unreadable == {
        "patch 3": "patch 3 is torn",
        "patch 17": "patch 17 is torn",
    }


def test_too_many_unreadable_images_end_the_run(tmp_path: Path) -> None:
    images = Patches(unreadable=tuple(range(10)))
    with pytest.raises(ValueError, match=r"more than training.maximum_unreadable = 3(.|\n)*torn"):
        fit(training(images, maximum_unreadable=3), tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(training(epochs=1), tmp_path)
    with pytest.raises(ValueError, match="does not fit this configuration"):
        fit(training(loss={"kind": "curricularface"}), tmp_path, resume=True)


class Foreign:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/executed-from-a-checkpoint"),)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 torn", pickle.dumps(3), pickle.dumps(Foreign())]
)
@pytest.mark.parametrize("name", ["state.json", ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    fit(training(epochs=1), tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    (checkpoint / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint-1.*(is|:) damaged"):
        fit(training(), tmp_path, resume=True)
    assert not Path("/tmp/executed-from-a-checkpoint").exists()


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "state.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="checkpoint format 99"):
        fit(training(), tmp_path, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        fit(training(), tmp_path, resume=True)


def test_statistics_that_count_steps_move_once_a_step(tmp_path: Path) -> None:
    trained = training(loss={"kind": "sphereface"}, accumulate=4, epochs=1)
    fit(trained, tmp_path)
    assert trained.head.statistics["iteration"].count == trained.position.step == 6


def test_every_sample_of_an_accumulated_batch_is_gathered(tmp_path: Path) -> None:
    trained = training(loss={"kind": "kappaface"}, accumulate=3, batch_size=7, epochs=1)
    seen = []
    monitored = trained.head.statistics["class_concentration"]
    monitored.end_epoch = lambda: seen.append(int(monitored.count.sum()))
    fit(trained, tmp_path)
    assert seen == [42]


def test_other_training_images_are_refused(tmp_path: Path) -> None:
    fit(training(epochs=1), tmp_path)
    other = Patches()
    other.labels = other.labels[::-1].copy()
    with pytest.raises(ValueError, match="the training images or their identities have changed"):
        fit(training(other), tmp_path, resume=True)


def test_a_fresh_start_forgets_the_former_run(tmp_path: Path) -> None:
    fit(training(epochs=1), tmp_path)

    def stop(report) -> None:
        raise Stop

    with pytest.raises(Stop):
        fit(training(), tmp_path, report=stop)
    assert latest_checkpoint(tmp_path) is None


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    fit(training(epochs=1, loggers=("tensorboard",)), tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("log_steps", [1, 4])
def test_the_metrics_survive_two_interruptions(tmp_path: Path, log_steps: int) -> None:
    settings = {"epochs": 4, "log_steps": log_steps}
    fit(training(**settings), tmp_path / "whole")
    for stop_at in (9, 15):

        def stop(report, stop_at: int = stop_at) -> None:
            if report.step == stop_at:
                raise Stop

        resume = latest_checkpoint(tmp_path / "cut") is not None
        with pytest.raises(Stop):
            fit(training(**settings), tmp_path / "cut", resume=resume, report=stop)
    fit(training(**settings), tmp_path / "cut", resume=True)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_a_network_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Identity returned \(1, 3, 16, 16\)"):
        set_up(
            TrainingSettings(batch_size=8),
            TrainingImages(Patches(), SIZE),
            CLASSES,
            {"kind": "torch.nn:Identity"},
            create({"kind": "arcface"}),
            {"kind": "dense"},
        )


def test_sampled_classes_train_and_resume(tmp_path: Path) -> None:
    head = {"kind": "chunked", "sample_rate": 0.5}
    full, started = training(head=head, clip_norm=1.0), training(head=head, clip_norm=1.0)
    assert isinstance(full.optimizer, RowwiseSGD)
    fit(full, tmp_path / "whole")

    def stop(trained: TrainingState, log: object) -> None:
        if trained.position.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(started, tmp_path / "part", after_epoch=stop)
    resumed = training(head=head, clip_norm=1.0)
    fit(resumed, tmp_path / "part", resume=True)
    assert_identical(full, resumed)


def test_centres_updated_in_the_backward_pass_end_the_same(tmp_path: Path) -> None:
    apart, within = training(), training(optimizer={"centers_in_backward": True})
    assert within.head.weight.grad is None and not within.head.weight.requires_grad
    for number, trained in enumerate((apart, within)):
        fit(trained, tmp_path / str(number))
    torch.testing.assert_close(within.head.weight, apart.head.weight, rtol=1e-4, atol=1e-6)
    resumed = training(optimizer={"centers_in_backward": True})
    fit(resumed, tmp_path / "1", resume=True)
    assert torch.equal(resumed.head.weight_momentum, within.head.weight_momentum)


@pytest.mark.parametrize(
    ("settings", "head", "message"),
    [
        ({"optimizer": {"kind": "adamw"}}, {"sample_rate": 0.5}, "head.sample_rate gives"),
        (
            {"optimizer": {"kind": "adamw", "centers_in_backward": True}},
            {},
            "centers_in_backward needs optimizer kind sgd",
        ),
        (
            {"optimizer": {"centers_in_backward": True}, "accumulate": 2},
            {},
            "accumulate = 2 needs the class centers' gradient",
        ),
        (
            {"optimizer": {"centers_in_backward": True}},
            {"kind": "dense"},
            "cannot update its class centers in the backward pass",
        ),
    ],
)
def test_settings_that_contradict_are_named(settings: dict, head: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(head={"kind": "chunked"} | head, **settings)
