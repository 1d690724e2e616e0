"""Numbers with nouns."""


def counted(count: float, noun: str) -> str:
    """A number and a noun, in the plural unless the number is 1.

    Examples:
        >>> counted(1, "clip"), counted(2, "training clip"), counted(0, "class")
        ('1 clip', '2 training clips', '0 classes')
    """
    return f"{count:g} {noun}" if count == 1 else f"{count:.15g} {plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a regular English noun."""
    return noun + ("es" if noun.endswith("s") else "s")
