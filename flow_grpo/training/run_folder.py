"""Claims a run's folder: checks that it can be written before anything is loaded, and locks it against other runs."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

LOCK = "run.lock"


def claim(run_dir: Path) -> TextIO:
    """Make the folder and lock it. The lock ends when the returned file is closed, or when the process ends in any way.

    Raises ValueError where the folder cannot be written, and where another run holds it; the error names its process.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"run_dir={run_dir} cannot be written ({error.strerror}); give another --config.run_dir"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
            logger.warning("%s cannot be locked (%s): see that no other run writes there", run_dir, error.strerror)
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"run_dir={run_dir} is in use by {holder}; wait for its end, or give this run a --config.run_dir of its own"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
