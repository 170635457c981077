"""`rnow corpus`: the pages of a project's prompts, fetched once."""
