"""What the student can do besides talk: read web pages.

The docstring of a tool is what the models read about it. Which hosts may be read, how fast and how
much of a page is shown stand in config.yml.
"""

try:
    import rnow.medbrowse  # noqa: F401 — pages of trials and drugs, made of their sites' data
except ModuleNotFoundError as missing:
    if not str(missing.name).startswith("rnow"):
        raise
    raise ImportError(
        "tools.py needs the rnow of its repository (pip install -e FOLDER_OF_THE_REPOSITORY); the "
        "package index's rnow is another one, a hosted service's client"
    ) from missing
from rnow import browser
from rnow.core import tool


@tool
async def browse(url: str, page: int = 1) -> str:
    """Read a web page and get its text as markdown.

    Give the full address, beginning with https://. Long pages come in parts: the first line says
    how many there are, and page=2 gives the next one. If the page cannot be read, the answer begins
    with ERROR and says why; try another address then.

    Useful addresses:
    - https://clinicaltrials.gov/study/NCT_NUMBER for a trial: its arms, drugs, sponsor and results
    - https://www.accessdata.fda.gov/scripts/cder/daf/index.cfm?searchterm=NAME for approved drugs,
      their companies and dates; NAME is a drug's
    - https://www.accessdata.fda.gov/scripts/cder/ob/search_product.cfm?drugname=NAME for the Orange
      Book: products, with links to their patents and exclusivity
    """
    return await browser.read(url, page=page)
