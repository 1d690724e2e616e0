"""benchmarks/equal_numbers.py with the libraries of the test environment and small inputs."""

import pytest

from benchmarks import equal_numbers
from benchmarks.equal_numbers import Row, installed, main

SMALL = ["--sizes", "40", "60", "--dimensions", "4", "50", "--classes", "5"]


def test_raysound_equals_the_libraries_that_are_installed(capsys):
    """Exit code 0, no tolerance exceeded, and a row for each library that is absent."""
    for package in ("torch_fidelity", "prdc", "sklearn", "scipy"):
        pytest.importorskip(package, exc_type=ImportError)

    assert main(SMALL) == 0

    printed = capsys.readouterr().out
    assert " 0 beyond their tolerance" in printed
    for library in equal_numbers.EMBEDDING_LIBRARIES | equal_numbers.PREDICTION_LIBRARIES:
        assert (f"{library}: not installed" in printed) == (not installed(library))


def test_a_difference_above_its_tolerance_is_exit_code_1(capsys, monkeypatch):
    def wrong(case):
        yield Row("a number", 1.0, 1.0 + 2e-9, 1e-9, "a function")

    monkeypatch.setattr(equal_numbers, "EMBEDDING_LIBRARIES", {})
    monkeypatch.setattr(equal_numbers, "PREDICTION_LIBRARIES", {"numpy": ((wrong,), "")})
    monkeypatch.setattr(equal_numbers, "on_purpose", lambda *cases: [])

    assert main(SMALL) == 1

    assert "1e-09 **exceeded**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "theirs", "digits"),
    [
        (1.0, 1.0, 15),
        (1.0, 1.0 + 1e-20, 15),
        (100.0, 100.05, 3),
        (1.0, 2.0, 0),
        (0.0, 0.0, 15),
        (1.0, float("nan"), 0),
        ([1, 2], [1, 2, 3], 0),
        ([0, 1000], [1, 1000], 3),
    ],
)
def test_equal_digits_follow_from_the_relative_difference(ours, theirs, digits):
    row = Row("a number", ours, theirs, 1e-9, "a function")

    assert row.digits == digits
    assert row.equal == (digits == 15)
