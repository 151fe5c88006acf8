"""Data sets by name, against real servers on this machine: whole ones, broken ones, and none at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rompatch.errors import DownloadError, SuiteError
from rompatch.verify import dataset as dataset_module
from rompatch.verify.dataset import ALIASES, PUBLISHED, Published, cached_path, load_dataset, open_dataset
from rompatch.verify.reading import FORM_NAMES

RECORDS = [
    {"known_id": i, "subject": f"Tower {i}", "attribute": "Rome", "prompt": f"Tower {i} is in"} for i in range(500)
]
CONTENT = json.dumps(RECORDS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A web server's content and manners, and what it was asked.

    Args:
        cuts: bytes after which each next connection is cut; later connections are whole.
        etag: None: the server does not say which version of the file it has.
        statuses: what the next requests are answered instead of the file.
        busy: the file's bytes wait for this before they are sent.
    """

    content: bytes = CONTENT
    kind: str = "application/json"
    etag: str | None = '"v1"'
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    busy: threading.Event | None = None
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server for one file at ``site.url``; the cache is empty."""
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.asked.append(wanted)
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            start = 0
            if wanted and served.ranges and self.headers.get("If-Range") == served.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            body = served.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", served.kind)
            self.send_header("Content-Length", str(len(body)))
            if served.etag:
                self.send_header("ETag", served.etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
            self.end_headers()
            if served.busy:
                served.busy.wait(10)
            self.wfile.write(body[: served.cuts.pop(0)] if served.cuts else body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/data/known_1000.json"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def kept(site: Site) -> list[str]:
    """What is in the folder of the cached file, locks aside."""
    folder = cached_path(site.url).parent
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_a_url_is_fetched_once_and_kept_with_its_hash(site: Site) -> None:
    notes: list[str] = []
    data, found = load_dataset(site.url, on_progress=notes.append)
    assert (data.sha256, data.url, data.path) == (SHA256, site.url, cached_path(site.url))
    assert (found.form, len(found.records)) == ("known_1000", 500)
    assert notes == [f"downloading {site.url}", f"stored as {data.path}"]
    recorded = json.loads(data.path.with_name("known_1000.json.sha256.json").read_text(encoding="utf-8"))
    assert recorded == {"bytes": len(CONTENT), "sha256": SHA256, "url": site.url}
    assert kept(site) == ["known_1000.json", "known_1000.json.sha256.json"]
    site.statuses = [500] * 9
    assert open_dataset(site.url) == data, "offline from here on"
    assert len(site.asked) == 1


def test_an_alias_is_the_authors_publication(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ALIASES.keys() == set(FORM_NAMES)
    assert [ALIASES[name].url.removeprefix(PUBLISHED) for name in FORM_NAMES] == [
        "counterfact.json",
        "known_1000.json",
        "zsre_mend_eval.json",
    ]
    assert PUBLISHED == "https://rome.baulab.info/data/dsets/"
    monkeypatch.setitem(dataset_module.ALIASES, "known_1000", Published(site.url, ("known_1000.json",)))
    data, found = load_dataset("known_1000")
    assert (data.form, data.url, len(found.records)) == ("known_1000", site.url, 500)


def test_a_connection_that_is_cut_is_continued_where_it_broke(site: Site) -> None:
    site.cuts = [10_000]
    notes: list[str] = []
    data = open_dataset(site.url, on_progress=notes.append)
    assert data.path.read_bytes() == CONTENT
    assert site.asked == [None, "bytes=10000-"]
    assert "the connection broke off after 10,000 bytes; going on" in notes


def test_what_arrived_is_kept_for_the_next_call(site: Site) -> None:
    site.cuts = [10_000, 1_000, 500]
    with pytest.raises(DownloadError, match="broke off at byte 11,500 of") as caught:
        open_dataset(site.url)
    assert "(11,500 bytes are kept)" in str(caught.value)
    assert not cached_path(site.url).exists(), "a half file has no name"
    assert open_dataset(site.url).path.read_bytes() == CONTENT
    assert site.asked == [None, "bytes=10000-", "bytes=11000-", "bytes=11500-"]
    assert kept(site) == ["known_1000.json", "known_1000.json.sha256.json"]


def test_parts_of_two_versions_are_never_joined(site: Site) -> None:
    site.cuts = [10_000] * 3
    site.ranges = False
    with pytest.raises(DownloadError):
        open_dataset(site.url)
    site.ranges, site.etag, site.content = True, '"v2"', CONTENT.replace(b"Rome", b"Oslo")
    assert open_dataset(site.url).path.read_bytes() == site.content


def test_without_a_version_the_download_begins_anew(site: Site) -> None:
    site.etag, site.cuts = None, [10_000]
    assert open_dataset(site.url).path.read_bytes() == CONTENT
    assert site.asked == [None, None]


def test_a_part_that_the_server_no_longer_has_is_dropped(site: Site) -> None:
    site.cuts, site.statuses = [10_000], []
    path = cached_path(site.url)
    path.parent.mkdir(parents=True)
    path.with_name(".known_1000.json.part").write_bytes(b"x" * 10)
    path.with_name(".known_1000.json.part.json").write_text('"\\"v1\\""', encoding="utf-8")
    site.cuts, site.statuses = [], [416]
    assert open_dataset(site.url).path.read_bytes() == CONTENT
    assert site.asked == ["bytes=10-", None]


def test_a_busy_server_is_asked_again(site: Site) -> None:
    site.statuses = [503, 429]
    assert open_dataset(site.url).sha256 == SHA256
    assert len(site.asked) == 3


def test_a_missing_file_is_not_asked_for_twice(site: Site) -> None:
    site.statuses = [404] * 9
    with pytest.raises(DownloadError, match="HTTP 404") as caught:
        open_dataset(site.url)
    assert len(site.asked) == 1
    assert site.url in str(caught.value)
    assert f"put it at {cached_path(site.url)}" in str(caught.value)


def test_a_web_page_is_no_data_set(site: Site) -> None:
    site.kind, site.content = "text/html; charset=utf-8", b"<html>Please log in</html>"
    with pytest.raises(DownloadError, match="a web page instead"):
        open_dataset(site.url)
    assert not cached_path(site.url).exists()


def test_a_web_page_in_disguise_is_refused_when_it_is_read(site: Site) -> None:
    site.content = b"<html>Please log in</html>"
    with pytest.raises(SuiteError, match="a web page"):
        load_dataset(site.url)


def test_without_a_network_the_error_says_the_address_and_where_to_put_the_file(site: Site) -> None:
    url = "http://127.0.0.1:9/data/known_1000.json"  # nothing listens there
    with pytest.raises(DownloadError, match="no connection") as caught:
        open_dataset(url)
    assert url in str(caught.value)
    assert f"put it at {cached_path(url)}" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_file_put_there_by_hand_is_taken(site: Site) -> None:
    url = "http://127.0.0.1:9/data/known_1000.json"
    cached_path(url).parent.mkdir(parents=True)
    cached_path(url).write_bytes(CONTENT)
    assert open_dataset(url).sha256 == SHA256
    assert cached_path(url).with_name("known_1000.json.sha256.json").exists()


def test_a_damaged_copy_is_fetched_anew(site: Site) -> None:
    path = open_dataset(site.url).path
    path.write_bytes(CONTENT[:-100])
    notes: list[str] = []
    assert open_dataset(site.url, on_progress=notes.append).sha256 == SHA256
    assert path.read_bytes() == CONTENT
    assert "no longer as it was fetched" in notes[0]
    path.with_name("known_1000.json.sha256.json").write_text("{", encoding="utf-8")
    assert open_dataset(site.url).sha256 == SHA256, "a damaged record of the hash is made anew"


def test_a_damaged_copy_is_not_used_when_there_is_no_network(site: Site) -> None:
    path = open_dataset(site.url).path
    path.write_bytes(CONTENT[:-100])
    site.statuses = [404]
    with pytest.raises(DownloadError):
        open_dataset(site.url)


def test_an_expected_hash_is_insisted_on(site: Site, tmp_path: Path) -> None:
    assert open_dataset(site.url, sha256=SHA256.upper()).sha256 == SHA256
    with pytest.raises(SuiteError, match="not the expected one"):
        open_dataset(site.url, sha256="0" * 64)
    other = site.url.replace("data", "other")
    with pytest.raises(DownloadError, match="not the expected one"):
        open_dataset(other, sha256="0" * 64)
    assert not cached_path(other).exists()
    local = tmp_path / "local.json"
    local.write_bytes(CONTENT)
    with pytest.raises(SuiteError, match="not the expected one"):
        open_dataset(str(local), sha256="0" * 64)


def test_two_processes_fetch_a_file_once(site: Site, tmp_path: Path) -> None:
    site.busy = threading.Event()
    script = (
        "import sys; from rompatch.verify.dataset import open_dataset\n"
        "print(open_dataset(sys.argv[1], on_progress=lambda note: print(note, flush=True)).sha256)"
    )
    command = [sys.executable, "-c", script, site.url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    firsts = [process.stdout.readline() for process in processes]
    assert sorted(line.split()[0] for line in firsts) == ["another", "downloading"]
    site.busy.set()
    for process in processes:
        output, _ = process.communicate(timeout=30)
        assert output.split()[-1] == SHA256
    assert len(site.asked) == 1


def test_a_place_that_cannot_be_written_to_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(DownloadError, match="could not be stored") as caught:
        open_dataset(site.url)
    assert "ROMPATCH_CACHE" in str(caught.value)


def test_a_disk_that_fills_up_in_the_middle_is_named_and_the_rest_fetched_later(site: Site) -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
        "from rompatch.errors import DownloadError\n"
        "from rompatch.verify.dataset import open_dataset\n"
        "try: open_dataset(sys.argv[1])\n"
        "except DownloadError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, site.url], capture_output=True, text=True, check=False)
    assert "could not be stored" in done.stdout
    assert "enough space" in done.stdout
    assert "ROMPATCH_CACHE" in done.stdout
    assert not cached_path(site.url).exists()
    assert open_dataset(site.url).path.read_bytes() == CONTENT
    assert site.asked == [None, "bytes=16384-"]


@pytest.mark.parametrize("url", ["ftp://host/counterfact.json", "file:///etc/passwd"])
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(DownloadError, match="https://"):
        open_dataset(url)


@pytest.mark.parametrize("url", ["http://[/x.json", "http://127.0.0.1:port/x.json", "http://127.0.0.1/a b\n.json"])
def test_an_address_that_is_none_is_refused(site: Site, url: str) -> None:
    with pytest.raises(DownloadError, match="no usable address"):
        open_dataset(url)


def test_cached_names_are_safe_and_differ_by_address(site: Site) -> None:
    names = [cached_path(f"http://host/{path}") for path in ("a/x.json", "b/x.json", "a/..%2f..%2fx", "", "x.json?v=2")]
    assert len({name.parent for name in names}) == 5
    assert [name.name for name in names] == ["x.json", "x.json", "x", "data.json", "x.json"]


def made(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(CONTENT)
    return folder


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = made(tmp_path / "data", "mine.json") / "mine.json"
    data, found = load_dataset(str(path))
    assert (data.path, data.sha256, data.url, data.form) == (path, SHA256, None, None)
    assert found.form == "known_1000"


@pytest.mark.parametrize(
    ("names", "form", "expected"),
    [
        (("known_1000.json", "other.json", "notes.txt"), None, "known_1000.json"),
        (("counterfact-300.json",), None, "counterfact-300.json"),
        (("counterfact.json", "counterfact-300.json"), None, "counterfact.json"),
        (("counterfact.json", "zsre_mend_eval.json"), "zsre", "zsre_mend_eval.json"),
        (("zsre_eval_1037.json",), "zsre", "zsre_eval_1037.json"),
        (("mine.json",), "zsre", "mine.json"),
    ],
)
def test_a_folder_gives_its_data_set(tmp_path: Path, names: tuple[str, ...], form, expected: str) -> None:
    folder = made(tmp_path / "data", *names)
    assert open_dataset(str(folder), form=form).path == folder / expected


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "no .json file"),
        (("notes.txt",), "no .json file"),
        (("a.json", "b.json"), "a.json, b.json"),
        (("counterfact.json", "known_1000.json"), "counterfact.json, known_1000.json"),
        (("counterfact-1.json", "counterfact-2.json"), "counterfact-1.json, counterfact-2.json"),
    ],
)
def test_a_folder_that_does_not_tell_is_refused(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    with pytest.raises(SuiteError, match="does not tell which") as caught:
        open_dataset(str(made(tmp_path / "data", *names)))
    assert caught.value.found == found


def test_what_is_neither_is_refused_with_all_that_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no data set 'counterfax'") as caught:
        open_dataset("counterfax")
    assert "counterfact, known_1000, zsre" in str(caught.value)
