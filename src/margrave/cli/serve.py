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
    from margrave.cli.matching import open_matcher
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
    # Check the address, TLS and the key file first, because `open_matcher` may create a gallery.
    check_listening(settings)
    has_keys = bool(KeyFile(keys).keys())
    matcher = open_matcher(
        model,
        gallery,
        yunet=yunet,
        aligned=aligned,
        unchecked=unchecked,
        create=True,
        keep_images=keep_images,
        far=far,
        quality_floor=quality_floor,
        device=device,
        trust_code=trust_code,
    )
    console = Console(stderr=True, highlight=False)
    if not has_keys:
        console.print(
            f"{keys} has no keys yet; create one with: margrave keys new {keys}", markup=False
        )
    scheme = "https" if tls_certificate else "http"
    console.print(f"{scheme}://{host}:{port}/ serves {matcher.model.path}", markup=False)
    run(
        matcher,
        settings,
        detector=None if yunet is None else str(yunet),
        aligned=aligned,
        check_alignment=not unchecked,
    )
