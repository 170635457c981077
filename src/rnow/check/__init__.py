"""`rnow check`: all that can be known about a project before a model is loaded."""

from rnow.check.project import CheckReport, as_json, check_project

__all__ = ["CheckReport", "as_json", "check_project"]
