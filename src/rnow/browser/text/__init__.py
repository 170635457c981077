"""What a source got, as text for a model: HTML, PDF, pages of a length that it can read."""
