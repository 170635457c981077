"""What `rnow browse` brings where a project has no tools.py."""
