"""What a run's files say to a person: a page of it, and what is wrong."""
