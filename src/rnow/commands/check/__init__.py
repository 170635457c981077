"""`rnow check`: all that can be known about a project before a model is loaded."""
