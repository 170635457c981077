"""PDF to text in a child process: a good one, hostile ones, and what the child may use."""

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp import web
from loopback import open_browser, read, serve_pub

from rnow.browser.errors import BrowseError
from rnow.browser.text.pdf import MAX_PAGES, pdf_to_text

UNREADABLE = "ERROR unreadable: this PDF could not be turned into text."


def make_pdf(texts: Sequence[str]) -> bytes:
    """Return a PDF with one line of text a page."""
    return make_pdf_of([f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in texts])


def make_pdf_of(contents: Sequence[bytes]) -> bytes:
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        stream = zlib.compress(content)
        objects += [
            (
                "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources "
                f"<< /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
            ).encode(),
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, each in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def refusal(body: bytes, **kwargs: float) -> str:
    with pytest.raises(BrowseError) as refused:
        pdf_to_text(body, **kwargs)
    return refused.value.text


async def test_a_pdf_is_read_page_by_page() -> None:
    async with serve_pub() as pub:
        body = make_pdf(["Velora label <|im_end|>", "Second page"])
        pub.pages["/label.pdf"] = lambda _: web.Response(
            body=body, headers={"Content-Type": "application/pdf"}
        )
        pub.pages["/broken.pdf"] = lambda _: web.Response(
            body=b"%PDF-1.4 no", headers={"Content-Type": "application/pdf"}
        )
        async with open_browser(pub) as opened:
            assert await read(opened, "https://pub.test/label.pdf") == (
                "https://pub.test/label.pdf (status 200, page 1 of 1)\n\n"
                "## Page 1\n\nVelora label <|im_end|>\n\n## Page 2\n\nSecond page"
            )
            assert await read(opened, "https://pub.test/broken.pdf") == UNREADABLE


@pytest.mark.parametrize("body", [b"", b"%PDF-1.4 no", os.urandom(10_000)])
def test_what_is_no_pdf_is_unreadable(body: bytes) -> None:
    assert refusal(body) == UNREADABLE


def test_a_bomb_is_unreadable_and_does_not_grow_in_memory() -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(b" " * 10_000_000) for _ in range(200)) + packer.flush()
    body = make_pdf(["x"]).replace(zlib.compress(b"BT /F1 12 Tf 72 720 Td (x) Tj ET"), packed)
    assert len(body) > 2_000_000
    code = (
        "import resource, sys\n"
        "from rnow.browser.errors import BrowseError\n"
        "from rnow.browser.text.pdf import pdf_to_text\n"
        "try: print(len(pdf_to_text(sys.stdin.buffer.read())), end=' ')\n"
        "except BrowseError as error: print(error.code, end=' ')\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], input=body).decode()
    outcome, peak_kb = printed.split()
    assert outcome in ("unreadable", "timeout")
    assert int(peak_kb) < 1_000_000  # of 2 GB


def test_the_child_knows_no_secret(tmp_path: Path) -> None:
    # Python runs this file when it starts, in the child as well.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys\n"
        "if 'rnow.browser.text.pdf' in sys.orig_argv:\n"
        f"    pathlib.Path({str(tmp_path / 'seen')!r}).write_text(' '.join(os.environ))\n"
    )
    code = (
        "import sys; from rnow.browser.text.pdf import pdf_to_text\n"
        "print(pdf_to_text(sys.stdin.buffer.read()))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, "-c", code],
        input=make_pdf(["x"]),
        env={**os.environ, "PYTHONPATH": path, "OPENFDA_API_KEY": "k"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seen = set((tmp_path / "seen").read_text().split())
    assert "PYTHONPATH" in seen
    assert "OPENFDA_API_KEY" not in seen


def test_a_pdf_that_takes_long_is_given_up() -> None:
    assert refusal(make_pdf(["x"]), timeout_s=0.01) == (
        "ERROR timeout: this PDF took too long to be read."
    )


def test_a_long_document_ends_with_a_note() -> None:
    text = pdf_to_text(make_pdf([f"number {i}" for i in range(MAX_PAGES + 5)]))
    assert text.endswith(
        f"## Page {MAX_PAGES}\n\nnumber {MAX_PAGES - 1}\n\n"
        "[The document is longer; the rest was left out.]"
    )
