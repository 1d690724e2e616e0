"""Finds the clips that crash or hang the decoder, in child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pyarrow as pa

from raysound.audio.decode import Decoder, Reject
from raysound.audio.sounds import open_sounds
from raysound.features.extraction import set_timeout
from raysound.settings.features import FeatureSettings

# The child prints it before it decodes a clip.
BEGIN = "clip"


def find_crashing_clips(
    clips: pa.Table, settings: FeatureSettings, timeout: float
) -> dict[str, Reject]:
    """Decodes clips in a child process; rejects clips that crash or hang it twice.

    A single crash is not enough, because the system may kill a process to free memory. The second
    child starts with the suspected clip.

    Args:
        clips: rows of a manifest.
        settings: settings of the features.
        timeout: maximum seconds to decode one window.

    Returns:
        Rejects by clip id.

    Raises:
        RuntimeError: the child failed to start.
    """
    crashing: dict[str, Reject] = {}
    start, suspect = 0, -1
    while start < len(clips):
        task = {
            "clips": clips.slice(start).select(["path", "offset", "size"]).to_pylist(),
            "features": settings.model_dump(),
            "timeout": timeout,
        }
        child = subprocess.run(
            [sys.executable, "-m", "raysound.features.probe"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            check=False,
        )
        if child.returncode == 0:
            break
        begun = child.stdout.splitlines().count(BEGIN)
        if not begun:
            raise RuntimeError(f"clips can't be decoded in a child process: {child.stderr}")
        start += begun - 1
        if start == suspect:
            crashing[clips["clip_id"][start].as_py()] = Reject(_cause(child.returncode, timeout))
            start += 1
        else:
            suspect = start
    return crashing


def _cause(returncode: int, timeout: float) -> str:
    if returncode == -signal.SIGALRM:
        return f"decoding it took longer than {timeout:g} s"
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
    return f"decoding it killed the process ({how})"


def main() -> None:
    """Runs in the child process: decodes the clips, and prints a line before each."""
    task = json.load(sys.stdin)
    # Decoders may print to stdout, which must not reach the pipe to the parent.
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    decoder = Decoder(FeatureSettings(**task["features"]))
    schema = pa.schema([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    sounds = open_sounds(pa.Table.from_pylist(task["clips"], schema=schema))
    for _ in task["clips"]:
        print(BEGIN, file=parent, flush=True)
        try:
            # Downloads may be slow, so the timeout starts after them.
            sound = next(sounds)
            set_timeout(task["timeout"])
            if not isinstance(sound, Reject):
                restart = partial(set_timeout, task["timeout"])
                for _ in decoder.read(sound, restart):
                    restart()
        except Exception:
            # Not a crash: extraction raises the error again.
            continue
        finally:
            set_timeout(0)


if __name__ == "__main__":
    main()
