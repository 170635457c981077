"""The numbers of a run, told to programs that show many runs; each program is a file here."""
