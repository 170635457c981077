"""The settings under `browser:`."""

from typing import Literal

from pydantic import Field

from rnow.config.types import Hosts, Section, Sites


class BrowserSection(Section):
    """What rnow.browser may fetch."""

    allow_hosts: Hosts = Field(
        default=[], description='Hosts that may be fetched; ["*"]: any public one.'
    )
    contact: str | None = Field(
        default=None,
        min_length=1,
        description="Your mail or web address, told to the sites that you read.",
    )
    local_sites: Sites = Field(
        default={}, description="Host to folder: pages that rnow serves itself during the run."
    )
    render_hosts: Hosts = Field(
        default=[],
        description="Hosts whose pages need their scripts: Chromium reads them, not plain HTTP.",
    )
    executable: str | None = Field(
        default=None,
        min_length=1,
        description="Program of a Chromium; null: playwright's own, else the system's.",
    )
    store: str = Field(
        default="pages",
        min_length=1,
        description="Folder of the page store, made with the first page; relative to the project.",
    )
    store_mode: Literal["live", "record", "replay", "replay_then_live"] = Field(
        default="live",
        description="record keeps every page; replay reads kept ones only; see docs/browsing.md.",
    )
    ttl_days: float = Field(
        default=7.0, ge=0, description="How long live serves a page from the store (days)."
    )
