"""The admin's routes: who is let in, what they show, what they exclude, and the download."""

import io
import json
import zipfile

import numpy as np
import pytest
from game_admin import DEVICE, NOW, ServedStudy
from game_rounds import line
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gala_cuda.game import dashboard
from gala_cuda.game.admin import COOKIE, Admin
from gala_cuda.game.dashboard import Dashboard, overlay


@pytest.fixture
def study(tmp_path):
    made = ServedStudy(tmp_path)
    yield made
    made.store.close()


def test_nothing_is_shown_without_the_token(study):
    number = study.store.images()[0].id
    for path in ("data", "images", f"images/{number}/map.png", "maps.zip"):
        answer = study.client.get(f"/admin/{path}")
        assert (answer.status_code, list(answer.json())) == (403, ["error"]), path
        assert study.codes[0] not in answer.text
    for path in (f"images/{number}", f"people/{study.codes[0]}"):
        assert study.client.post(f"/admin/{path}", json={"excluded": "reason"}).status_code == 403
    assert study.store.excluded() == (frozenset(), frozenset())
    assert study.client.post("/admin/login", json={"token": "guess"}).status_code == 403
    assert COOKIE not in study.client.cookies
    assert study.client.get("/admin").status_code == 200  # the page itself holds nothing


def test_the_token_is_kept_as_a_hash_in_a_cookie_that_scripts_do_not_see(study):
    answer = study.client.post("/admin/login", json={"token": study.admin.token})
    said = answer.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert "path=/admin" in said
    assert "secure" not in said
    assert study.admin.token not in "".join(
        map(str, study.store._engine.raw_connection().execute("SELECT * FROM admin"))
    )
    assert study.client.get("/admin/data").status_code == 200
    behind_tls = Admin(study.store, study.folder, {}, secure=True)
    client = TestClient(Starlette(routes=behind_tls.routes), base_url="https://game.example.org")
    assert "; Secure" in client.post("/admin/login", json={"token": behind_tls.token}).headers["set-cookie"]


def test_guessing_is_slowed_down(study):
    statuses = [study.client.post("/admin/login", json={"token": f"{number}"}).status_code for number in range(30)]
    assert statuses[:20] == [403] * 20
    assert 429 in statuses[20:]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"token": 1}', 400), (b"{}", 400), (b'{"token": "a", "more": 1}', 400),
     (b"[" * 10_000, 400), (b'"' + b"a" * 40_000 + b'"', 413)],
)  # fmt: skip
def test_hostile_bodies_are_refused(study, body, status):
    answer = study.client.post("/admin/login", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert "expected" in answer.json()["error"] or "no JSON" in answer.json()["error"]


def test_data_are_progress_people_and_what_does_not_count(study):
    ann, bob, _ = study.codes
    for _ in range(2):
        study.play(ann)
        study.play(bob, line(12, 12), "recognised")
    study.play(ann, outcome="skip")
    data = study.log_in().get("/admin/data").json()
    assert data["images"] == {"played": 4, "excluded": 0, "painted": data["images"]["painted"], "wanted": 8, "had": 4}
    assert (data["counted"], data["outcomes"]) == (4, {"timeout": 2, "recognised": 2, "skip": 1})
    assert data["left_out"] == {"its outcome is skip": 1}
    assert data["recognised"] == 0.5
    people = {person["participant"]: person for person in data["people"]}
    assert set(people) == set(study.codes)
    assert (people[ann]["rounds"], people[ann]["skips"], people[bob]["recognised"]) == (3, 1, 1.0)
    assert "rounds" not in people[study.codes[2]]
    assert "joined" in people[ann]
    assert "token" not in json.dumps(data)


def test_the_ceiling_runs_along(study):
    ann, bob, eve = study.codes
    played = [study.play(code, line(10, 10 + 2 * n)) for n, code in enumerate((ann, bob, eve))]
    study.log_in()
    while len({each.path for each in played}) == len(played):
        played.append(study.play(bob))
    study.admin._dashboard.forget()
    data = study.client.get("/admin/data").json()
    assert data["shared"] == 1
    assert -1 <= data["ceiling"] <= 1


def test_numbers_are_kept_for_a_while(study, monkeypatch):
    measured = []
    measure = study.admin._dashboard._meter.measure
    monkeypatch.setattr(study.admin._dashboard._meter, "measure", lambda *a: measured.append(1) or measure(*a))
    client = study.log_in()
    for _ in range(3):
        client.get("/admin/data")
        client.get("/admin/images")
    assert len(measured) == 1


def test_images_are_in_order_and_in_pages(study, monkeypatch):
    first = study.play(study.codes[0])
    other = next(each for each in study.store.images() if each.path != first.path and each.kind == "play")
    study.store.exclude(other.id, "blurred")
    client = study.log_in()
    found = client.get("/admin/images").json()
    assert (found["total"], found["images"][0]["path"]) == (4, first.path)
    assert found["images"][0]["people"] == found["images"][0]["rounds"] == 1
    assert client.get("/admin/images?order=excluded").json()["images"][0]["excluded"] == "blurred"
    names = [each["path"] for each in client.get("/admin/images?order=name").json()["images"]]
    assert names == sorted(names)
    monkeypatch.setattr(dashboard, "PAGE", 3)
    assert [len(client.get(f"/admin/images?page={page}").json()["images"]) for page in range(3)] == [3, 1, 0]
    for query in ("order=worst", "page=-1", "page=x", "page=" + "9" * 5000):
        answer = client.get(f"/admin/images?{query}")
        assert (answer.status_code, "expected" in answer.json()["error"]) == (400, True), query


def test_the_map_of_an_image_grows(study):
    client = study.log_in()
    number = study.store.start(study.codes[2], NOW, catch_every=0).picture.id  # a claim alone
    before = client.get(f"/admin/images/{number}/map.png")
    shown = np.asarray(Image.open(io.BytesIO(before.content)))
    path = study.folder / "images" / next(each.path for each in study.store.images() if each.id == number)
    np.testing.assert_array_equal(shown, np.asarray(Image.open(path)))
    played = {study.play(study.codes[0]).id: n for n in range(4)}
    assert number in played
    after = client.get(f"/admin/images/{number}/map.png")
    assert (after.headers["content-type"], after.content == before.content) == ("image/png", False)
    for missing in (10**6, 10**30):
        assert client.get(f"/admin/images/{missing}/map.png").status_code == 404
    path.unlink()
    assert client.get(f"/admin/images/{number}/map.png").status_code == 409


def test_an_overlay_is_bright_where_people_painted():
    heatmap = np.zeros((1000, 500), np.float32)
    heatmap[:500] = 1
    found = np.asarray(Image.open(io.BytesIO(overlay(Image.new("RGB", (500, 1000), "grey"), heatmap))))
    assert found.shape == (dashboard.SHOWN_SIDE, dashboard.SHOWN_SIDE // 2, 3)
    assert found[:200].mean() > 1.5 * found[280:].mean()


def test_excluded_people_and_images_leave_the_numbers_at_once_and_come_back(study):
    ann = study.codes[0]
    picture = study.play(ann)
    client = study.log_in()
    assert client.get("/admin/data").json()["counted"] == 1
    assert client.post(f"/admin/people/{ann}", json={"excluded": "paints nothing"}).status_code == 204
    data = client.get("/admin/data").json()
    assert (data["counted"], data["left_out"]) == (0, {"its person is excluded": 1})
    assert next(each["excluded"] for each in data["people"] if each["participant"] == ann) == "paints nothing"
    client.post(f"/admin/people/{ann}", json={"excluded": None})
    assert client.get("/admin/data").json()["counted"] == 1
    client.post(f"/admin/images/{picture.id}", json={"excluded": "blurred"})
    data = client.get("/admin/data").json()
    assert (data["counted"], data["images"]["excluded"]) == (0, 1)
    client.post(f"/admin/images/{picture.id}", json={"excluded": None})
    assert client.get("/admin/data").json()["images"]["excluded"] == 0


@pytest.mark.parametrize("reason", ["", "   ", "x" * 201, "\x00", "a\nb", 5, ["a"]])
def test_reasons_are_checked(study, reason):
    client = study.log_in()
    answer = client.post(f"/admin/people/{study.codes[0]}", json={"excluded": reason})
    assert (answer.status_code, "expected null, or a reason of 1 to 200" in answer.json()["error"]) == (400, True)


def test_who_and_what_is_not_there_cannot_be_excluded(study):
    client = study.log_in()
    for path in ("people/nobody", "people/%00", "people/é", "images/1000000", f"images/{10**30}"):
        answer = client.post(f"/admin/{path}", json={"excluded": "reason"})
        assert (answer.status_code, "no such" in answer.json()["error"]) == (404, True), path


@pytest.mark.slow
def test_the_download_is_what_collect_writes(study, tmp_path):
    """A process of its own imports torch."""
    client = study.log_in()
    answer = client.get("/admin/maps.zip")
    assert (answer.status_code, answer.json()["error"]) == (409, "none of 0 finished rounds counts")
    study.play(study.codes[0])
    study.play(study.codes[1])
    study.store.exclude_person(study.codes[1], "paints nothing")
    answer = client.get("/admin/maps.zip")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip"), answer.text
    assert 'filename="maps.zip"' in answer.headers["content-disposition"]
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert {"maps/classes.txt", "maps/rounds.jsonl", "maps/train-000000.tar", "maps/collect.json"} <= set(
        archive.namelist()
    )
    assert json.loads(archive.read("maps/collect.json"))["collected"]["counted"] == 1


def test_quality_of_catch_rounds_reaches_the_page(study):
    board = Dashboard(study.store, study.folder, {"cat/c.png": np.ones((48, 64), bool)})
    for _ in range(40):
        found = study.store.start(study.codes[0], NOW, catch_every=2)
        if found is None:
            break
        study.store.finish(found.id, study.codes[0], "timeout", line(10, 10), DEVICE, "body", NOW + 1)
    assert next(person for person in board.summary()["people"] if person["participant"] == study.codes[0])["catch"] == 1
