"""The HTTP application: its routes, and the objects that they share."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client import generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp

from margrave.faces import AlignedFace
from margrave.gallery import BadName, Gallery, Person, checked_name
from margrave.matching import Face, Matcher
from margrave.matching.choosing import FaceChoice
from margrave.serving.answers import (
    EnrollmentAnswer,
    ForgottenAnswer,
    IdentificationAnswer,
    ModelAnswer,
    OperatingPointAnswer,
    PeopleAnswer,
    PersonAnswer,
    ServiceStatus,
    VerificationAnswer,
    candidate_answer,
    face_answer,
    identification_answer,
    person_answer,
    verification_answer,
)
from margrave.serving.audit import AuditTrail
from margrave.serving.batching import Batcher
from margrave.serving.drain import DrainAfterError
from margrave.serving.face_workers import FaceWorkers
from margrave.serving.gate import UNKNOWN, Gate, Metrics
from margrave.serving.keys import KeyFile
from margrave.serving.problems import add_problems
from margrave.serving.schema import describe_access, error_responses
from margrave.serving.settings import ServiceSettings
from margrave.serving.turns import Turns
from margrave.version import __version__

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"": "index.html", "page.css": "page.css", "page.js": "page.js"}
"""Path after the first slash -> name of the file in `PAGE`."""
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; media-src blob:; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self)",
}
MAX_LISTED_PEOPLE = 1000
"""Maximum number of people in one response."""
T = TypeVar("T")
# A name in a path may contain slashes.
PERSON_PATH = "/v1/people/{name:path}"
SCOPE_OF_ROUTE = {
    ("POST", "/v1/verify"): "verify",
    ("POST", "/v1/identify"): "identify",
    ("POST", "/v1/people"): "enroll",
    ("GET", "/v1/people"): "list",
    ("GET", "/v1/model"): "",
    ("GET", "/metrics"): "metrics",
}
"""(method, path) -> the scope that an API key needs; an empty scope means that any key will do."""
PUBLIC = ("/", "/page.css", "/page.js", "/health", "/ready", "/openapi.json")
"""Paths that need no API key."""


def scope_of(method: str, path: str) -> str | None:
    """The scope that a request's API key needs.

    The result is None if the request needs no key, empty if any key will do, as to learn which
    methods a path has, and `UNKNOWN` if there is no such path.

    >>> scope_of("DELETE", "/v1/people/Ann")
    'forget'
    """
    if path in PUBLIC:
        return None if method in ("GET", "HEAD") else ""
    if path.startswith("/v1/people/"):
        return {"GET": "list", "DELETE": "forget"}.get(method, "")
    if not any(path == known for _, known in SCOPE_OF_ROUTE):
        return UNKNOWN
    return SCOPE_OF_ROUTE.get((method, path), "")


def make_app(
    matcher: Matcher,
    settings: ServiceSettings,
    *,
    detector: str | None = None,
    aligned: bool = False,
    check_alignment: bool = True,
    workers: Any = None,
    write_log: Callable[[str], object] | None = None,
) -> ASGIApp:
    """Create the ASGI application: the routes behind `Gate`, which checks every request first.

    Args:
        matcher: the model, and the gallery if there is one.
        settings: the service's settings.
        detector: path of a YuNet file; by default MTCNN, or the detector that the model requires.
        aligned: whether images are already aligned crops.
        check_alignment: if `aligned`, whether to reject crops without an aligned face.
        workers: an object with the methods of `FaceWorkers`; by default a new `FaceWorkers`.
        write_log: called with each line of the log; by default writes to standard error.

    Raises:
        ValueError: the key file or the audit trail is damaged, or the model has no thresholds.
    """
    matcher.operating_point()  # raises the error for a model without thresholds
    # Keep images in memory; by default, Starlette writes large images to temporary files.
    MultiPartParser.spool_max_size = settings.max_request_bytes
    if workers is None:
        card = matcher.model.card
        workers = FaceWorkers(card, detector, aligned, settings, check_alignment)
    service = Service(matcher, settings, workers)
    app = FastAPI(
        title="Margrave",
        version=__version__,
        description="Verify, enroll, identify and forget faces.",
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would contain the Host header, which the client chooses.
        redirect_slashes=False,
        max_body_size=settings.max_request_bytes,
        form_limits={
            "max_files": settings.max_images_per_request,
            "max_fields": 20,
            "max_part_size": 4096,  # bytes of a field that is not a file
        },
    )
    add_problems(app)
    _add_routes(app, service)
    describe_access(app, scope_of)
    options = {} if write_log is None else {"write": write_log}
    gate = Gate(app, service.keys, settings, service.metrics, scope_of, **options)
    # Read up to twice the limit, so that clients whose requests are slightly too large receive 413.
    return DrainAfterError(gate, 2 * settings.max_request_bytes)


class Service:
    """The objects that the routes share: the matcher, its workers, the keys and the audit trail.

    Args:
        matcher: the model, and the gallery if there is one.
        settings: the service's settings.
        workers: `FaceWorkers`, or an object with its methods.
    """

    def __init__(
        self,
        matcher: Matcher,
        settings: ServiceSettings,
        workers: Any,
    ) -> None:
        self.matcher, self.settings = matcher, settings
        self.keys, self.metrics = KeyFile(settings.keys), Metrics()
        self.audit = AuditTrail(settings.audit)
        self.is_ready = False
        self._change_lock = threading.Lock()
        self._workers = workers
        # One image more than there are workers, so that the next one is ready when one finishes.
        self._turns = Turns(settings.workers + 1)
        # Reading everybody's names takes long in a large gallery: let one request do so at a time.
        self.listing = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the workers and the batcher; close them when the service stops."""
        del app
        await run_in_threadpool(self._workers.warm)
        self.batcher = Batcher(
            self.matcher.embed,
            self.settings.batch_seconds,
            self.settings.max_batch_size,
            self.metrics.batches.observe,
        )
        self.is_ready = True
        try:
            yield
        finally:
            self.is_ready = False
            await run_in_threadpool(self.batcher.close)
            await run_in_threadpool(self._workers.close)
            self.audit.close()

    async def faces(
        self, request: Request, uploads: Sequence[UploadFile], which: FaceChoice
    ) -> list[list[Face]]:
        """Detect and embed the faces that `which` chooses; return one list of faces per image.

        After the first error, or if the client has gone, no further image is processed.
        """
        contents = [await upload.read() for upload in uploads]
        # File names may be private, so error messages name the images by number.
        names = [f"image {number}" for number in range(1, len(contents) + 1)]
        key_id = request.scope["state"]["key_id"]

        async def find(content: bytes, name: str) -> list[AlignedFace]:
            if await request.is_disconnected():
                raise HTTPException(499, "the client closed the connection")
            return await self._workers.find(content, which, name)

        searches = [
            asyncio.ensure_future(self._turns.run(key_id, partial(find, content, name)))
            for content, name in zip(contents, names, strict=True)
        ]
        try:
            detected = await asyncio.gather(*searches)
        except BaseException:
            for search in searches:
                search.cancel()
            raise
        futures_of_images = [
            [asyncio.wrap_future(self.batcher.submit(face, name)) for face in faces]
            for faces, name in zip(detected, names, strict=True)
        ]
        embedded = await asyncio.gather(
            *(asyncio.gather(*futures) for futures in futures_of_images)
        )
        for faces in embedded:
            self.matcher.check_quality(faces)
        return embedded

    async def change(self, work: Callable[[], T]) -> T:
        """Run `work`, which changes the gallery, in a thread; return its result.

        Changes run one at a time, so that two requests cannot enroll the same name. If a request
        times out (408) while its change is waiting for its turn, the change is not made.
        """
        is_canceled = threading.Event()

        def run_alone() -> T:
            with self._change_lock:
                if is_canceled.is_set():
                    # The request has ended, so this error only ends the thread's work.
                    raise TimeoutError
                return work()

        try:
            return await run_in_threadpool(run_alone)
        except asyncio.CancelledError:
            is_canceled.set()
            raise


def _add_routes(app: FastAPI, service: Service) -> None:
    matcher, max_images_per_request = service.matcher, service.settings.max_images_per_request
    image_errors = error_responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)
    gallery_errors = error_responses(400, 401, 403, 404, 408, 413, 422, 429, 500, 503)

    @app.post("/v1/verify", responses=image_errors)
    async def verify(
        request: Request,
        first: UploadFile,
        second: UploadFile,
        far: Annotated[float | None, Form(gt=0, lt=1)] = None,
        face: Annotated[Literal["auto", "largest"], Form()] = "auto",
        crops: Annotated[bool, Form()] = False,
    ) -> VerificationAnswer:
        """Decide whether two images show the same person."""
        (first_face,), (second_face,) = await service.faces(request, [first, second], face)
        return verification_answer(matcher.decide(first_face, second_face, far=far), crops)

    @app.post("/v1/identify", responses={**image_errors, **gallery_errors})
    async def identify(
        request: Request,
        image: UploadFile,
        top: Annotated[int, Form(ge=1, le=100)] = 5,
        fpir: Annotated[float | None, Form(gt=0, lt=1)] = None,
        face: Annotated[FaceChoice, Form()] = "auto",
        crops: Annotated[bool, Form()] = False,
    ) -> list[IdentificationAnswer]:
        """Identify the people in an image: one answer for each face."""
        _require_gallery(matcher)
        (faces,) = await service.faces(request, [image], face)
        answers = await run_in_threadpool(matcher.identify_faces, faces, top_k=top, fpir=fpir)
        return [identification_answer(answer, crops) for answer in answers]

    enroll_errors = {**image_errors, **gallery_errors, **error_responses(409)}

    @app.post("/v1/people", status_code=201, responses=enroll_errors)
    async def enroll(
        request: Request,
        name: Annotated[str, Form(min_length=1, max_length=512)],
        images: Annotated[list[UploadFile], File(min_length=1, max_length=max_images_per_request)],
        face: Annotated[Literal["auto", "largest"], Form()] = "auto",
        add: Annotated[bool, Form()] = False,
        replace: Annotated[bool, Form()] = False,
        allow_similar: Annotated[bool, Form()] = False,
    ) -> EnrollmentAnswer:
        """Enroll a person with one or more images."""
        _require_gallery(matcher)
        if add and replace:
            raise ValueError("add and replace exclude each other; send only one of them")
        if checked_name(name) in (".", ".."):
            # Browsers remove these names from a path, so nobody could forget the person.
            raise BadName(f"name = {name!r}: an address cannot contain it; choose another name")
        faces = [only_face for (only_face,) in await service.faces(request, images, face)]
        key_id = request.scope["state"]["key_id"]

        def enroll_faces() -> EnrollmentAnswer:
            details = {
                "images": len(faces),
                "add": add,
                "replace": replace,
                "allow_similar": allow_similar,
            }
            with service.audit.changing(("enroll", "enrolled"), name, key_id, **details) as outcome:
                result = matcher.enroll_faces(
                    name, faces, add=add, replace=replace, allow_similar=allow_similar
                )
                outcome["images"] = result.person.images
            most_similar = result.most_similar
            return EnrollmentAnswer(
                person=person_answer(result.person),
                most_similar=None if most_similar is None else candidate_answer(most_similar),
                faces=[face_answer(face) for face in result.faces],
            )

        return await service.change(enroll_faces)

    @app.get("/v1/people", responses=gallery_errors)
    async def people(
        after: Annotated[str, Query(max_length=512)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED_PEOPLE)] = 100,
    ) -> PeopleAnswer:
        """List enrolled people sorted by name, beginning after the name ``after``."""
        gallery = _require_gallery(matcher)

        def list_people() -> PeopleAnswer:
            all_people = list(gallery.people())
            following = [person for person in all_people if person.name > after]
            return PeopleAnswer(
                people=[person_answer(person) for person in following[:limit]],
                total=len(all_people),
            )

        async with service.listing:
            return await run_in_threadpool(list_people)

    @app.get(PERSON_PATH, responses=gallery_errors)
    async def person(name: str) -> PersonAnswer:
        """Get an enrolled person."""
        gallery = _require_gallery(matcher)
        return person_answer(await run_in_threadpool(_get_person, gallery, name))

    @app.delete(PERSON_PATH, responses=gallery_errors)
    async def forget(request: Request, name: str) -> ForgottenAnswer:
        """Remove a person; erase every byte if the gallery's store can do so."""
        gallery = _require_gallery(matcher)
        key_id = request.scope["state"]["key_id"]

        def forget_person() -> ForgottenAnswer:
            _get_person(gallery, name)
            with service.audit.changing(("forget", "forgotten"), name, key_id) as outcome:
                result = gallery.forget(name)
                outcome["erased"] = result.erased
            return ForgottenAnswer(
                name=result.name, erased=result.erased, explanation=result.explanation
            )

        return await service.change(forget_person)

    @app.get("/v1/model", responses=error_responses(400, 401, 403, 408, 413, 429, 500, 503))
    async def model() -> ModelAnswer:
        """Describe the model: its thresholds, score histograms and calibration."""
        card = matcher.model.card
        reference = card.reference
        calibration = None if reference is None else reference.calibration
        return ModelAnswer(
            source=card.source,
            operating_points=[
                OperatingPointAnswer(
                    far=point.far,
                    threshold=point.threshold,
                    true_accept_rate=point.true_accept_rate,
                    measured_on=point.measured_on,
                )
                for point in sorted(card.operating_points, key=lambda point: point.far)
            ],
            genuine=[] if reference is None else list(reference.genuine),
            impostors=[] if reference is None else list(reference.impostors),
            cllr=None if calibration is None else calibration.cllr,
            keeps_images=None if matcher.gallery is None else matcher.gallery.card.keep_images,
        )

    @app.get("/health")
    async def health() -> ServiceStatus:
        """Report that the process is alive."""
        return ServiceStatus(status="ok")

    @app.get("/ready", responses=error_responses(503))
    async def ready() -> ServiceStatus:
        """Report whether the service can handle requests."""
        if not service.is_ready:
            raise HTTPException(503, "starting or shutting down", {"retry-after": "1"})
        return ServiceStatus(status="ok")

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=error_responses(400, 401, 403, 408, 413, 429, 500, 503),
    )
    async def metrics() -> PlainTextResponse:
        """Return the metrics in Prometheus's text format."""
        return PlainTextResponse(generate_latest(service.metrics.registry))

    for path, file in PAGE_FILES.items():
        app.add_api_route(
            f"/{path}", _page_handler(file), include_in_schema=False, methods=["GET", "HEAD"]
        )


def _page_handler(file: str) -> Callable[[], FileResponse]:
    def respond() -> FileResponse:
        return FileResponse(PAGE / file, headers=PAGE_HEADERS)

    return respond


def _get_person(gallery: Gallery, name: str) -> Person:
    """The person enrolled under a name; raises 404 if nobody is, or the name is invalid."""
    try:
        enrolled = gallery.get(checked_name(name))
    except BadName:
        enrolled = None
    if enrolled is None:
        raise HTTPException(404, "nobody is enrolled under that name")
    return enrolled


def _require_gallery(matcher: Matcher) -> Gallery:
    if matcher.gallery is None:
        raise HTTPException(404, "this service has no gallery; start it with --gallery")
    return matcher.gallery
