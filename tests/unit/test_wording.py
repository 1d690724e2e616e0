import doctest

from raysound import wording


def test_the_docstring_example_runs() -> None:
    """One thing is in the singular, anything else in the plural."""
    assert doctest.testmod(wording) == (0, 1)
