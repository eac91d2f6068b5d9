"""Who reaches the demo, and with how much: hosts, origins, logins, bodies, and Gradio's own routes."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("gradio")

from demo_toy import ROOT, application, client, encoded, tiny_engine
from helpers import picture
from starlette.testclient import TestClient

from sam_bigltl.demo import guard, photos
from sam_bigltl.demo.engine import Engine
from sam_bigltl.demo.guard import Hosts


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def page(engine):
    return client(engine)


def test_hosts():
    hosts = Hosts(["Demo.Example.org"])
    hosts.add_url("https://abc.gradio.live")
    own = socket.gethostname()
    for host in ("localhost", "localhost:7860", "127.0.0.1:80", "[::1]:7860", "192.168.1.7", "[fe80::1]:1", own,
                 "demo.example.org", "DEMO.example.org.:443", "abc.gradio.live"):  # fmt: skip
        assert hosts.allow(host), host
    for host in (None, "", "evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example",
                 "demo.example.org.evil.example", "[::1", "a b", "@localhost:x", "evil.example#localhost"):  # fmt: skip
        assert not hosts.allow(host), host


@pytest.mark.parametrize("path", [ROOT + "info", "/config", "/gradio_api/info"])
def test_a_foreign_host_is_refused(engine, page, path):
    """A name on the internet that resolves to this machine: the browser would let its pages read the answers."""
    answer = page.get(path, headers={"host": "evil.example"})
    assert answer.status_code == 403 and "--allow-host" in answer.json()["error"]
    assert page.get(path).status_code == 200
    allowed = client(engine, hosts=Hosts(["evil.example"]))
    assert allowed.get(path, headers={"host": "evil.example"}).status_code == 200


def test_another_page_is_refused(page):
    info = ROOT + "info"
    for origin in ("http://evil.example", "null", "http://10.0.0.1", "file://", "http://testserver.evil.example", "x"):
        answer = page.post(ROOT + "examples/cat", headers={"origin": origin})
        assert answer.status_code == 403 and "another page" in answer.json()["error"], origin
    for origin in ("http://testserver", "https://testserver:8443", "http://localhost:3000"):
        assert page.get(info, headers={"origin": origin}).status_code == 200


def test_our_routes_ask_for_gradios_login(engine):
    app = application(engine, auth=[("ann", "secret")])
    asking = TestClient(app, base_url="http://testserver")
    for route in ("info", "page/app.js", "examples/cat", f"photos/{'0' * 64}/preview"):
        answer = asking.get(ROOT + route)
        assert answer.status_code == 401 and "log in" in answer.json()["error"]
    for route in ("photos", "encode", "everything", "examples/cat", "none"):
        assert asking.post(ROOT + route, content=b"{}").status_code == 401
    forged = {"cookie": f"access-token-{app.cookie_id}=guess; access-token-unsecure-{app.cookie_id}=guess"}
    assert asking.get(ROOT + "info", headers=forged).status_code == 401
    assert asking.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
    assert asking.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
    assert asking.get(ROOT + "info").status_code == 200
    asking.get("/logout", follow_redirects=False)
    assert asking.get(ROOT + "info").status_code == 401


def test_below_a_path_of_a_proxy(engine):
    """Both ways in which proxies hand on: the path whole, and without what is theirs."""
    app = application(engine, auth=[("ann", "secret")])
    for base, options in (("/demo", {"root_path": "/demo"}), ("", {"root_path": "/demo"})):
        asking = TestClient(app, base_url="http://testserver", **options)
        assert asking.get(f"{base}{ROOT}info").status_code == 401
        assert asking.post(f"{base}/gradio_api/upload").status_code == 404
        asking.post(f"{base}/login", data={"username": "ann", "password": "secret"})
        assert asking.get(f"{base}{ROOT}info").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["upload", "upload_progress?upload_id=1", "process_recording", "component_server", "proxy=http://a.hf.space/"],
)
def test_routes_of_gradio_that_nothing_uses_are_closed(page, path):
    for answer in (page.post("/gradio_api/" + path, files={"files": b"hello"}), page.get("/gradio_api/" + path)):
        assert answer.status_code == 404


def test_bodies_are_bounded(page, monkeypatch):
    monkeypatch.setattr(photos, "MOST_BYTES", 2**20)
    parts = iter([b"x" * 2**18] * 5)
    answers = {
        "1 MB": page.post(ROOT + "photos", content=b"x" * (2**20 + 1)),
        "1 MB at most": page.post(ROOT + "photos", content=parts),  # no length is told
        "64 KB": page.post(ROOT + "masks", content=b"x" * (2**16 + 1)),
    }
    for message, answer in answers.items():
        assert answer.status_code == 413 and message in answer.json()["error"]
    assert len(list(parts)) == 0  # the client's; the server had stopped listening
    assert page.post("/login", content=b"x" * (2**20 + 1)).status_code == 413
    for length in ("-1", "1e3", "9" * 400, "x"):
        answer = page.post(ROOT + "masks", content=b"{}", headers={"content-length": length})
        assert answer.status_code in (400, 413) and answer.json()["error"]


def test_all_bodies_together_are_bounded(page, monkeypatch):
    content = encoded(picture())
    monkeypatch.setattr(guard, "_IN_FLIGHT", len(content) - 1)
    answer = page.post(ROOT + "photos", content=content)
    assert answer.status_code == 503 and "try again" in answer.json()["error"]
    monkeypatch.setattr(guard, "_IN_FLIGHT", len(content))
    for _ in range(3):  # what is answered no longer counts
        assert page.post(ROOT + "photos", content=content).status_code == 200


def test_there_is_no_websocket(page):
    with pytest.raises(Exception), page.websocket_connect(ROOT + "info"):  # noqa: B017 - whatever the client raises
        pass
