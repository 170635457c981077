"""rnow: teach a small language model to work with tools the way a big one does.

Importing this package costs nothing: no torch, no transformers. What users' own files import lives
in `rnow.core`; the command line is `rnow.cli`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
