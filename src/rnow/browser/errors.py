"""What the model is told where there is no page."""


class BrowseError(Exception):
    """A page that could not be read, as one of a few codes and one sentence.

    bad_url host_not_allowed blocked_address timeout rate_limited blocked_by_site too_large
    unsupported_type unreachable unreadable bad_page too_many_redirects not_in_corpus http_NNN

    The sentence is for the model: no path, address or traceback in it. What really happened is the
    exception's cause, for the log. `is_lasting`: the site would say so of this URL again, so that a
    recording keeps it.
    """

    def __init__(self, code: str, sentence: str, *, is_lasting: bool = False) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence
        self.is_lasting = is_lasting

    @property
    def text(self) -> str:
        return f"ERROR {self.code}: {self.sentence}"


class NotRenderedError(BrowseError):
    """A page that a browser does not show, and plain HTTP may: no HTML, or no browser runs."""
