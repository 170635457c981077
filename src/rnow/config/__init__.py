"""config.yml: its settings (settings.py), and how a file becomes checked ones (load.py)."""

from rnow.config.load import (
    LoadedConfig,
    config_as_yaml,
    find_tools_file,
    load_config,
    require_distill,
)
from rnow.config.settings import Config

__all__ = [
    "Config",
    "LoadedConfig",
    "config_as_yaml",
    "find_tools_file",
    "load_config",
    "require_distill",
]
