"""The API: answers, refusals, people, audit, schema."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_matching import SIZE, person
from fake_service import Service, enroll, png, verify
from fastapi.testclient import TestClient

from margrave.gallery import GalleryError, MemoryGallery, Unavailable
from margrave.serving import verify_trail


def test_a_pair_is_decided_as_the_matcher_decides(client: TestClient, service: Service) -> None:
    answer = verify(client, png(1), png(1, 1), crops=True)
    assert answer.status_code == 200
    content = answer.json()
    expected = service.matcher.verify(person(1), person(1, 1))
    assert content["same"] and content["similarity"] == pytest.approx(expected.similarity)
    assert content["probability"] == pytest.approx(expected.probability)
    assert content["faces"][0]["crop"].startswith("data:image/png;base64,")
    other = verify(client, png(1), png(2), far=0.01).json()
    assert not other["same"] and other["far"] == 0.01 and other["faces"][0]["crop"] is None


@pytest.mark.parametrize("name", ["Ann", "Zoë Ünal", "李", "a/b", "100%", "../etc", "a?b#c"])
def test_people_come_and_go(client: TestClient, service: Service, name: str) -> None:
    from urllib.parse import quote

    created = enroll(client, name, png(1), png(1, 1))
    assert created.status_code == 201 and created.json()["person"]["images"] == 2
    path = f"/v1/people/{quote(name, safe='')}"
    assert client.get(path).json()["name"] == name
    image = {"image": png(1, 2)}
    (found,) = client.post("/v1/identify", files=image).json()
    assert found["person"] == name and found["people"] == 1
    assert client.get("/v1/people").json()["total"] == 1
    gone = client.delete(path)
    assert gone.status_code == 200 and gone.json()["erased"]
    assert client.get(path).status_code == client.delete(path).status_code == 404
    assert client.post("/v1/identify", files=image).json()[0]["person"] is None
    assert verify_trail(service.audit) == 4
    actions = [json.loads(line)["action"] for line in service.audit.read_text().splitlines()]
    assert actions == ["enroll", "enrolled", "forget", "forgotten"]
    assert name not in "".join(service.log) + service.audit.read_text()


def test_the_largest_of_several_faces_is_enrolled_if_asked(client: TestClient) -> None:
    both = np.concatenate([person(1), person(2)], axis=1)
    photo = cv2.imencode(".png", cv2.cvtColor(both, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert enroll(client, "Ann", photo).json()["reason"] == "several_faces"
    assert enroll(client, "Ann", photo, face="largest").status_code == 201


def test_people_are_listed_in_parts(client: TestClient) -> None:
    for number in range(5):
        assert enroll(client, f"p{number}", png(number)).status_code == 201
    first = client.get("/v1/people", params={"limit": 2}).json()
    assert [each["name"] for each in first["people"]] == ["p0", "p1"] and first["total"] == 5
    rest = client.get("/v1/people", params={"after": "p1"}).json()
    assert [each["name"] for each in rest["people"]] == ["p2", "p3", "p4"]


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "unreadable"),
        (b"no image at all", 422, "unreadable"),
        (png(1)[:-20], 422, "unreadable"),
        (b"GIF89a" + bytes(50), 422, "unreadable"),
        (cv2.imencode(".png", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes(), 422, "no_face"),
    ],
)
def test_what_cannot_be_judged_is_told(
    client: TestClient, content: bytes, status: int, reason: str
) -> None:
    answer = verify(client, png(1), content)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert "image 2" in answer.json()["error"]


def test_wrong_requests_are_told(client: TestClient) -> None:
    assert client.post("/v1/verify", files={"first": png(1)}).status_code == 422
    assert verify(client, png(1), png(1), far=2).status_code == 422
    assert verify(client, png(1), png(1), far=0.5).json()["reason"] == "invalid"
    plain = client.post("/v1/verify", content=b"x", headers={"content-type": "text/plain"})
    assert (plain.status_code, plain.json()["reason"]) == (415, "not_multipart")
    for kind in (
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b; charset=utf-7",
        "multipart/form-data; boundary=b; charset=" + "x" * 1000,
    ):
        form = client.post("/v1/verify", content=b"&" * 100, headers={"content-type": kind})
        assert form.status_code == 415, kind
    assert enroll(client, "", png(1)).status_code == 422
    assert enroll(client, "a\nb", png(1)).status_code == 422
    for name in (".", "..", "\u200b", "\u3164 \u00ad"):
        assert enroll(client, name, png(1)).json()["reason"] == "invalid", name
    assert enroll(client, "Bo", png(9), add=True, replace=True).status_code == 422
    assert enroll(client, "Ann", png(1)).status_code == 201
    taken = enroll(client, "Ann", png(1))
    assert (taken.status_code, taken.json()["reason"]) == (409, "already_enrolled")
    assert enroll(client, "Anna", png(1, 1)).status_code == 409
    assert enroll(client, "Ann", png(1, 1), add=True).json()["person"]["images"] == 2
    strict = client.post("/v1/identify", files={"image": png(1)}, data={"fpir": 1e-9})
    assert strict.status_code == 422
    assert client.get("/v1/people", params={"limit": 0}).status_code == 422
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/model/", follow_redirects=False).status_code == 404
    assert client.put("/v1/people").status_code == 405


def test_an_image_compared_with_itself_is_no_more_than_equal(client: TestClient) -> None:
    for seed in range(20):
        assert verify(client, png(seed), png(seed)).json()["similarity"] <= 1


def test_after_the_first_error_no_further_image_is_processed(
    client: TestClient, service: Service
) -> None:
    processed: list[str] = []
    find = service.workers.find

    async def count(content: bytes, which: Any, name: str) -> Any:
        processed.append(name)
        return await find(content, which, name)

    service.workers.find = count
    assert enroll(client, "Ann", b"no image", *[png(1)] * 7).status_code == 422
    # Those that ran or had their turn when the first one failed.
    assert len(processed) <= 4, processed


def test_a_refusal_is_recorded_as_one(client: TestClient, service: Service) -> None:
    assert enroll(client, "Ann", png(1)).status_code == 201
    assert enroll(client, "Bo", png(1, 1)).status_code == 409
    assert enroll(client, "Bo", png(1, 1), allow_similar=True).status_code == 201
    lines = [json.loads(line) for line in service.audit.read_text().splitlines()]
    actions = [line["action"] for line in lines]
    assert actions == ["enroll", "enrolled", "enroll", "refused", "enroll", "enrolled"]
    assert [line["allow_similar"] for line in lines[::2]] == [False, False, True]


def test_without_a_gallery_there_is_none(tmp_path: Path) -> None:
    service = Service(tmp_path, gallery=False)
    with TestClient(service.app, headers=service.header()) as client:
        assert client.post("/v1/identify", files={"image": png(1)}).status_code == 404
        assert client.get("/v1/people").status_code == 404
        assert verify(client, png(1), png(1, 1)).status_code == 200


def test_the_page_and_the_state_are_public(service: Service) -> None:
    with TestClient(service.app) as client:
        page = client.get("/")
        assert (
            page.status_code == 200
            and "default-src 'none'" in page.headers["content-security-policy"]
        )
        assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
        assert client.get("/page.py").status_code == 401
        assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}


def test_the_schema_names_the_key_and_the_scopes(service: Service) -> None:
    with TestClient(service.app) as client:
        schema = client.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    needed = {
        (method, path): operation["security"]
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }
    assert needed == {
        ("post", "/v1/verify"): [{"api_key": ["verify"]}],
        ("post", "/v1/identify"): [{"api_key": ["identify"]}],
        ("post", "/v1/people"): [{"api_key": ["enroll"]}],
        ("get", "/v1/people"): [{"api_key": ["list"]}],
        ("get", "/v1/people/{name}"): [{"api_key": ["list"]}],
        ("delete", "/v1/people/{name}"): [{"api_key": ["forget"]}],
        ("get", "/v1/model"): [{"api_key": []}],
        ("get", "/metrics"): [{"api_key": ["metrics"]}],
        ("get", "/health"): [],
        ("get", "/ready"): [],
    }


def test_what_the_audit_trail_cannot_record_is_not_done(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert enroll(client, "Ann", png(1)).status_code == 201

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("margrave.serving.audit.os.write", full)
        for answer in (enroll(client, "Bo", png(2)), client.delete("/v1/people/Ann")):
            assert (answer.status_code, answer.json()["reason"]) == (503, "no_audit")
            assert "nothing was changed" in answer.json()["error"]
    assert [each["name"] for each in client.get("/v1/people").json()["people"]] == ["Ann"]
    assert verify_trail(service.audit) == 2
    assert enroll(client, "Bo", png(2)).status_code == 201


@pytest.mark.parametrize("error", [GalleryError, Unavailable])
def test_the_gallery_and_its_files_are_not_named(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, error: type[ValueError]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        assert service.matcher.gallery is not None
        raise error(f"{service.matcher.gallery.place}: disk full; did you mean 'Someone Special'?")

    monkeypatch.setattr(service.matcher, "enroll_faces", fail)
    answer = enroll(client, "Ann", png(1))
    assert (answer.status_code, answer.json()["reason"]) == (503, "later")
    assert "Someone" not in answer.text + "".join(service.log) and "disk" not in answer.text
    assert json.loads(service.log[-1])["at"]


def test_a_mistake_whose_message_contains_the_place_of_the_gallery_is_422(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryGallery, "place", "g")
    service = Service(tmp_path)
    with TestClient(service.app, headers=service.header()) as client:
        answer = verify(client, png(1), png(1), far=0.3)
        assert (answer.status_code, answer.json()["reason"]) == (422, "invalid")
        assert "g" in answer.json()["error"]
        # The message that must not reach clients has a type of its own.
        assert service.matcher.gallery is not None
        with pytest.raises(GalleryError, match="nobody is enrolled as 'Ann' in g"):
            service.matcher.gallery.forget("Ann")


def test_one_of_many_who_enroll_a_name_at_once_succeeds(
    client: TestClient, service: Service
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: enroll(client, "Ann", png(seed)), range(8)))
    assert sorted(each.status_code for each in answers) == [201] + [409] * 7
    with ThreadPoolExecutor(8) as pool:
        gone = list(pool.map(lambda _: client.delete("/v1/people/Ann"), range(8)))
    assert sorted(each.status_code for each in gone) == [200] + [404] * 7
    # Each enrollment has two lines, also those that are refused.
    assert verify_trail(service.audit) == 2 * 8 + 2
