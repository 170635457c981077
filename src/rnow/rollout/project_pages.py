"""The pages of a project: where they are kept, and whether a run can read them.

Opened here for a moment only, by the controller; tool workers keep it open.
"""

import os
from contextlib import closing
from pathlib import Path

from rnow.browser.chromium.executable import NO_CHROMIUM, find_chromium
from rnow.browser.shell import network_notices
from rnow.browser.store.store import INDEX_FILE, PageStore
from rnow.config.load import LoadedConfig
from rnow.config.settings import Config
from rnow.errors import ConfigError


def store_folder(config: Config, directory: Path) -> Path:
    """Return the absolute folder of browser.store."""
    return (directory / Path(config.browser.store).expanduser()).resolve()


def check_store(config: Config, directory: Path) -> None:
    """Find out before anything is loaded that pages can be kept, or that there are pages to read.

    Makes the folder where pages will be kept. Raises ConfigError or StoreError.
    """
    require_pages(config, directory)
    browser = config.browser
    if browser.store_mode == "record" or (browser.store_mode == "live" and browser.allow_hosts):
        PageStore(store_folder(config, directory)).close()


def require_pages(config: Config, directory: Path) -> None:
    """Raise ConfigError where pages are to be replayed and there are none."""
    mode = config.browser.store_mode
    if mode in ("replay", "replay_then_live"):
        require_filled(config, directory, why=f", and browser.store_mode {mode} reads them there")


def require_filled(config: Config, directory: Path, *, why: str = "") -> None:
    """Raise ConfigError where no page is kept."""
    if not (store_folder(config, directory) / INDEX_FILE).is_file():
        raise ConfigError(
            f"browser.store {config.browser.store} holds no pages{why}; fill it with rnow corpus "
            "build, or by a run with browser.store_mode=record"
        )


def store_fingerprint(config: Config, directory: Path) -> str | None:
    """Return the hash of the pages that a run depends on; None where a run adds to them."""
    if config.browser.store_mode in ("live", "record"):
        return None
    require_pages(config, directory)
    with closing(PageStore(store_folder(config, directory), read_only=True)) as store:
        return store.fingerprint()


def require_contact(loaded: LoadedConfig) -> None:
    """Refuse to begin where every page of the open web would be an error."""
    browser = loaded.config.browser
    if browser.allow_hosts and browser.contact is None and browser.store_mode != "replay":
        message = (
            "browser.contact is null: no site outside this machine is read until it is your mail "
            "or web address, which those sites are told"
        )
        raise ConfigError(problems=[loaded.problem("browser.contact", message)])


def chromium_notices(config: Config, directory: Path) -> tuple[str, ...]:
    """Return what the user should know of this machine's ways to the web, where that is read.

    Raises ConfigError for a browser.executable that is no program.
    """
    browser = config.browser
    found = find_chromium(browser.executable, directory=directory)
    reads_the_web = browser.allow_hosts or browser.render_hosts
    if not reads_the_web:
        return ()
    return (*network_notices(os.environ), *((NO_CHROMIUM,) if found is None else ()))
