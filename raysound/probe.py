"""Finds the clips that kill the process which decodes them, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pyarrow as pa

from raysound.audio import Decoder, Reject
from raysound.settings import FeatureSettings
from raysound.sounds import open_sounds

# What the child says when it begins with a clip.
BEGIN = "clip"


def deadly_clips(
    clips: pa.Table, settings: FeatureSettings, standstill: float
) -> dict[str, Reject]:
    """Decodes clips in a child process; one at which it dies, or stands still, twice is at fault.

    Once is not enough, for a process may be killed to make room for others. The second time it
    begins with that clip.

    Args:
        clips: rows of a manifest.
        settings: of the features.
        standstill: seconds that one window may take.

    Returns:
        Rejects by clip id.

    Raises:
        RuntimeError: the child could not begin.
    """
    deadly: dict[str, Reject] = {}
    start, suspect = 0, -1
    while start < len(clips):
        task = {
            "clips": clips.slice(start).select(["path", "offset", "size"]).to_pylist(),
            "features": settings.model_dump(),
            "standstill": standstill,
        }
        child = subprocess.run(
            [sys.executable, "-m", "raysound.probe"],
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
            raise RuntimeError(f"clips can't be tried out in a child process: {child.stderr}")
        start += begun - 1
        if start == suspect:
            deadly[clips["clip_id"][start].as_py()] = Reject(_cause(child.returncode, standstill))
            start += 1
        else:
            suspect = start
    return deadly


def _cause(returncode: int, standstill: float) -> str:
    if returncode == -signal.SIGALRM:
        return f"decoding it stood still for {standstill:g} s"
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
    return f"decoding it killed the process ({how})"


def end_on_standstill(seconds: float) -> None:
    """Ends this process if it is not called again within that time; 0 stops the clock.

    A decoder that hangs in its own code can be ended by nothing less.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """The child: says a word for every clip before it begins with it."""
    task = json.load(sys.stdin)
    # Decoders print too, on what they take for a screen: the parent's pipe is not for them.
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    decoder = Decoder(FeatureSettings(**task["features"]))
    schema = pa.schema([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    sounds = open_sounds(pa.Table.from_pylist(task["clips"], schema=schema))
    for _ in task["clips"]:
        print(BEGIN, file=parent, flush=True)
        end_on_standstill(task["standstill"])
        try:
            sound = next(sounds)
            if not isinstance(sound, Reject):
                for _ in decoder.read(sound):
                    end_on_standstill(task["standstill"])
        except Exception:
            # It lives: whatever this is, it is raised again where the shard is made.
            continue
    end_on_standstill(0)


if __name__ == "__main__":
    main()
