"""Tools of MCP servers: their list, a session for each rollout, results as text."""
