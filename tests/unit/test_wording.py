import doctest

from raysound import wording


def test_the_docstring_example_runs() -> None:
    """The noun is in the singular for 1, and in the plural otherwise."""
    assert doctest.testmod(wording) == (0, 1)
