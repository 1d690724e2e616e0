"""Makes some files deadly to the process that decodes them, as a broken decoder would.

Every Python process imports it that finds its folder in PYTHONPATH. A file's trap stands in its
bytes, see `trapped`.
"""

import os
import signal
import sys
import time
from typing import Any

import soundfile

TRAP = b"trap:"
open_sound = soundfile.SoundFile.__init__


def trapped(data: bytes, what: str, *more: object) -> bytes:
    """A sound file with something behind the sound: when it is opened, that is done."""
    return data + TRAP + " ".join(map(str, [what, *more])).encode()


def open_with_traps(self: soundfile.SoundFile, file: Any, *more: Any, **named: Any) -> None:
    """In place of the beginning of every decoding."""
    data = os.pread(file, 1 << 20, 0) if isinstance(file, int) else b""
    if TRAP in data:
        spring(*data.rpartition(TRAP)[2].decode().split())
    open_sound(self, file, *more, **named)


def spring(what: str, path: str = "") -> None:
    """Does what the trap says."""
    if what == "SIGSEGV" or (what == "once" and not os.path.exists(path)):
        if what == "once":
            os.mkdir(path)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "shard" and "raysound.features.probe" not in sys.orig_argv:
        # Only where the shard is made, as if it were for want of memory.
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(3600)
    if what == "print":
        os.write(1, b"clip\n" * 5)


if __name__ == "sitecustomize":
    soundfile.SoundFile.__init__ = open_with_traps
