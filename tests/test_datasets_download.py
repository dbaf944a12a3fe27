"""Downloads from a server on this machine: checksum, resume, hostile archives, instructions."""

import dataclasses
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import full_disk, refused

from adlib import datasets
from adlib.datasets import catalogue, download


def tar_bytes(names, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


def zip_bytes(names, mode=0, content="x"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def zip_with(at, value):
    """A zip of one file whose headers hold another byte: flags at 6, the method of compression at 8."""
    content = bytearray(zip_bytes(["a.png"]))
    for start in (at, content.index(b"PK\x01\x02") + at + 2):
        content[start] = value
    return bytes(content)


@pytest.fixture
def server():
    """A server of one file: `server.content`; it cuts the connection after `server.cut` bytes, once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state, asked = self.server, self.headers.get("Range")
            state.asked.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges is True else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body, state.cut = body[: state.cut], None
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.content, http.cut, http.ranges, http.asked = b"", None, True, []
        http.url = f"http://127.0.0.1:{http.server_port}/file"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture
def entry(server, monkeypatch):
    """Put a data set into the catalogue whose archive the server has."""

    def put(content, archive="data.tar.gz", **changes):
        server.content = content
        values = {"url": server.url, "archive": archive, "sha256": hashlib.sha256(content).hexdigest()} | changes
        monkeypatch.setitem(catalogue.DATASETS, "mpdd", dataclasses.replace(catalogue.DATASETS["mpdd"], **values))

    return put


FILES = ["top/tubes/train/good/0.png", "top/tubes/test/good/1.png", "top/bracket/train/good/0.png"]


@pytest.mark.parametrize(("make", "name"), [(tar_bytes, "a.tar.gz"), (zip_bytes, "a.zip")])
def test_get_unpacks_without_the_outer_folder_and_tidies_up(entry, tmp_path, capsys, make, name):
    entry(make(FILES), name)
    folder = datasets.get("mpdd", tmp_path)
    assert folder == tmp_path / "mpdd"
    assert datasets.categories("mpdd", folder) == ["bracket", "tubes"]
    assert [p.name for p in tmp_path.iterdir()] == ["mpdd"]
    assert "licence CC BY-NC-SA 4.0" in capsys.readouterr().out
    datasets.get("mpdd", tmp_path)  # a second time nothing is downloaded
    assert "already in" in capsys.readouterr().out


def test_a_broken_download_goes_on_where_it_stopped(entry, server, tmp_path):
    entry(tar_bytes(FILES))
    server.cut = 100
    refused("run the command again", datasets.get, "mpdd", tmp_path)
    assert (tmp_path / "data.tar.gz.part").stat().st_size == 100
    assert datasets.get("mpdd", tmp_path).is_dir()
    assert server.asked == [None, "bytes=100-"]


def test_a_full_disk(entry, tmp_path, monkeypatch):
    entry(tar_bytes(FILES))
    monkeypatch.setattr(download, "open", full_disk, raising=False)
    refused(r"data\.tar\.gz\.part: the disk is full", datasets.get, "mpdd", tmp_path)


@pytest.mark.parametrize("ranges", [False, "said, not sent", True])
def test_an_old_part_is_used_where_it_is_complete_and_the_server_can_go_on(entry, server, tmp_path, ranges):
    entry(tar_bytes(FILES))
    server.ranges = ranges
    (tmp_path / "data.tar.gz.part").write_bytes(server.content if ranges is True else b"old and wrong bytes")
    assert datasets.get("mpdd", tmp_path).is_dir()


def test_wrong_checksum(entry, server, tmp_path):
    entry(tar_bytes(FILES), sha256="0" * 64)
    refused(f"sha256 is {hashlib.sha256(server.content).hexdigest()}, expected 0000", datasets.get, "mpdd", tmp_path)
    assert list(tmp_path.iterdir()) == []  # a wrong part would never become right


def test_servers_that_cannot_be_asked(entry, server, tmp_path):
    no_host = server.url.replace("http://", "http://user@")
    for url, said in (("http://127.0.0.1:1/none", "no connection"), (no_host, "http://user@")):
        entry(b"x", url=url)
        refused(said, datasets.get, "mpdd", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        tar_bytes(["ok.png", "../escaped.png"]),
        tar_bytes(["/tmp/adlib_escaped.png"]),
        tar_bytes(["a/../../escaped.png"]),
        tar_bytes(["ok.png"], [("link", tarfile.SYMTYPE, "/etc")]),
        tar_bytes(["ok.png"], [("link", tarfile.SYMTYPE, "ok.png")]),
        tar_bytes(["ok.png"], [("link", tarfile.LNKTYPE, "/etc/hostname")]),
        tar_bytes(["ok.png"], [("fifo", tarfile.FIFOTYPE, "")]),
        tar_bytes(["ok.png"], [("disk", tarfile.BLKTYPE, "")]),
        zip_bytes(["ok.png", "../escaped.png"]),
        zip_bytes(["..\\escaped.png"]),
        zip_bytes(["/escaped.png"]),
        zip_bytes(["C:/escaped.png"]),
        zip_bytes(["ok.png"], mode=0o120777),  # a link
        zip_bytes(["ok.png"], content=bytes(10**6)),  # far more than its size
    ],
)
def test_hostile_archives_leave_nothing_behind(tmp_path, content, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 1)
    archive = tmp_path / "in" / "archive"
    archive.parent.mkdir()
    archive.write_bytes(content)
    refused("do not use this file", download.unpack, archive, tmp_path / "in/data")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["in", "in/archive"]


ENCRYPTED, UNKNOWN_COMPRESSION = zip_with(6, 1), zip_with(8, 99)


@pytest.mark.parametrize(
    "content", [b"<html>please log in</html>", tar_bytes(FILES)[:-30], ENCRYPTED, UNKNOWN_COMPRESSION]
)
def test_damaged_archives_are_not_kept_as_if_whole(entry, tmp_path, content):
    entry(content, sha256="")
    refused(r"data\.tar\.gz: [^\n]*download it again", datasets.get, "mpdd", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_was_downloaded_by_hand(entry, tmp_path):
    content = tar_bytes(FILES)
    entry(content, url="")
    (tmp_path / "data.tar.gz").write_bytes(content)
    assert datasets.get("mpdd", tmp_path) == tmp_path / "mpdd"
    assert (tmp_path / "data.tar.gz").exists()  # not ours to delete
    entry(content, archive="other.tar.gz", url="", sha256="0" * 64)
    (tmp_path / "mpdd").rename(tmp_path / "away")
    (tmp_path / "other.tar.gz").write_bytes(content)
    refused("expected 0000", datasets.get, "mpdd", tmp_path)


@pytest.mark.parametrize(
    "name", [n for n, e in catalogue.DATASETS.items() if not e.url and e.layout not in ("demo", "elpv")]
)
def test_instructions_say_where_what_and_how_to_check(tmp_path, capsys, name):
    assert datasets.get(name, tmp_path) is None
    out, entry = capsys.readouterr().out, catalogue.DATASETS[name]
    for said in (entry.page, entry.steps, entry.licence, entry.archive, entry.sha256, f"adlib data check {name}"):
        assert said in out
    assert list(tmp_path.iterdir()) == []


def test_get_by_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download.elpv, "package_folder", lambda: None)
    assert datasets.get("elpv", tmp_path) is None
    assert "pip install elpv-dataset" in capsys.readouterr().out


def test_listing(small_tree, tmp_path, monkeypatch):
    (tmp_path / "own").symlink_to(small_tree)
    (tmp_path / "mpdd").symlink_to(small_tree)
    (tmp_path / "visa").mkdir()
    table = datasets.listing(tmp_path).set_index("name")
    assert list(table.columns) == ["layout", "licence", "size", "present"]
    present = table.present[["own", "mpdd", "visa", "demo", "dtd"]].tolist()
    assert present == ["1 category", "1 category", "no", "no", "no"]
    assert set(catalogue.DATASETS) <= set(table.index)
    assert datasets.listing(tmp_path / "nowhere").present.isin(["no", "package"]).all()


def test_catalogue_is_sound():
    for name, entry in catalogue.DATASETS.items():
        assert entry.layout in datasets.LAYOUTS or entry.layout == "textures", name
        assert list(entry.categories) == sorted(entry.categories), name
        assert not entry.counts or tuple(entry.counts) == entry.categories, name
        assert not entry.url or (entry.url.startswith("https://") and len(entry.sha256) == 64), name
        assert entry.url or entry.steps or entry.layout == "demo", name
    # The totals that the papers state.
    totals = {name: [sum(c) for c in zip(*e.counts.values(), strict=True)] for name, e in catalogue.DATASETS.items()}
    assert (totals["mvtec_ad"], totals["visa"]) == ([3629, 467, 1258], [8659, 962, 1200])
    assert (totals["mpdd"], totals["btad"]) == ([888, 176, 282], [1799, 451, 290])
