"""The page store on disk: what is kept, what damage does, what several processes do to it."""

import hashlib
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from processes import PATIENCE_S
from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.source import RawPage
from rnow.browser.store.store import INDEX_FILE, PageStore
from rnow.errors import StoreError

URL_1 = URL("https://a.test/study/NCT1?x=1")
PAGE = RawPage(
    url=URL("https://www.a.test/study/NCT1"),
    status=200,
    content_type="text/html",
    charset="utf-8",
    body="<p>Zürich".encode() * 1_000,
)


def filled(folder: Path) -> PageStore:
    store = PageStore(folder)
    store.put(URL_1, PAGE, now=1_000.0)
    return store


def page_of(store: PageStore, url: URL = URL_1) -> RawPage | None:
    found = store.get(url)
    if found is None:
        return None
    assert isinstance(found.answer, RawPage)
    return found.answer


def test_a_page_comes_back_as_it_was_also_in_another_process(tmp_path: Path) -> None:
    filled(tmp_path).close()
    found = PageStore(tmp_path).get(URL_1)
    assert found is not None
    assert (found.answer, found.fetched_at) == (PAGE, 1_000.0)
    assert PageStore(tmp_path).get(URL("https://a.test/study/NCT1?x=2")) is None


def test_an_error_comes_back_with_its_code_and_sentence(tmp_path: Path) -> None:
    store = PageStore(tmp_path)
    store.put(URL_1, BrowseError("http_404", "the site answered with status 404."))
    found = store.get(URL_1)
    assert found is not None
    assert isinstance(found.answer, BrowseError)
    assert found.answer.text == "ERROR http_404: the site answered with status 404."


def test_two_urls_with_one_body_have_one_blob(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.put(URL("https://b.test/"), PAGE)
    assert len(store.rows()) == 2
    (blob,) = (tmp_path / "blobs").glob("*/*.zst")
    assert blob == store.blob_file(hashlib.sha256(PAGE.body).hexdigest())
    assert blob.stat().st_size < len(PAGE.body) / 10


def test_a_newer_answer_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    store = filled(tmp_path)
    newer = replace(PAGE, body=b"<p>newer")
    store.put(URL_1, newer)
    assert page_of(store) == newer


def test_a_flipped_byte_of_a_body_is_a_miss_and_is_found_and_mended(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.put(URL("https://b.test/"), replace(PAGE, body=b"other"))
    (row,) = (row for row in store.rows() if row.key == f"GET {URL_1}")
    blob = store.blob_file(row.body_hash)
    whole = blob.read_bytes()
    for place in range(len(whole)):
        blob.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # Of zstd's header a few bits say nothing about the content; what is read is never wrong.
        assert page_of(store) in (None, PAGE)
    assert page_of(store) is None
    assert [damaged.key for damaged in store.damaged()] == [f"GET {URL_1}"]
    store.put(URL_1, PAGE)
    assert page_of(store) == PAGE
    assert list(store.damaged()) == []


@pytest.mark.parametrize("change", ["url = 'https://evil.test/'", "status = 201", "error = 'a'"])
def test_a_row_that_was_changed_is_a_miss(tmp_path: Path, change: str) -> None:
    store = filled(tmp_path)
    index = sqlite3.connect(tmp_path / INDEX_FILE)
    index.execute(f"UPDATE pages SET {change}")
    index.commit()
    index.close()
    assert store.get(URL_1) is None
    assert len(list(store.damaged())) == 1


def test_a_blob_that_unpacks_to_more_than_its_row_says_is_a_miss(tmp_path: Path) -> None:
    store = PageStore(tmp_path)
    store.put(URL_1, replace(PAGE, body=b"small"))
    store.put(URL("https://b.test/"), replace(PAGE, body=bytes(50_000_000)))
    small, bomb = (store.blob_file(row.body_hash) for row in store.rows())
    small.write_bytes(bomb.read_bytes())
    assert page_of(store) is None


def test_an_index_of_rubbish_is_a_miss_for_a_reader_and_an_error_for_its_owner(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path)
    store.close()
    file = tmp_path / INDEX_FILE
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100] + b"x" * (size - 100))
    with pytest.raises(StoreError, match="cannot be used as a page store: database disk image"):
        PageStore(tmp_path)


def test_a_folder_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, read_only in ((tmp_path / "file", False), (tmp_path / "none", True)):
        with pytest.raises(StoreError) as refused:
            PageStore(place, read_only=read_only)
        assert str(refused.value).startswith(f"{place} cannot be used as a page store: ")
    assert not (tmp_path / "none").exists()


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    store = filled(tmp_path / "a")
    same = PageStore(tmp_path / "b")
    same.put(URL_1, PAGE, now=2_000.0)
    assert store.fingerprint() == same.fingerprint()
    same.put(URL_1, replace(PAGE, body=b"other"))
    assert store.fingerprint() != same.fingerprint()


def test_a_reader_writes_nothing_also_where_nothing_can_be_written() -> None:
    code = (
        "import os, sys; from pathlib import Path; from yarl import URL\n"
        "from rnow.browser.store.store import PageStore\n"
        "os.getuid() or os.setuid(65534)  # root may write anywhere\n"
        "store = PageStore(Path(sys.argv[1]), read_only=True)\n"
        f"print(len(store.get(URL({str(URL_1)!r})).answer.body))\n"
    )
    # Not below pytest's folder, which is closed to other users.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        filled(folder).close()
        before = sorted(folder.rglob("*"))
        folder.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
        folder.chmod(0o700)
        assert (done.stdout, done.stderr) == (f"{len(PAGE.body)}\n", "")
        assert sorted(folder.rglob("*")) == before


WRITE_PAGES = """
import sys
from pathlib import Path
from yarl import URL
from rnow.browser.source import RawPage
from rnow.browser.store.store import PageStore

store, number = PageStore(Path(sys.argv[1])), sys.argv[2]
for i in range(50):
    url = URL(f"https://a.test/{number}/{i}")
    body = b"%d" % (i % 7)
    store.put(url, RawPage(url=url, status=200, content_type="text/html", charset=None, body=body))
store.close()
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_PAGES, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0, 0, 0]
    store = PageStore(tmp_path)
    assert len(store.rows()) == 200
    assert list(store.damaged()) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    filled(tmp_path).close()
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE")  # as a new file is
    # A reader is in the way of one who makes it a WAL, a writer in the way of both.
    other.execute("BEGIN EXCLUSIVE" if read_only else "BEGIN")
    other.execute("SELECT * FROM pages").fetchall()
    num_waits = 0

    def end_of_the_other(seconds: float) -> None:
        nonlocal num_waits
        num_waits += 1
        other.close()

    monkeypatch.setattr("time.sleep", end_of_the_other)
    monkeypatch.setattr("rnow.browser.store.store._BUSY_TIMEOUT_S", 0.1)
    store = PageStore(tmp_path, read_only=read_only)
    assert num_waits == 1
    assert store.get(URL_1) is not None
    store.close()


def test_one_process_has_a_claim_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    store = PageStore(tmp_path)
    code = (
        "import sys; from pathlib import Path; from yarl import URL\n"
        "from rnow.browser.store.store import PageStore\n"
        f"store = PageStore(Path({str(tmp_path)!r}))\n"
        f"print(store.try_claim(URL({str(URL_1)!r})), flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert not store.try_claim(URL_1)
    assert store.try_claim(URL("https://b.test/"))
    other.kill()
    other.communicate()
    assert store.try_claim(URL_1)
    store.release(URL_1)
