"""``margrave serve``: verify, enroll, identify and forget over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from margrave.cli.matching import (
    GALLERY,
    AlignedOption,
    DetectorOption,
    DeviceOption,
    FarOption,
    FloorOption,
    GalleryOption,
    ModelOption,
    TrustOption,
    UncheckedOption,
)


def serve(
    model: ModelOption = "baseline",
    gallery: GalleryOption = GALLERY,
    keys: Annotated[Path, typer.Option(help="File of API keys (margrave keys).")] = Path(
        "keys.json"
    ),
    audit: Annotated[Path, typer.Option(help="Append the audit trail to this file.")] = Path(
        "audit.jsonl"
    ),
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen on this port.")] = 8443,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate, a PEM file.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="TLS private key, a PEM file.")] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow addresses other than loopback without TLS."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that detect faces.")] = 1,
    rate: Annotated[
        str, typer.Option(help="Maximum rate of requests per key, such as 10/second.")
    ] = "600/minute",
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Maximum number of concurrent requests; refuse others.")
    ] = 32,
    yunet: DetectorOption = None,
    aligned: AlignedOption = False,
    unchecked: UncheckedOption = False,
    keep_images: Annotated[
        bool,
        typer.Option(
            "--keep-images",
            help="When creating the gallery: keep crops, which margrave gallery re-embed needs.",
        ),
    ] = False,
    far: FarOption = None,
    quality_floor: FloorOption = 0.5,
    device: DeviceOption = None,
    trust_code: TrustOption = False,
) -> None:
    """Serve the API and its web page. If interrupted, finish the running requests, then stop."""
    from margrave.cli.console import Console
    from margrave.cli.matching import alignment_options, gallery_key
    from margrave.matching import Matcher
    from margrave.serving import KeyFile, ServiceSettings, check_listening
    from margrave.serving import serve as run

    settings = ServiceSettings(
        keys=keys,
        audit=audit,
        host=host,
        port=port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        insecure=insecure,
        workers=workers,
        rate=rate,
        max_concurrent=max_concurrent,
    )
    alignment = alignment_options(yunet, aligned, unchecked)
    # Check the address, TLS and the key file first, because `Matcher.load` may create a gallery.
    check_listening(settings)
    has_keys = bool(KeyFile(keys).keys())
    matcher = Matcher.load(
        model,
        gallery,
        create=True,
        keep_images=keep_images,
        far=far,
        quality_floor=quality_floor,
        device=device,
        key=gallery_key(),
        trust_code=trust_code,
        **alignment,
    )
    console = Console(stderr=True, highlight=False)
    if not has_keys:
        console.print(
            f"{keys} has no keys yet; create one with: margrave keys new {keys}", markup=False
        )
    scheme = "https" if tls_certificate else "http"
    console.print(f"{scheme}://{host}:{port}/ serves {matcher.model.path}", markup=False)
    run(matcher, settings, **alignment)
