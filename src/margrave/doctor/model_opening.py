"""Opens any kind of model file for examination, and collects the findings made while opening it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from margrave.doctor.findings import Finding
from margrave.doctor.weight_checks import check_weights
from margrave.files import is_onnx, is_safetensors, onnx_tensors
from margrave.inference import Embedder
from margrave.models import (
    CARD_KEY,
    ImportOptions,
    Model,
    ModelCard,
    card_for,
    load_strictly,
    model_path,
    network_for,
    open_model,
    read_checkpoint,
)
from margrave.models.onnx_card import adjacent_card, check_uint8_statistics, import_command
from margrave.models.onnx_file import OnnxBackbone
from margrave.models.pixel_statistics import ColorOrder, check_pixel_statistics


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """The result of opening a model for examination.

    Attributes:
        findings: the findings made while opening it.
        embedder: the model, or None if it cannot be used.
        preparation_assumed: True if the preparation of images was assumed, because neither the file
            nor the user states it.
        color_order: the color order that the weights are assumed to expect; None for a Margrave
            model, which may have been imported from weights of either order.
    """

    findings: list[Finding]
    embedder: Embedder | None = None
    preparation_assumed: bool = False
    color_order: ColorOrder | None = None


def _create_embedder(model: Model) -> Embedder:
    return Embedder(model.backbone, model.card, model.card.fit)


def open_for_examination(path: str | Path, options: ImportOptions, trust_code: bool) -> OpenedModel:
    """Open a model file, a run's folder, an ONNX model or another project's checkpoint.

    Args:
        path: the file or folder.
        options: what an ONNX model or a checkpoint does not state, such as the preparation of
            images.
        trust_code: import and run custom network code.
    """
    path = model_path(path)
    if is_onnx(path):
        return _open_onnx(path, options)
    try:
        model = open_model(path, trust_code=trust_code)
    except ValueError as error:
        return _open_checkpoint(path, error, options)
    return _open_margrave_model(model)


def _open_margrave_model(model: Model) -> OpenedModel:
    """Check the weights of a Margrave model and create its embedder."""
    findings = [*check_weights(model.state), _describe_card(model.card)]
    if any(finding.severity == "serious" for finding in findings):
        return OpenedModel(findings=findings)
    try:
        return OpenedModel(findings=findings, embedder=_create_embedder(model))
    except ValueError as error:
        return OpenedModel(findings=[*findings, _misfit_finding(error)])


def _describe_card(card: ModelCard) -> Finding:
    """A note on the model: its backbone, preparation of images and source."""
    order = card.color_order.upper()
    return Finding(
        fault="model",
        severity="note",
        message=f"{card.backbone['kind']}, {card.image_size} x {card.image_size} {order}, "
        f"(pixel - {card.mean}) / {card.std}{card.source and f'; {card.source}'}",
        remedy="none needed",
        share=0.0,
    )


def _open_onnx(path: Path, options: ImportOptions) -> OpenedModel:
    """Open an ONNX model.

    The preparation of images is taken from the options, otherwise from the model's card. What
    neither states is assumed.
    """
    findings: list[Finding] = []
    try:
        state = {name: torch.from_numpy(np.array(values)) for name, values in onnx_tensors(path)}
        findings += check_weights(state)
        card_beside_file = adjacent_card(path)
        output = options.output or (card_beside_file and card_beside_file.backbone.get("output"))
        network = OnnxBackbone(path, output=output)
    except ValueError as error:
        return OpenedModel(findings=[*findings, _unusable_finding(error)])
    statistics = {"mean": options.mean, "std": options.std, "color_order": options.color_order}
    given = {name: value for name, value in statistics.items() if value is not None}
    card = None
    try:
        model = open_model(path)
    except ValueError as error:
        # A model without a card cannot be opened by open_model, but is examined below.
        if card_beside_file is not None or CARD_KEY in network.metadata:
            return OpenedModel(findings=[*findings, _unusable_finding(error)])
    else:
        card = model.card
        if not (given or options.output):
            findings.append(_describe_card(card))
            return OpenedModel(
                findings=findings, embedder=_create_embedder(model), color_order=card.color_order
            )
    # A network that takes uint8 normalizes the pixels itself.
    needed = {"color_order"} if network.takes_uint8 else {"mean", "std", "color_order"}
    assumed = needed - given.keys() if card is None else set()
    if card is None:
        mean, std = (0.0, 1.0) if network.takes_uint8 else (0.5, 0.5)
        size = network.image_size or options.image_size or 112
        card = ModelCard(backbone={"kind": "onnx"}, image_size=size, mean=mean, std=std)
    try:
        check_pixel_statistics(mean=options.mean, std=options.std)
        check_uint8_statistics(network, options.mean, options.std)
        card = replace(card, **given)
        network.check_batching(card)
    except ValueError as error:
        return OpenedModel(findings=[*findings, _unusable_finding(error)])
    if assumed:
        values = {name: getattr(card, name) for name in statistics if name in assumed}
        listed = ", ".join(f"{name} = {value}" for name, value in values.items())
        findings.append(
            Finding(
                fault="preparation_not_checked",
                severity="unchecked",
                message=f"the file does not state how images must be prepared; assumed: {listed}",
                remedy=f"create a card: {import_command(path)}",
                share=0.0,
            )
        )
    else:
        findings.append(_describe_card(card))
    return OpenedModel(
        findings=findings,
        embedder=Embedder(network.eval(), card, card.fit),
        preparation_assumed=bool(assumed),
        color_order=card.color_order,
    )


def _open_checkpoint(path: Path, model_error: ValueError, options: ImportOptions) -> OpenedModel:
    """Open another project's checkpoint.

    Args:
        path: the checkpoint.
        model_error: the error that was raised when the file was opened as a Margrave model.
        options: what the checkpoint does not state.
    """
    try:
        state = read_checkpoint(path, options.key)
    except ValueError as error:
        unreadable = Finding(
            fault="unreadable_checkpoint",
            severity="serious",
            # A safetensors file may be a Margrave model, so report why it could not be opened as
            # one.
            message=str(model_error if is_safetensors(path) else error),
            remedy="do what the message says; if it names no remedy, download the file again or "
            "save it again: torch.save(model.state_dict(), PATH)",
        )
        return OpenedModel(findings=[unreadable])
    findings = list(check_weights(state))
    try:
        network, imported = network_for(state, options, str(path))
    except ValueError as error:
        findings.append(
            Finding(
                fault="unknown_layout",
                severity="serious",
                message=f"{error} (when opened as a Margrave model file: {model_error})"
                if is_safetensors(path)
                else str(error),
                remedy="margrave import --help names the supported projects; for your own network, "
                "give --backbone my_module:MyNetwork to margrave doctor and margrave import",
            )
        )
        return OpenedModel(findings=findings)
    try:
        load_strictly(network, imported.state, str(path), imported.names)
    except ValueError as error:
        return OpenedModel(findings=[*findings, _misfit_finding(error)])
    kind = imported.backbone["kind"]
    notes = "".join(f"; {note}" for note in imported.notes)
    findings.append(
        Finding(
            fault="foreign_checkpoint",
            severity="note",
            message=f"a checkpoint of layout {imported.layout} ({kind}), for pixels "
            f"normalized as (pixel - {imported.mean}) / {imported.std}{notes}",
            remedy=f"convert it to a model file: margrave import {path} MODEL.safetensors",
            share=0.0,
        )
    )
    card = card_for(imported, options.image_size)
    embedder = Embedder(network.eval(), card)
    return OpenedModel(findings=findings, embedder=embedder, color_order=imported.color_order)


def _unusable_finding(error: ValueError) -> Finding:
    """The finding that an ONNX model cannot be used."""
    return Finding(
        fault="unusable_onnx_model",
        severity="serious",
        message=str(error),
        remedy="do what the message says; if the card is missing or wrong, create one: margrave "
        "import MODEL.onnx COPY.onnx",
    )


def _misfit_finding(error: ValueError) -> Finding:
    """The finding that the weights do not fit the network."""
    return Finding(
        fault="misfitting_weights",
        severity="serious",
        message=str(error),
        remedy="the weights belong to another network: export the model again",
    )
