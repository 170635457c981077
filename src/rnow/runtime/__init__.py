"""What keeps one process honest: deadlines, signals, logs, whole writes, children that end with us."""
