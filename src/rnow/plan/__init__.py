"""Which model where, what runs it, in how much memory."""
