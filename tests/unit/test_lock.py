"""A folder has one writer at a time."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysound.errors import UserError
from raysound.lock import locked

HOLD = (
    "import sys\n"
    "from raysound.lock import locked\n"
    "with locked(sys.argv[1]):\n"
    "    print('ready', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(root: Path, folder: Path) -> subprocess.Popen[str]:
    """Another process that locks a folder until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_writer_is_rejected_until_the_first_ends_or_is_killed(
    root: Path, tmp_path: Path
) -> None:
    """The lock file and unfinished files of a killed writer do not block the next one."""
    folder = tmp_path / "out" / "run"
    unfinished = folder / f"a.bin.{'0f' * 16}.tmp"
    first = holder(root, folder)
    try:
        with pytest.raises(UserError) as refused, locked(str(folder)):
            pass
        folder.mkdir()
        unfinished.touch()
        (folder / "b.tmp").touch()
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    assert re.fullmatch(
        rf"another job is at work on {folder} \(process {first.pid} on \S+\): wait until it has "
        "ended, or set another output",
        str(refused.value),
    )

    with locked(str(folder)):
        assert not unfinished.exists()

    assert [path.name for path in folder.parent.rglob("*")] == ["run", "b.tmp"]
    second = holder(root, folder)
    second.communicate(timeout=30)
    assert second.returncode == 0


def test_a_folder_that_can_not_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as refused, locked(str(tmp_path / "file" / "run")):
        pass

    assert str(refused.value) == (
        f"{tmp_path}/file/run can't be written: {tmp_path}/file is not a folder; the same command "
        "continues"
    )
