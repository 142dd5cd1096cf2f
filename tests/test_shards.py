"""Tar shards, on disk and from a server: they give the same batches as a folder, and faults are named."""

import gc
import json
import tarfile
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
from imagesets import equal, read, write_shard

from gala_cuda.cli.main import main
from gala_cuda.data import shard_index, shards
from gala_cuda.data.errors import UnreachableError


@pytest.fixture
def shard(shard_folder, tmp_path):
    """(one shard of a copy, its members)."""
    for file in shard_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "set-train-001.tar"
    with tarfile.open(file) as tar:
        return file, {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True], ids=["headers", "index"])
def test_shards_are_the_folder(picture_folder, shard, indexed):
    source = shard[0].parent
    if indexed:
        assert shard_index.write_index(source) == source / "index.json"
    ours, theirs = read(source, 2, augment="modern"), read(picture_folder, augment="modern")
    assert (ours.classes, ours.train.images, ours.test.images) == (theirs.classes, 200, 14)
    assert equal(ours.train.epoch(), theirs.train.epoch())
    assert equal(ours.test.epoch(), theirs.test.epoch())


def test_an_unreadable_image_of_a_shard_is_named(shard):
    file, members = shard
    write_shard(file, members | {"china-051.jpg": b"no picture"})
    train = read(file.parent, 2).train
    list(train.epoch())
    assert train.skipped == [("set-train-001.tar/china-051.jpg", "no image of a known format")]


def test_a_damaged_shard_is_named(shard):
    file, members = shard
    whole = file.read_bytes()
    header = whole.index(b"china-060")
    cut, end = rf"{file.name} is no whole tar file .*", rf"damaged or cut off at byte {header}$"
    for data, message in (
        (whole[: header - 300], "unexpected end of data"),
        (whole[: header + 100], end),
        (whole[:header] + b"x" + whole[header + 1 :], end),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=cut + message):
            read(file.parent)
    for wrong, message in (
        (members | {"more.jpg": b""}, "more has no class; expected KEY.jpg and KEY.cls"),
        (members | {"china-051.cls": b"one"}, ": china-051.cls is b'one'; expected a whole number, the class"),
        (members | {"china-051.cls": b"2"}, "china-051.jpg is of class 2; expected 0 to 1"),
    ):
        write_shard(file, wrong)
        with pytest.raises(ValueError, match=f"{file.name}.*{message}"):
            read(file.parent)


def test_a_wrong_index_is_named(shard):
    file, _ = shard
    folder, index = file.parent, file.parent / shard_index.FILE_NAME
    index.write_text('{"classes": ["a"], "train": [], "val": []}')
    with pytest.raises(FileNotFoundError, match="no images in shards to train"):
        read(folder)
    shard_index.write_index(folder)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"set-train-001.tar has \d+ bytes, and \d+ in index.json; write"):
        read(folder)
    index.write_text('{"classes": []}')
    with pytest.raises(ValueError, match=r"index.json is no index of shards: 'train'"):
        read(folder)
    index.unlink()
    for file in folder.glob("*val*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tar shards of the split val in .* with val as a word"):
        read(folder)


def test_the_command_that_writes_an_index(shard, capsys):
    folder = shard[0].parent
    assert main(["index", str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder / shard_index.FILE_NAME}\n"
    assert read(folder).train.images == 200
    with pytest.raises(SystemExit):
        main(["index", str(folder / "nowhere")])
    assert "argument FOLDER: there are no tar shards of the split train" in capsys.readouterr().err


@pytest.fixture
def server(shard_folder, monkeypatch):
    """Serves the shards and their index; ``server.answers`` are statuses to give first."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    index = json.dumps(asdict(shard_index.scan_folder(shard_folder))).encode()

    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1

        def do_GET(self):
            answer = self.server.answers.pop() if self.server.answers and self.path.endswith(".tar") else None
            if answer and answer >= 400:
                return self.send_error(answer)
            if not self.path.startswith("/set/"):
                return self.send_error(404)
            data = index if self.path == "/set/index.json" else (shard_folder / Path(self.path).name).read_bytes()
            asked = self.headers.get("Range") if answer != 200 else None
            self.send_response(206 if asked else 200)
            if asked:
                first, last = map(int, asked.removeprefix("bytes=").split("-"))
                data = data[first : last + 1]
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 100  # with fewer, connections wait a second before they are tried again

    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers = []
        server.address = f"http://127.0.0.1:{server.server_port}/set"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_over_http_are_those_on_disk(shard_folder, server, monkeypatch, workers):
    monkeypatch.setattr(shards, "PAUSE", 0.01)
    streamed = read(server.address, workers).train
    server.answers = [503, 503]
    assert equal(islice(streamed.epoch(), 4), islice(read(shard_folder).train.epoch(), 4))
    assert not server.answers
    assert streamed.skipped == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "message", "workers"),
    [
        pytest.param(503, "503, Service Unavailable", 1, id="busy"),
        pytest.param(404, "404, Not Found", 0, id="gone"),
        pytest.param(200, "200; expected 206", 0, id="no-ranges"),
    ],
)
def test_a_server_that_fails_stops_and_skips_nothing(server, monkeypatch, answer, message, workers):
    monkeypatch.setattr(shards, "PAUSE", 0.01)
    train = read(server.address, workers).train
    server.answers = [answer] * 999
    with pytest.raises(UnreachableError, match=rf"^http\S+/set-train-00\d.tar answered {message}$"):
        next(train.epoch())
    server.answers = []
    next(train.epoch())
    assert train.skipped == []
    gc.collect()  # frees the worker, which the error's frames hold and which would wait for the server


def test_a_server_without_an_index_is_named(server):
    with pytest.raises(FileNotFoundError, match=r"/nowhere/index.json answered 404"):
        read(server.address.replace("/set", "/nowhere"))
