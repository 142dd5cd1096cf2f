"""The game's database: who plays what, what ends how, and what is refused. On SQLite and on PostgreSQL."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from gala_cuda.game.records import Device
from gala_cuda.game.rounds import CLAIM_SECONDS
from gala_cuda.game.rules import score
from gala_cuda.game.store import Conflict, Picture, Store, StoreError, StoreFull

POINTS = tuple((16 * i, 16, 50 * i) for i in range(20))
DEVICE = Device("mouse", 1.5, 1280, 720)
NOW = 1_000_000.0


@pytest.fixture
def store(database):
    made = Store(database)
    yield made
    made.close()


def pictures(kind="play", count=4, **values):
    made = [Picture(0, kind, f"cat/{kind}{i}.png", "cat", 100, 80, "digest") for i in range(count)]
    return [replace(each, **values) for each in made]


def join(store, number=0, **options):
    return store.join(f"token {number}", "consent", **options)


def finish(store, played, outcome="timeout", points=POINTS, body="body", now=NOW):
    return store.finish(played.id, played.participant, outcome, points, DEVICE, body, now)


def play(store, code, outcome="timeout", **options):
    """A round from beginning to end; the open round, or None."""
    played = store.start(code, NOW, **options)
    if played is not None:
        if outcome == "recognised":
            store.recognise(played.id, code, POINTS[:10])
        finish(store, played, outcome)
    return played


def test_players_see_every_image_once(store):
    store.add_images(pictures())
    code = join(store)
    seen = [play(store, code).picture.path for _ in range(4)]
    assert len(set(seen)) == 4
    assert store.start(code, NOW) is None
    again = [store.start(code, NOW, repeats=True) for _ in range(5)]
    assert sorted(each.attempt for each in again) == [2, 2, 2, 2, 3]
    assert not any(each.scores for each in again)


def test_fewest_finished_and_claimed_come_first(store):
    store.add_images(pictures(count=3))
    given = Counter(store.start(join(store, number), NOW).picture.path for number in range(9))
    assert set(given.values()) == {3}


def test_claims_expire(store):
    store.add_images(pictures(count=2))
    first = store.start(join(store, 0), NOW)
    second = store.start(join(store, 1), NOW)
    assert second.picture != first.picture
    finish(store, second)
    later = store.start(join(store, 2), NOW + CLAIM_SECONDS + 1)
    assert later.picture == first.picture
    finish(store, first, now=NOW + 10 * CLAIM_SECONDS)  # an expired round may still end


def test_skips_do_not_count_for_an_image(store):
    store.add_images(pictures(count=2))
    skipped = play(store, join(store, 0), "skip")
    other = play(store, join(store, 1))
    third = store.start(join(store, 2), NOW)
    assert third.picture == skipped.picture or other.picture == skipped.picture


def test_images_that_want_more_people_come_first(store):
    store.add_images([*pictures(count=3), *pictures("play", 4, people=10)[3:]])
    given = Counter(play(store, join(store, number)).picture.people for number in range(12))
    assert given == {1: 3, 10: 9}


def test_practice_then_catch_trials_among_the_others(store):
    store.add_images([*pictures("practice", 2), *pictures("catch", 3), *pictures("play", 30)])
    code = join(store)
    kinds = []
    while played := play(store, code, "recognised"):
        kinds.append(played.picture.kind)
    assert kinds[:2] == ["practice", "practice"]
    assert [kinds[start : start + 10].count("catch") for start in (2, 12, 22)] == [1, 1, 1]
    assert kinds.count("play") == 30
    scores = {each.kind: each.score for each in store.rounds()}
    assert scores == {"practice": 0, "catch": score(450), "play": score(450)}


def test_same_recruit_under_another_code_sees_other_images(store):
    store.add_images(pictures())
    first = {play(store, join(store, 0, recruit_id="worker 7")).picture.path for _ in range(1)}
    code = join(store, 1, recruit_id="worker 7")
    rest = [play(store, code).picture.path for _ in range(3)]
    assert len(first | set(rest)) == 4
    assert store.start(code, NOW) is None
    assert [each.recruit is None for each in store.participants()] == [False, False]


def test_recruiters_id_is_not_in_the_database(database, store):
    join(store, recruit_id="worker 7")
    with create_engine(database).connect() as connection:
        held = connection.execute(text("SELECT hashed FROM recruit")).scalars().all()
    assert len(held) == 1
    assert "worker" not in held[0]


def test_first_recognition_alone_is_kept(store):
    store.add_images(pictures())
    code = join(store)
    played = store.start(code, NOW)
    assert store.recognise(played.id, code, POINTS[:10]).recognised_n == 10
    assert store.recognise(played.id, code, POINTS[:20]).recognised_points == POINTS[:10]
    assert finish(store, played, "timeout") == (score(450), score(450))
    (made,) = store.rounds()
    assert (made.outcome, made.recognised_n, made.points) == ("recognised", 10, POINTS)
    assert (made.pointer, made.ratio, made.screen_width, made.screen_height) == ("mouse", 1.5, 1280, 720)
    with pytest.raises(KeyError):
        store.recognise(played.id, "another", POINTS[:10])


def test_forged_recognitions_are_refused(store):
    store.add_images(pictures())
    code = join(store)
    played = store.start(code, NOW)
    with pytest.raises(Conflict, match="the partner has not recognised"):
        finish(store, played, "recognised")
    store.recognise(played.id, code, POINTS[:10])
    with pytest.raises(Conflict, match="first 10 to be the same"):
        finish(store, played, "recognised", ((8, 8, 0), *POINTS[1:]))
    with pytest.raises(Conflict, match="first 10 to be the same"):
        finish(store, played, "timeout", POINTS[:9])
    assert not list(store.rounds())
    finish(store, played, "recognised")


def test_finishing_is_idempotent(store):
    store.add_images(pictures())
    code = join(store)
    first, second = store.start(code, NOW), store.start(code, NOW)
    for each in (first, second):
        store.recognise(each.id, code, POINTS[:10])
    answer = finish(store, first)
    finish(store, second)
    assert finish(store, first) == answer == (score(450), score(450))
    with pytest.raises(Conflict, match="another body"):
        finish(store, first, body="other")
    with pytest.raises(KeyError):
        store.finish(first.id, join(store, 1), "timeout", POINTS, DEVICE, "body", NOW)
    skipped = play(store, code, "skip")
    with pytest.raises(Conflict, match="over before"):
        store.recognise(skipped.id, code, POINTS[:10])


def test_concurrent_players(store):
    """Totals are sums, and an image is given once to each, whoever asks at the same time."""
    store.add_images(pictures(count=12))
    codes = [join(store, number) for number in range(3)]

    def one(number):
        return play(store, codes[number % 3], "recognised").picture.path

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(36)))
    made = list(store.rounds())
    assert Counter((each.image, each.participant) for each in made).most_common(1)[0][1] == 1
    assert len(made) == 36
    assert [total for _, total in store.board()] == pytest.approx([12 * score(450)] * 3)


def test_board_has_ten_names_without_codes(store):
    store.add_images(pictures())
    codes = [join(store, number) for number in range(12)]
    for code in codes:
        play(store, code, "recognised")
    play(store, codes[5], "recognised")
    board = store.board()
    assert len(board) == 10
    assert board[0][1] == pytest.approx(2 * board[1][1])
    assert not {name for name, _ in board} & set(codes)


def test_forget(store):
    store.add_images(pictures())
    codes = [join(store, number, recruit_id="worker") for number in range(2)]
    for code in codes:
        play(store, code, "recognised")
    assert store.forget(codes[0])
    assert [each.participant for each in store.rounds()] == codes[1:]
    assert store.participant_of("token 0") is None
    assert not store.forget(codes[0])
    assert store.forget(codes[1])
    assert not list(store.rounds())
    assert not store.participants()


def test_images_of_a_study_that_changes(store):
    store.add_images(pictures())
    played = play(store, join(store))
    store.add_images([replace(each, width=50) for each in pictures(count=5) if each.path != "cat/play0.png"])
    by_path = {each.path: each for each in store.images()}
    assert by_path["cat/play0.png"].excluded == "no longer in the study's folder"
    assert by_path["cat/play4.png"].width == 50
    with pytest.raises(StoreError, match=f"{played.picture.path} has changed since rounds were played on it"):
        store.add_images(pictures(digest="other", width=7))
    assert not any(each.width == 7 for each in store.images())


def test_exclude_and_include(store):
    store.add_images(pictures(count=2))
    first, second = store.images()
    store.exclude(first.id, "a watermark")
    assert {store.start(join(store, number), NOW).picture.id for number in range(4)} == {second.id}
    assert store.images()[0].excluded == "a watermark"
    assert store.images()[0].checked_by == "admin"
    store.include(first.id)
    assert {store.start(join(store, number), NOW).picture.id for number in range(4, 12)} == {first.id, second.id}
    with pytest.raises(KeyError):
        store.exclude(99, "none")


def test_admin_tokens_grow_old(store):
    store.add_admin("hash", NOW)
    assert store.is_admin("hash", NOW + 1)
    assert not store.is_admin("other", NOW + 1)
    assert not store.is_admin("hash", NOW + 31 * 86_400)


def test_readers_make_no_database(database, tmp_path):
    with pytest.raises(
        StoreError, match=r"(has no game|there is no database \S+); expected one that `gala-cuda clickme"
    ):
        Store(database, create=False)
    with pytest.raises(StoreError, match="there is no database"):
        Store(f"sqlite:///{tmp_path / 'none.sqlite'}", create=False)
    assert not (tmp_path / "none.sqlite").exists()
    Store(database).close()
    Store(database, create=False).close()


def test_another_version_is_refused(database, store):
    join(store)
    with create_engine(database).begin() as connection:
        connection.execute(text("UPDATE study SET schema = 7"))
    with pytest.raises(StoreError, match=r"a database of version 7; expected version 1: .* another --database"):
        Store(database)
    assert store.participants()


def test_other_tables_are_refused(database):
    with create_engine(database).begin() as connection:
        connection.execute(text("CREATE TABLE study (title TEXT)"))
    with pytest.raises(StoreError, match="holds other tables than a game's"):
        Store(database)
    with create_engine(database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM study")).scalar() == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("game.sqlite", "is no database's address; expected sqlite:///FILE or postgresql"),
        ("mysql://host/name", "another kind"),
        ("nothing://host/name", "expected sqlite:///FILE"),
        ("sqlite:////nowhere/at/all/game.sqlite", "unable to open database file"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/game", "refused"),
    ],
)
def test_addresses_that_lead_nowhere(url, said):
    with pytest.raises(StoreError, match=said) as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_file_that_is_no_database(tmp_path):
    (tmp_path / "game.sqlite").write_text("no database " * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        Store(f"sqlite:///{tmp_path / 'game.sqlite'}")


def test_sqlite_is_on_the_disk_before_it_answers(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'game.sqlite'}")
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def until_full(store, code, most):
    """How many rounds can be played before there is no room."""
    for played in range(most):
        try:
            play(store, code, repeats=True)
        except StoreFull:
            return played
    pytest.fail("the disk did not fill")


def test_full_sqlite_is_said_so(tmp_path):
    """By SQLite's own limit on pages, whose error is that of a full disk."""
    store = Store(f"sqlite:///{tmp_path / 'game.sqlite'}")
    store.add_images(pictures(count=40))
    code = join(store)
    with store.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    assert until_full(store, code, 40) == len(list(store.rounds()))
    assert sqlite3.connect(tmp_path / "game.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def small_disk(request):
    """A folder on a disk of so many kB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = Path(tempfile.mkdtemp(prefix="game-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
    disk.rmdir()


@pytest.mark.parametrize("small_disk", [400], indirect=True)
def test_full_disk_is_said_so(small_disk):
    store = Store(f"sqlite:///{small_disk / 'game.sqlite'}")
    store.add_images(pictures(count=400))
    assert until_full(store, join(store), 400) == len(list(store.rounds()))
    store.close()


@pytest.mark.parametrize("small_disk", [96], indirect=True)
def test_full_disk_of_postgresql_is_said_so(postgres, small_disk):
    import game_services

    store = Store(game_services.new_database(postgres, "full"))
    store.add_images(pictures(count=40))
    code = join(store)
    shutil.chown(small_disk, game_services.user())
    with store._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE TABLESPACE small LOCATION '{small_disk}'"))
        try:
            connection.execute(text("ALTER TABLE round SET TABLESPACE small"))
            assert until_full(store, code, 4000) == len(list(store.rounds()))
        finally:
            connection.execute(text("ALTER TABLE round SET TABLESPACE pg_default"))
            connection.execute(text("DROP TABLESPACE small"))
    store.close()


def test_rounds_of_excluded_people_stay_and_are_marked(store):
    store.add_images(pictures(count=2))
    codes = [join(store, number) for number in range(2)]
    for code in codes:
        play(store, code)
    store.exclude_person(codes[0], "paints nothing")
    assert [each.excluded for each in store.participants()] == ["paints nothing", None]
    assert len(list(store.rounds())) == 2
    store.exclude_person(codes[0], None)
    assert [each.excluded for each in store.participants()] == [None, None]
    with pytest.raises(KeyError, match="nobody"):
        store.exclude_person("nobody", "reason")


def test_rounds_of_one_image(store):
    store.add_images(pictures(count=2))
    code = join(store)
    played = [play(store, code) for _ in range(2)]
    for each in played:
        assert [round.id for round in store.rounds(each.picture.id)] == [each.id]
    assert len(list(store.rounds())) == 2
