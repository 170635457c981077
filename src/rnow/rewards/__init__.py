"""The project's rewards.py: functions that `rnow test` shows values of. Training takes none."""
