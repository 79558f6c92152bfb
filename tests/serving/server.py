"""A service for tests in a process of its own: python server.py FOLDER PORT [SECONDS A FACE]."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_matching import REFERENCE, make_model, matcher
from fake_service import InThisProcess

from margrave.gallery import create_gallery
from margrave.matching import Matcher
from margrave.matching.gallery_card import new_gallery_card
from margrave.serving import ServiceSettings, connections, make_app
from margrave.serving.running import run_application


def main(folder: Path, port: int, seconds: float) -> None:
    # Bins whose heights the page draws.
    rising = tuple(float(number) for number in range(100))
    shares = {"genuine": (0.0,) * 100 + rising, "impostors": tuple(reversed(rising)) * 2}
    model = make_model(reference=replace(REFERENCE, **shares))
    gallery = create_gallery(str(folder / "people.gallery"), new_gallery_card(model))
    made = Matcher(model, gallery, finder=matcher().finder)
    certificate, tls_key = folder / "certificate.pem", folder / "tls_key.pem"
    has_tls = certificate.exists()
    settings = ServiceSettings(
        port=port,
        tls_certificate=certificate if has_tls else None,
        tls_key=tls_key if has_tls else None,
        keys=folder / "keys.json",
        audit=folder / "audit.jsonl",
        rate="1000000/minute",
        shutdown_seconds=2 if seconds > 2 else 20,
    )
    app = make_app(made, settings, workers=InThisProcess(made, seconds))
    connections.HEAD_SECONDS, connections.SEND_SECONDS = 2.0, 2.0
    connections.MAX_CONNECTIONS = 60
    run_application(app, settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
