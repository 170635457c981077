"""Which signals ask a program to stop; what is done about them imports asyncio."""

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return them; SIGHUP stays ignored under nohup, which has it so."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if is_ignored else (signal.SIGHUP,)))
