"""The interface of every protocol: settings, and a method that turns features into results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from margrave.data import ReadableImages, open_source
from margrave.distributed import World
from margrave.evaluation import Result
from margrave.inference import Features
from margrave.progress import Progress
from margrave.registry import Registry
from margrave.settings import Settings


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation that do not depend on the protocol.

    Attributes:
        resamples: number of bootstrap replicates; 0 for no intervals.
        seed: seed of the bootstrap.
        device: the device that computes the scores.
        world: the processes that share the work, for protocols that are ``distributed``.
        progress: called with (comparisons done, total).
        state: the file that the evaluation saves its state to and resumes from; None saves nothing.
    """

    resamples: int = 1000
    seed: int = 0
    device: str = "cpu"
    world: World = field(default_factory=World)
    progress: Progress | None = None
    state: Path | None = None

    @property
    def search(self) -> dict[str, Any]:
        """The keyword arguments that the functions for all-to-all and 1:N evaluation share."""
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "device": self.device,
            "progress": self.progress,
        }


class Protocol(Settings):
    """A published method of evaluating features.

    A subclass is registered by name. The first line of its docstring is its help text. Its fields,
    which must be documented, are its settings; on the command line, those in ``positional`` are
    arguments and the others are options. A new protocol only requires one file in this folder.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    """The fields that are positional arguments on the command line."""
    distributed: ClassVar[bool] = False
    """Whether processes can share the work, and an interrupted evaluation can be resumed."""
    labeled: ClassVar[bool] = False
    """Whether the images must have labels."""

    @property
    def name(self) -> str:
        """The registered name; without one, the import path."""
        for name in PROTOCOLS:
            if PROTOCOLS.get(name) is type(self):
                return name
        return f"{type(self).__module__}:{type(self).__qualname__}"

    def open_images(self, source: str | None, image_size: int) -> ReadableImages:
        """Open the images that a model must embed for this protocol.

        Args:
            source: the path or URL of the images; None if the user did not specify it.
            image_size: the model's input size in pixels, for protocols that align photos.

        Raises:
            ValueError: ``source`` is None, or there are no images.
        """
        del image_size
        # None uses labels if the source has them; False would ignore them.
        return open_source(required_source(source), labeled=True if self.labeled else None)

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate features and return one or several results."""
        raise NotImplementedError


def required_source(source: str | None) -> str:
    """Return ``source``, which must not be None.

    Raises:
        ValueError: ``source`` is None.
    """
    if source is None:
        raise ValueError("no images to embed; give them with --images FOLDER")
    return source


PROTOCOLS: Registry[type[Protocol]] = Registry("protocol")


def evaluate(
    protocol: str | Protocol,
    features: Features,
    options: EvaluationOptions | None = None,
    **settings: Any,
) -> tuple[Result, ...]:
    """Evaluate features by a protocol.

    Args:
        protocol: a registered name or an import path ``module:Class``; or a protocol object.
        features: features in memory (``embed_features``) or from a store (``FeatureStore``).
        options: options that do not depend on the protocol.
        settings: the protocol's settings, unless ``protocol`` is an object.

    Returns:
        The protocol's results; each also records the settings and the features' origin.

    Raises:
        ValueError: the protocol or a setting is unknown, a file is malformed, or an image has no
            features.
    """
    options = options or EvaluationOptions()
    if isinstance(protocol, str):
        protocol = PROTOCOLS.create({"kind": protocol, **settings})
    assert isinstance(protocol, Protocol)
    recorded = protocol.model_dump(mode="json") | {
        "resamples": options.resamples,
        "seed": options.seed,
    }
    return tuple(
        replace(result, protocol=protocol.name, settings=recorded, origin=features.origin)
        for result in protocol.evaluate(features, options)
    )
