"""How answers are graded. Nothing here takes part in training."""

import rnow.medbrowse  # noqa: F401 — its grader `medbrowse`, which config.yml names
