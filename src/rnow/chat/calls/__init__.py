"""How a model writes a tool call: found from its own template, read from what it samples."""
