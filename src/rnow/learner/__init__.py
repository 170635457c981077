"""The student's network and one update; with engines/local the only room with torch."""
