"""Where a server of our own listens: a unix socket in a folder that no other user may enter.

vLLM's development routes let whoever reaches them replace the weights, and its `--api-key` does not
guard them: on a port of loopback every user of the machine could. `--uds` is older than the token
route, so every vLLM that can serve here has it. The sockets between vLLM's own processes, over
which it sends pickles, lie in the same folder.
"""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from rnow.errors import EngineError

_NAME = "http"
_MAX_ADDRESS_BYTES = 103  # of a unix socket; Linux takes 107, macOS no more than this
_LONGEST_NAME_BYTES = 36  # of vLLM's own sockets


def new_socket() -> Path:
    """Return a path that nothing has: under TMPDIR, or /tmp where that leaves too little room."""
    name = f"rnow-{secrets.token_hex(4)}"
    room = _MAX_ADDRESS_BYTES - _LONGEST_NAME_BYTES - len(f"/{name}/")
    for place in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(place)) <= room and os.access(place, os.W_OK):
            return Path(place) / name / _NAME
    raise EngineError(
        f"{tempfile.gettempdir()} is too long a path for a unix socket, and /tmp cannot be written "
        f"to; set TMPDIR to a folder whose path has at most {room} bytes"
    )


def prepare_folder(socket: Path) -> None:
    """Make the socket's folder, for this user alone; take away a socket that a server left."""
    folder = socket.parent
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o077:
        raise EngineError(f"{folder} is open to others: a vLLM server cannot listen there")
    socket.unlink(missing_ok=True)
