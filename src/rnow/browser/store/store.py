"""The page store: what sites answered, on disk, so that a run can be repeated without them.

    pages/
      index.sqlite    one row a URL: where it led, status, type, when, from which source, body hash
      blobs/3f/…zst   bodies as they came, by the hash of their content, each once
      lock            byte ranges of it say which process is fetching which URL

What is kept is the raw answer, so a better extractor is a matter of reading again. Texts are not
kept: converting a page takes 50 ms, once for each worker that reads it.

A row's key is the method and the URL as `check_url` writes it; redirects are part of the answer
(the row says where they ended), so a page that two URLs lead to has two rows and one blob. Kept are
pages, and what a site would say of this URL again: that there is none (400, 404, 410), that it is
of a type or a size that is not read, that robots.txt closes it. Not kept is what may be otherwise
tomorrow: 5xx, 401, 403, 429, block pages, timeouts, broken connections. A body is at most what the
browser reads of a page (5 MB); a blob that unpacks to more than its row says, or to anything else,
counts as not there.

Nothing in it is code or pickle. Every row carries the hash of its own fields, every blob is named
by its own: one flipped byte makes a page that is not there, and `verify` says which.
"""

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import zstandard
from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.source import RawPage
from rnow.errors import StoreError

INDEX_FILE = "index.sqlite"
_BUSY_TIMEOUT_S = 10.0
_OPEN_LIMIT_S = 60.0
_MAX_BODY_BYTES = 64_000_000  # of a store that somebody else made
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (
    key TEXT PRIMARY KEY, url TEXT NOT NULL, status INTEGER NOT NULL, content_type TEXT NOT NULL,
    charset TEXT, source TEXT NOT NULL, error TEXT, body_hash TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, digest TEXT NOT NULL, fetched_at REAL NOT NULL
) WITHOUT ROWID
"""


def page_key(url: URL) -> str:
    """Return the key of a checked URL."""
    return f"GET {url}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """What a site answered, and when: a page, or why there is none."""

    answer: RawPage | BrowseError
    fetched_at: float  # seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """One row of the index."""

    key: str
    url: str  # after redirects; of an error the one that was asked for
    status: int  # 0 for an error that is none of HTTP's
    content_type: str
    charset: str | None
    source: str
    error: str | None  # "code\nsentence", None for a page
    body_hash: str
    num_bytes: int  # of the body, unpacked
    digest: str  # of all fields above
    fetched_at: float

    @property
    def asked_url(self) -> str:
        return self.key.removeprefix("GET ")

    @property
    def is_whole(self) -> bool:
        *hashed, digest, _ = astuple(self)
        return bool(digest == _digest(*hashed))


_FIELDS = tuple(field.name for field in fields(StoredRow))  # as the table has them


class PageStore:
    """One process's handle on a store. Its calls block, a few milliseconds each; one at a time.

    store = PageStore(Path("pages")); store.put(url, page); store.get(url)

    Any number of processes may read and write one store at once. With `read_only` nothing in the
    folder is ever written, so that it may lie on a medium that cannot be.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        self._blobs = folder / "blobs"
        self._lock_file = -1
        try:
            if not read_only:
                self._blobs.mkdir(parents=True, exist_ok=True)
                lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._lock_file = lock
            connect = _connect_read_only if read_only else _connect
            self._index = _when_free(partial(connect, folder / INDEX_FILE))
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{folder} cannot be used as a page store: {error}; name another folder with "
                "browser.store, or fill this one with rnow corpus build"
            ) from error

    def close(self) -> None:
        self._index.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def get(self, url: URL) -> StoredAnswer | None:
        """Return what is kept of a URL; None where that is nothing, or damaged."""
        try:
            found = self._rows("WHERE key = ?", page_key(url))
        except StoreError:
            return None
        if not found or not found[0].is_whole:
            return None
        row = found[0]
        if row.error is not None:
            code, _, sentence = row.error.partition("\n")
            answer: RawPage | BrowseError = BrowseError(code, sentence, is_lasting=True)
        else:
            body = self._body(row)
            if body is None:
                return None
            answer = RawPage(
                url=URL(row.url, encoded=True),
                status=row.status,
                content_type=row.content_type,
                charset=row.charset,
                body=body,
                source=row.source,
            )
        return StoredAnswer(answer=answer, fetched_at=row.fetched_at)

    def put(self, url: URL, answer: RawPage | BrowseError, *, now: float | None = None) -> None:
        """Keep an answer, in the place of an older one."""
        error, page = None, answer
        if isinstance(page, BrowseError):
            error = f"{page.code}\n{page.sentence}"
            page = RawPage(url=url, status=0, content_type="", charset=None, body=b"")
        body_hash = hashlib.sha256(page.body).hexdigest()
        self._write_blob(body_hash, page.body)
        whole = (
            page_key(url), str(page.url), page.status, page.content_type, page.charset,
            page.source, error, body_hash, len(page.body),
        )  # fmt: skip
        row = (*whole, _digest(*whole), time.time() if now is None else now)
        places = ", ".join("?" * len(_FIELDS))
        self._index.execute(f"INSERT OR REPLACE INTO pages VALUES ({places})", row)

    def try_claim(self, url: URL) -> bool:
        """Claim the fetching of a URL; False while another process has it.

        Only processes are kept apart: what one process does twice is its own business. A claim ends
        with `release`, with the process, or where the process closes any store of this folder.
        """
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(url))
        except BlockingIOError:
            return False
        return True

    def release(self, url: URL) -> None:
        fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, _place(url))

    def rows(self) -> list[StoredRow]:
        """Return the whole index, by key. Raises StoreError where it is damaged."""
        return self._rows("ORDER BY key")

    def fingerprint(self) -> str:
        """Return a hash of all that a replay depends on: every row, times apart."""
        digests = (row.digest for row in self.rows())
        return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()

    def damaged(self) -> list[StoredRow]:
        """Return the rows that can no longer be read as they were written."""
        return [
            row
            for row in self.rows()
            if not row.is_whole or (row.error is None and self._body(row) is None)
        ]

    def blob_file(self, body_hash: str) -> Path:
        return self._blobs / body_hash[:2] / f"{body_hash}.zst"

    def _rows(self, clause: str, *values: str) -> list[StoredRow]:
        try:
            found = self._index.execute(f"SELECT {', '.join(_FIELDS)} FROM pages {clause}", values)
            return [StoredRow(**dict(zip(_FIELDS, row, strict=True))) for row in found]
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.folder / INDEX_FILE} cannot be read: {error}; "
                "remove the folder and fill it anew"
            ) from error

    def _body(self, row: StoredRow) -> bytes | None:
        try:
            packed = self.blob_file(row.body_hash).read_bytes()
            # One byte more than is wanted shows that there is more, whatever it would grow to.
            limit = min(row.num_bytes, _MAX_BODY_BYTES) + 1
            body = zstandard.ZstdDecompressor().stream_reader(packed).read(limit)
        except (OSError, zstandard.ZstdError):
            return None
        return body if hashlib.sha256(body).hexdigest() == row.body_hash else None

    def _write_blob(self, body_hash: str, body: bytes) -> None:
        """Write beside and rename: a reader, or a kill, never sees a part.

        Also where the blob is there, since it may be damaged. Nothing is synced: what a power
        failure tears is found by its hash, and fetched again.
        """
        file = self.blob_file(body_hash)
        file.parent.mkdir(exist_ok=True)
        # Not by tempfile, whose files are for this user alone: others may read a store.
        unfinished = file.with_name(f"{body_hash}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        unfinished.write_bytes(zstandard.ZstdCompressor().compress(body))
        unfinished.replace(file)


def _when_free(connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    """Open an index although others open it too: SQLite waits for a lock by itself, but not for the
    one that makes a new file's journal a WAL.
    """
    end = time.monotonic() + _OPEN_LIMIT_S
    while True:
        try:
            return connect()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= end:
                raise
            time.sleep(0.01)


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _connect(file: Path) -> sqlite3.Connection:
    # The thread that uses it is not the one that opens it, but there is only one at a time.
    index = sqlite3.connect(
        file, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = NORMAL")
        index.execute(_SCHEMA)
    except sqlite3.Error:
        index.close()
        raise
    return index


def _connect_read_only(file: Path) -> sqlite3.Connection:
    place = URL(file.resolve().as_uri())
    index = sqlite3.connect(
        f"{place}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False
    )
    try:
        index.execute("SELECT 1 FROM pages LIMIT 1")
    except sqlite3.OperationalError as error:
        index.close()
        if _is_busy(error):
            raise
        # A folder that cannot be written holds no place for the shared memory of WAL; nobody else
        # can be writing there either.
        index = sqlite3.connect(f"{place}?immutable=1", uri=True, check_same_thread=False)
        index.execute("SELECT 1 FROM pages LIMIT 1")
    return index


def _digest(*fields: str | int | None) -> str:
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def _place(url: URL) -> int:
    """Return the byte of the lock file that stands for a URL: one of 2^62."""
    return int.from_bytes(hashlib.sha256(page_key(url).encode()).digest()[:8], "big") >> 2
