"""The gate: keys, scopes, rates, load, sizes, failures, logs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_service import Service, enroll, png, verify
from fastapi.testclient import TestClient

from margrave.serving import SCOPES, verify_trail


def test_no_answer_without_a_valid_key(service: Service) -> None:
    with TestClient(service.app) as client:
        routes = client.get("/openapi.json").json()["paths"]
        checked = 0
        for path, methods in routes.items():
            for method in methods:
                if path in ("/health", "/ready"):
                    continue
                for header in ("", "Bearer", "Bearer x", "Basic abc", "Bearer mgv_a_b"):
                    answer = client.request(
                        method, path.replace("{name}", "Ann"), headers={"Authorization": header}
                    )
                    assert answer.status_code == 401, (method, path)
                    assert answer.json()["reason"] == "no_key"
                checked += 1
        assert checked == 8
        # What there is not needs a key as well.
        assert client.get("/v1/nothing").status_code == 401
        assert client.put("/v1/people/Ann").status_code == 401


DISGUISES = ("%0A", "%0D", "%00", "%0a%0a", "/", "//", "%20", ";x", ".", "%2F", "%FF", "%C0%AF")


@pytest.mark.parametrize("disguise", DISGUISES)
def test_an_address_in_disguise_opens_nothing(service: Service, disguise: str) -> None:
    with TestClient(service.app) as client:
        assert enroll_with(client, service.header("enroll")).status_code == 201
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for method in methods:
                disguised = path.replace("{name}", "Ann") + disguise
                # A key with every scope but the one that the path needs; `forget` may not list.
                needed = {"/v1/people": ["list", "enroll"], "/v1/people/{name}": ["list", "forget"]}
                lacking = needed.get(path, [path.rpartition("/")[2]])
                scopes = [scope for scope in SCOPES if scope not in lacking]
                answer = client.request(method, disguised, headers=service.header(*scopes))
                assert answer.status_code in (403, 404, 405, 415), (method, disguised)
        everybody = service.header("list", "forget")
        for name in ("Ann%0A", "%0AAnn", "Ann%00", "%FF", "Ann%ED%A0%80"):
            for method in ("GET", "DELETE"):
                answer = client.request(method, f"/v1/people/{name}", headers=everybody)
                assert answer.status_code == 404
        assert client.get("/v1/people/Ann", headers=everybody).status_code == 200


def enroll_with(client: TestClient, header: dict[str, str]) -> Any:
    files = [("images", png(1))]
    return client.post("/v1/people", files=files, data={"name": "Ann"}, headers=header)


def test_refused_scopes_count_as_requests(tmp_path: Path) -> None:
    service = Service(tmp_path, rate="3/minute")
    with TestClient(service.app, headers=service.header("metrics")) as client:
        statuses = [client.get("/v1/people").status_code for _ in range(4)]
    assert statuses == [403, 403, 403, 429]


def test_one_key_leaves_a_quarter_to_the_others(tmp_path: Path) -> None:
    import httpx2 as httpx

    service = Service(tmp_path, max_concurrent=8)
    service.workers.seconds = 0.1
    greedy, modest = service.header(), service.header()

    async def load() -> tuple[list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(service.app)  # pyright: ignore[reportArgumentType]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            files = {"first": png(1), "second": png(1, 1)}
            many = [
                asyncio.create_task(client.post("/v1/verify", files=files, headers=greedy))
                for _ in range(12)
            ]
            await asyncio.sleep(0.05)
            other = await client.post("/v1/verify", files=files, headers=modest)
            # Six requests of the other key were before it, with two images each.
            assert not all(task.done() for task in many)
            return await asyncio.gather(*many), other

    with TestClient(service.app):
        answers, other = asyncio.run(load())
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [503] * 6
    assert other.status_code == 200


@pytest.mark.parametrize("scope", list(SCOPES))
def test_a_key_opens_its_scopes_alone(service: Service, scope: str) -> None:
    calls = {
        "verify": ("POST", "/v1/verify"),
        "identify": ("POST", "/v1/identify"),
        "enroll": ("POST", "/v1/people"),
        "list": ("GET", "/v1/people/Ann"),
        "forget": ("DELETE", "/v1/people/Ann"),
        "metrics": ("GET", "/metrics"),
    }
    with TestClient(service.app, headers=service.header(scope)) as client:
        for name, (method, path) in calls.items():
            status = client.request(method, path).status_code
            assert (status != 403) is (name == scope), (name, status)
        assert client.get("/v1/model").status_code == 200


def test_each_key_has_its_rate(tmp_path: Path) -> None:
    service = Service(tmp_path, rate="3/minute")
    with TestClient(service.app) as client:
        one, other = service.header(), service.header()
        statuses = [client.get("/v1/model", headers=one).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        refused = client.get("/v1/model", headers=one)
        assert refused.json()["reason"] == "too_many"
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert client.get("/v1/model", headers=other).status_code == 200


def test_too_many_at_a_time_are_refused_at_once(tmp_path: Path) -> None:
    import httpx2 as httpx

    service = Service(tmp_path, max_concurrent=2)
    service.workers.seconds = 0.3

    async def load() -> list[httpx.Response]:
        transport = httpx.ASGITransport(service.app)  # pyright: ignore[reportArgumentType]
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=service.header()
        ) as client:
            files = {"first": png(1), "second": png(1, 1)}
            return await asyncio.gather(*(client.post("/v1/verify", files=files) for _ in range(6)))

    with TestClient(service.app):
        answers = asyncio.run(load())
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 503, 503, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["reason"] == "overloaded" and refused.headers["retry-after"] == "1"


def test_slow_requests_are_ended(tmp_path: Path) -> None:
    service = Service(tmp_path, request_seconds=0.5)
    service.workers.seconds = 1.0
    with TestClient(service.app, headers=service.header()) as client:
        answer = verify(client, png(1), png(1, 1))
        assert (answer.status_code, answer.json()["reason"]) == (408, "too_slow")
        service.workers.seconds = 0.0
        # The images whose request has ended are finished first.
        time.sleep(0.7)
        assert verify(client, png(1), png(1, 1)).status_code == 200


def test_a_change_that_waited_too_long_is_not_made(tmp_path: Path) -> None:
    service = Service(tmp_path, request_seconds=0.5)
    may_go_on = threading.Event()
    enroll_faces = service.matcher.enroll_faces

    def slow(*args: Any, **options: Any) -> Any:
        may_go_on.wait()
        return enroll_faces(*args, **options)

    service.matcher.enroll_faces = slow  # pyright: ignore[reportAttributeAccessIssue]
    with TestClient(service.app, headers=service.header()) as client:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(enroll, client, "Ann", png(1))
            time.sleep(0.2)
            second = pool.submit(enroll, client, "Bo", png(2))
            assert [each.result().status_code for each in (first, second)] == [408, 408]
        may_go_on.set()
        time.sleep(0.3)
        people = client.get("/v1/people").json()["people"]
        # The first was being made already.
        assert [each["name"] for each in people] == ["Ann"]
        assert verify_trail(service.audit) == 2


def test_large_requests_are_refused(tmp_path: Path) -> None:
    service = Service(tmp_path, max_request_bytes=20_000, max_images_per_request=3)
    with TestClient(service.app, headers=service.header()) as client:
        answer = verify(client, png(1), bytes(30_000))
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
        form = {"content-type": "multipart/form-data; boundary=x"}
        parts = [b'--x\r\nContent-Disposition: form-data; name="first"; filename="f"\r\n\r\n']
        chunked = client.post("/v1/verify", content=iter(parts + [bytes(5000)] * 5), headers=form)
        assert (chunked.status_code, chunked.json()["reason"]) == (413, "too_large")
        assert enroll(client, "Ann", *[png(1, number) for number in range(4)]).status_code == 400
        odd = client.post("/v1/verify", content=b"", headers={"content-length": "-5"})
        assert (odd.status_code, odd.json()["reason"]) == (400, "malformed")


def test_metrics_and_logs_name_routes_and_nobody(client: TestClient, service: Service) -> None:
    enroll(client, "Someone Special", png(1))
    client.get("/v1/people/Someone%20Special")
    text = client.get("/metrics").text
    assert 'margrave_requests_total{route="/v1/people/{name:path}",status="200"} 1.0' in text
    assert "Someone" not in text + "".join(service.log)
    record = json.loads(service.log[-1])
    assert (
        record["route"] == "/metrics" and record["status"] == 200 and len(record["request"]) == 12
    )


def test_an_unexpected_error_names_nobody(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise KeyError("Someone Special in /srv/people.gallery")

    monkeypatch.setattr(service.matcher, "enroll_faces", fail)
    answer = enroll(client, "Someone Special", png(1))
    assert (answer.status_code, answer.json()["reason"]) == (500, "internal")
    record = json.loads(service.log[-1])
    assert record["request"] == answer.headers["x-request-id"] in answer.json()["error"]
    assert record["error"] == "KeyError" and record["at"][-1].endswith(" fail")
    for text in (answer.text, "".join(service.log), caplog.text):
        assert "Someone" not in text and "/srv" not in text and "Traceback" not in text


def test_a_damaged_file_of_keys_is_reported_until_it_is_repaired(
    client: TestClient, service: Service
) -> None:
    path = service.keys.path
    right = path.read_bytes()

    def refused() -> bool:
        answer = client.get("/v1/model")
        reason = answer.json()["reason"]
        assert str(path) not in answer.text and "Traceback" not in "".join(service.log)
        return answer.status_code == 503 and reason == "no_keys" and "retry-after" in answer.headers

    for wrong in (b"{", b"[]", right[:-30], b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(wrong)
        assert refused(), wrong[:10]
        assert client.get("/health").status_code == 200
    path.unlink()
    path.mkdir()
    assert refused()
    path.rmdir()
    assert client.get("/v1/model").status_code == 401
    path.write_bytes(right)
    assert client.get("/v1/model").status_code == 200
