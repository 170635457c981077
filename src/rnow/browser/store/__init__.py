"""What sites answered, on disk: record and replay."""
