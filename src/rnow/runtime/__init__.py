"""What keeps one process honest: deadlines, signals, logs, whole writes, child processes."""
