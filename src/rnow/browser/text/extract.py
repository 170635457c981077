"""What a source got -> the text of the page."""

from rnow.browser.adapters import render
from rnow.browser.source import RawPage
from rnow.browser.text.markdown import html_to_markdown, visible_text
from rnow.browser.text.pdf import pdf_to_text


def extract_text(page: RawPage) -> str:
    """Return the page as markdown; blocks for as long as it is large (about a second for 1 MB).

    Raises BrowseError for a PDF that cannot be read, and whatever parsers raise.
    """
    rendered = render(page)
    if rendered is not None:
        return visible_text(rendered)
    if page.is_html:
        ran = page.source == "browser"
        return html_to_markdown(page.text(), url=str(page.url), has_run_scripts=ran)
    if page.content_type == "application/pdf":
        return visible_text(pdf_to_text(page.body))
    return visible_text(page.text())
