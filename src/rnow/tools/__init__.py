"""The user's code in child processes: tools.py and rewards.py."""
