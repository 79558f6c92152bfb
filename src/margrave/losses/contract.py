"""The base class of losses, and the values that it computes from.

Shapes: B samples, C classes, K of these classes (all, a block, a shard or a sample of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from margrave.registry import Registry

# Loss files import torch only for types or within functions, so that `margrave losses` lists the
# losses in a tenth of the time that importing torch takes.
if TYPE_CHECKING:
    from torch import Tensor


class Context(Mapping[str, "Tensor"]):
    """A loss's inputs besides the cosines: feature norms and the values of the statistics.

    The head creates a context in each step: a frozen mapping from names to tensors of shape () or
    (B, …). A statistic may supply any name, which a loss reads as ``context[name]``. The names
    below are also attributes.

    Attributes:
        feature_norm: (B,) ‖x‖ of the unnormalized embeddings, with gradient.
        feature_norm_mean: () running mean of the norms clipped to [0.001, 100].
        feature_norm_std: () running standard deviation of the clipped norms.
        mean_target_cosine: () running mean of cosθ_y.
        margin_weight: (B,) factor for the margin of each sample's class.
        iteration: () number of training steps so far, including this one.

    >>> import torch
    >>> context = Context(feature_norm=torch.ones(2)) | {"noise": torch.tensor(0.5)}
    >>> context["noise"], context.iteration, list(context)
    (tensor(0.5000), None, ['feature_norm', 'noise'])
    """

    feature_norm: Tensor | None = None
    feature_norm_mean: Tensor | None = None
    feature_norm_std: Tensor | None = None
    mean_target_cosine: Tensor | None = None
    margin_weight: Tensor | None = None
    iteration: Tensor | None = None

    _values: Mapping[str, Tensor]

    def __init__(self, **values: Tensor | None) -> None:
        present = {name: value for name, value in values.items() if value is not None}
        attributes = {name: present[name] for name in ATTRIBUTES & present.keys()}
        vars(self).update(attributes, _values=present)

    def select_samples(self, rows: slice) -> Context:
        """The context of a slice of the batch's samples."""
        values = self._values.items()
        return Context(**{name: v if v.ndim == 0 else v[rows] for name, v in values})

    def __or__(self, values: Mapping[str, Tensor]) -> Context:
        """A copy of this context with some values added or replaced."""
        return Context(**{**self._values, **values})

    def __getitem__(self, name: str) -> Tensor:
        """The value with this name, which must exist.

        Raises:
            ValueError: no statistic supplied it.

        >>> Context()["feature_norm"]
        Traceback (most recent call last):
            ...
        ValueError: this loss reads 'feature_norm', which the context does not contain; \
add its statistic to the loss's needs
        """
        if name not in self._values:
            raise ValueError(
                f"this loss reads {name!r}, which the context does not contain; "
                "add its statistic to the loss's needs"
            )
        return self._values[name]

    # Mapping's own versions of these two methods expect a KeyError for unknown names.
    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or the default if it does not exist."""
        return self._values.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Context is frozen: use context | {{{name!r}: …}}")

    def __repr__(self) -> str:
        return f"Context({dict(self._values)})"


@dataclass(frozen=True, kw_only=True)
class SigmoidTerms:
    """The weights and the initial bias of a loss with one sigmoid per class instead of a softmax.

    loss = w·log(1 + e^{−(s·T + b)}) + w′·Σ_{j≠y} log(1 + e^{s·N_j + b}); the head learns b, which
    is the same for all classes.

    Attributes:
        target_weight: w, at least 0.
        negatives_weight: w′, at least 0.
        initial_bias: b before training.
    """

    target_weight: float
    negatives_weight: float
    initial_bias: float


ATTRIBUTES = frozenset(name for name in Context.__annotations__ if not name.startswith("_"))
"""The names of values that are also attributes of a `Context`."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A margin loss as a pure function of cosines.

    loss = −log( e^{s·T} / (e^{s·T} + Σ_{j≠y} e^{s·N_j}) ) + penalty, where T is `target` and N_j is
    `negatives`; a loss with `sigmoid_terms` is a sum of one sigmoid loss per class instead.
    `negatives` must be elementwise over classes, so that a head can apply it to any subset of the
    classes. A subclass overrides `target`, `negatives` or both; its fields define its
    hyperparameters and its configuration schema.

    Attributes:
        scale: s, the inverse temperature.
        straight_through: ignore the margin in the gradient, so dT/d cosθ_y = 1, as in InsightFace's
            code. The value is unchanged; the gradient is no longer exact.
        ignore_negatives_above: leave out negatives whose cosine exceeds this limit in (-1, 1];
            None keeps all. Among millions of identities, such a negative is most often the same
            person under another label.
    """

    normalized: ClassVar[bool] = True
    """Whether the head passes cosines (True) or inner products W_jᵀx + b_j (False)."""

    contains_scale: ClassVar[bool] = False
    """Whether T and N_j already include a scale; `Composed` refuses such a loss."""

    scale: float = 64.0
    straight_through: bool = False
    ignore_negatives_above: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.settings().items():
            if isinstance(value, float):
                self.require(name, math.isfinite(value), "finite")
        self.require("scale", self.scale > 0, "above 0")
        limit = self.ignore_negatives_above
        if limit is not None:
            self.require("ignore_negatives_above", -1 < limit <= 1, "in (-1, 1]")
            self.require("ignore_negatives_above", self.normalized, "None: softmax has no cosines")

    def require(self, field: str, holds: bool, rule: str) -> None:
        """Raise a ValueError about a hyperparameter unless `holds`; `rule` completes "must be"."""
        if not holds:
            raise ValueError(
                f"{type(self).__name__}.{field} = {getattr(self, field)!r} must be {rule}"
            )

    @property
    def needs(self) -> Mapping[str, Mapping[str, Any]]:
        """The statistics that this loss reads: name -> settings."""
        return {}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """(B,) T, the modified target cosine; `cosine` (B,) is the unmodified one."""
        del context
        return cosine

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        """(B, K) N, the modified cosines of the negative classes; elementwise over classes.

        `target_cosine` (B,) is the unmodified cosθ_y without gradient. Use it only to decide which
        negatives are hard.
        """
        del target_cosine, context
        return cosines

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None] | None:
        """(B, K) N and (B, K) dN/d cosθ_j: an optional optimization that avoids autograd.

        The slope is a new tensor, or None if it is 1 everywhere. If the method returns None instead
        of a pair, heads compute the slope by autograd; this is the default for subclasses that
        override `negatives`. Return a pair only if N depends on no context value with a gradient,
        because heads would not compute that gradient.
        """
        del target_cosine, context
        return (cosines, None) if type(self).negatives is Loss.negatives else None

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        """(B, K) bool, the negatives that this loss re-weights; by default none."""
        import torch

        del target_cosine, context
        return torch.zeros_like(cosines, dtype=torch.bool)

    def sigmoid_terms(self, num_classes: int) -> SigmoidTerms | None:
        """The weights and initial bias of a loss with one sigmoid per class.

        By default None, for a softmax over classes.
        """
        del num_classes
        return None

    def modify_cross_entropy(
        self, cross_entropy: Tensor, gather_cross_entropy: Callable[[], Tensor]
    ) -> Tensor:
        """(B,) the samples' losses from their cross entropies (B,); by default unchanged.

        `gather_cross_entropy` returns the cross entropies of all ranks' samples, without gradient.
        """
        del gather_cross_entropy
        return cross_entropy

    def penalty(self, context: Context) -> Tensor | None:
        """(B,) additive regularizer, or None."""
        del context
        return None

    def modify_target(self, cosine: Tensor, context: Context) -> Tensor:
        """`target` with the gradient that `straight_through` selects; heads call this."""
        target = self.target(cosine, context)
        return cosine + (target - cosine).detach() if self.straight_through else target

    def modify_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        """`negatives`, with −∞ where `ignore_negatives_above` leaves them out; heads call this.

        Source: PartialFC's ``interclass_filtering_threshold`` in deepinsight/insightface, which
        sets such logits to 0 instead.
        """
        return self._without_ignored(self.negatives(cosines, target_cosine, context), cosines)

    def modify_negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None] | None:
        """The counterpart of `negatives_and_slope` for `modify_negatives`; heads call this."""
        analytic = self.negatives_and_slope(cosines, target_cosine, context)
        if analytic is None:
            return None
        # The slope of −∞ does not matter: such a negative's probability is 0.
        return self._without_ignored(analytic[0], cosines), analytic[1]

    def _without_ignored(self, negatives: Tensor, cosines: Tensor) -> Tensor:
        if self.ignore_negatives_above is None:
            return negatives
        return negatives.masked_fill(cosines.detach() > self.ignore_negatives_above, -math.inf)

    def settings(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


LOSSES: Registry[type[Loss]] = Registry("loss")
