"""A trainer of several processes: their start, what they are asked, their end and its mending."""
