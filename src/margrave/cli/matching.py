"""Options and texts shared by verify, enroll, identify, forget, gallery and serve."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from margrave.matching import Face, Matcher, Verification

KEY_VARIABLE = "MARGRAVE_GALLERY_KEY"
"""The environment variable with the key of an encrypted gallery."""
GALLERY = "people.gallery"
"""The default gallery file."""

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model file, a run's folder, an .onnx file, or baseline: dlib's model (pip extra "
        "baseline).",
    ),
]
GalleryOption = Annotated[
    str, typer.Option("--gallery", "-g", help="A gallery file, or milvus://host:port/name.")
]
DetectorOption = Annotated[
    Path | None,
    typer.Option(help="Detect faces with this YuNet file; default: MTCNN (pip extra align)."),
]
AlignedOption = Annotated[
    bool, typer.Option("--aligned", help="Treat images as aligned crops; do not detect faces.")
]
UncheckedOption = Annotated[
    bool,
    typer.Option(
        "--unchecked", help="With --aligned: do not check that crops show an upright aligned face."
    ),
]
FarOption = Annotated[
    float | None,
    typer.Option(
        help="Use the model's threshold for this FAR; default: the smallest FAR with a threshold."
    ),
]
FloorOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="Refuse faces whose quality percentile among the model's reference faces is below "
        "this.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, …; default: CUDA if available.")]
TrustOption = Annotated[
    bool, typer.Option(help="Import and run custom network code that the model names.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON.")]


def alignment_options(yunet: Path | None, aligned: bool, unchecked: bool) -> dict[str, Any]:
    """The arguments of `Matcher.load` that result from --yunet, --aligned and --unchecked."""
    if unchecked and not aligned:
        raise ValueError("--unchecked needs --aligned; add --aligned, or omit --unchecked")
    return {
        "detector": None if yunet is None else str(yunet),
        "aligned": aligned,
        "check_alignment": not unchecked,
    }


def gallery_key() -> str | None:
    """The key of an encrypted gallery, from the environment; None if it is not set."""
    return os.environ.get(KEY_VARIABLE) or None


def verification_record(result: "Verification") -> dict[str, Any]:
    """Convert a verification to a record for JSON."""
    from dataclasses import asdict

    return {
        "same": result.same,
        "similarity": result.similarity,
        "threshold": result.point.threshold,
        "log_likelihood_ratio": result.log_likelihood_ratio,
        "probability": result.probability,
        "quality": [result.first.quality, result.second.quality],
        "operating_point": asdict(result.point),
    }


def verification_text(matcher: "Matcher", result: "Verification") -> str:
    """Describe a verification in lines of text: decision, evidence, and quality of both faces."""
    point = result.point
    interval = point.threshold_interval
    bounds = "" if interval is None else f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    source = f", measured on {point.measured_on}" if point.measured_on else ""
    lines = [
        f"{'same person' if result.same else 'different people'}: cosine {result.similarity:.4f}, "
        f"threshold {point.threshold:.4f}{bounds} at FAR {point.far:g}{source}"
    ]
    reference = matcher.model.card.reference
    if result.log_likelihood_ratio is not None and result.probability is not None:
        assert reference is not None and reference.calibration is not None
        calibration = reference.calibration
        lines.append(
            f"evidence: {likelihood_text(result.log_likelihood_ratio)}; probability of the same "
            f"person {probability_text(result.probability)}, with equal prior probabilities "
            f"(Cllr {calibration.cllr:.3f} bits on held-out people)"
        )
    else:
        lines.append("evidence: this model has no calibration; fit one with margrave threshold")
    lines += [f"{face.image}: {quality_text(face)}" for face in (result.first, result.second)]
    return "\n".join(lines)


def probability_text(probability: float) -> str:
    """A probability with four decimals, never rounded to 0 or 1.

    >>> probability_text(0.51), probability_text(0.99999)
    ('0.5100', 'above 0.9999')
    """
    if probability > 0.9999:
        return "above 0.9999"
    return f"{probability:.4f}" if probability >= 0.0001 else "below 0.0001"


def likelihood_text(log_likelihood_ratio: float) -> str:
    """Describe a natural log-likelihood ratio in words.

    >>> likelihood_text(0.0)
    'equally likely for the same person and for different people'
    >>> likelihood_text(4.605170186)
    '100 times more likely for the same person than for different people'
    """
    import math

    # The limit of 50 avoids an overflow.
    ratio = math.exp(min(abs(log_likelihood_ratio), 50.0))
    if ratio < 1.05:
        return "equally likely for the same person and for different people"
    text = f"{ratio:.3g}" if ratio < 1000 else f"{ratio:.1e}"
    likelier, less_likely = "the same person", "different people"
    if log_likelihood_ratio < 0:
        likelier, less_likely = less_likely, likelier
    return f"{text} times more likely for {likelier} than for {less_likely}"


def quality_text(face: "Face") -> str:
    """Describe a face's quality, as a percentile of the model's reference faces."""
    if face.quality is None:
        return "quality unknown (the model has no reference norms)"
    return f"quality higher than that of {face.quality:.0f} % of the reference faces"
