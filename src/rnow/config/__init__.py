"""config.yml to checked settings, each problem with its line and its remedy."""
