"""Messages to ids and back, in one model's own words."""

from rnow.chat.template import ChatTemplate

__all__ = ["ChatTemplate"]
