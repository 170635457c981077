"""Tools of the user's tools.py: described and run in child processes, never in the controller."""
