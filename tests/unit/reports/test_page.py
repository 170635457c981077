"""The page as text, where no browser is needed to see that it is right."""

import json
import re
from pathlib import Path

import pytest

from rnow.errors import UsageError
from rnow.reports.page import make_report
from rnow.runs.folder import RunDirectory


def begun(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.open()
    run.write_config({"model": {"path": "</script><b>student"}, "teacher": {"path": "teacher"}})
    run.close()
    return run


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    page = make_report([begun(tmp_path / "runs" / "<title>new")])
    assert "<strong>&lt;title&gt;new</strong>: &lt;/script&gt;&lt;b&gt;student learns from" in page
    assert "Nothing that rnow knows of is wrong with it." in page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    assert (data["runs"], data["transcripts"]) == (["<title>new"], [])


def test_it_names_no_address_that_it_would_load(tmp_path: Path) -> None:
    page = make_report([begun(tmp_path / "runs" / "new")])
    head = page.partition("<h1>")[0]
    assert "default-src 'none'; script-src 'nonce-" in head
    assert re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"([^\"]*)", page) == [
        "data:,"
    ]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run's folder; to see them: rnow status"):
        make_report([RunDirectory(tmp_path)])
