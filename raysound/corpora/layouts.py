"""Words in the names of files and folders: which endings are sounds, which words are splits."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysound.errors import UserError

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip_id", "path", "label", "fold", "split", "group")),
        *((name, pa.int64()) for name in ("size", "modified", "offset")),
    ]
)
# What a reader of a corpus finds; `name` is relative to the corpus.
FOUND = pa.schema([(name, pa.string()) for name in ("name", "label", "fold", "split", "group")])
# Names that open with a dot are other programs' notes; macOS leaves `._x.wav` beside `x.wav`.
HIDDEN = r"(^|/)(\.|__MACOSX/)"
# What libsndfile reads.
AUDIO_SUFFIXES = frozenset(
    [
        ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3",
        ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc",
    ]
)  # fmt: skip
# Sounds that it does not read.
UNREAD_SUFFIXES = frozenset(
    [
        ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".weba", ".avi",
        ".aac", ".adts", ".wma", ".wmv", ".asf", ".amr", ".awb", ".3gp", ".3g2", ".ape", ".wv",
        ".tta", ".tak", ".shn", ".mpc", ".spx", ".ac3", ".eac3", ".dts", ".dsf", ".dff", ".ra",
        ".rm", ".alac", ".qcp", ".gsm", ".pcm", ".raw", ".mpg", ".mpeg", ".ts", ".flv", ".m4r",
    ]
)  # fmt: skip
ANY_SOUND = AUDIO_SUFFIXES | UNREAD_SUFFIXES
# Files beside sounds that hold no sound.
OTHER_SUFFIXES = frozenset(
    [
        ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".yaml", ".yml",
        ".toml", ".ini", ".cfg", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".doc",
        ".docx", ".rtf", ".odt", ".xls", ".xlsx", ".ods", ".bib", ".tex", ".log", ".db",
        ".sqlite", ".lock", ".sha1", ".sha256", ".md5", ".png", ".jpg", ".jpeg", ".gif", ".svg",
        ".bmp", ".webp", ".tif", ".tiff", ".ico", ".npy", ".npz", ".pt", ".pth", ".pkl",
        ".pickle", ".h5", ".hdf5", ".mat", ".lab", ".textgrid", ".trn", ".phn", ".wrd", ".cls",
        ".ctm", ".srt", ".vtt", ".lrc", ".jams", ".mid", ".midi", ".py", ".ipynb", ".sh", ".r",
        ".m", ".c", ".asd", ".pek", ".sfk", ".reapeaks", ".cue", ".nfo", ".torrent", ".url",
        ".lnk",
    ]
)  # fmt: skip
SPLITS = ("train", "validation", "test")
# Words that mean a split wherever they stand: as a folder, in a column, in a file's name.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "validation": "validation", "validate": "validation", "valid": "validation",
    "val": "validation", "vld": "validation",
    "test": "test", "testing": "test", "tst": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip
# Words that mean one split here and another one there; see `meaning_of_splits`.
UNCERTAIN_WORDS = {
    "dev": "validation", "development": "validation", "devel": "validation",
    "eval": "test", "evaluation": "test",
}  # fmt: skip
_WORDS = "|".join(sorted({*SPLIT_WORDS, *UNCERTAIN_WORDS}, key=len, reverse=True))
_FILLER = "set|data|dataset|split|subset|audio|clips?|wavs?|files?|sounds?|samples?|recordings?"
_SPLIT_NAME = re.compile(rf"(?:audio|wavs?|sounds?|clips?|data)?({_WORDS})(?:{_FILLER})*")

Warn = Callable[[str], object]
# Ending → how many files have it, and one of them.
Tally = dict[str, tuple[int, str]]


class Names(NamedTuple):
    """How many names there are, and the least of them; "" where there is none."""

    total: int
    least: str

    @classmethod
    def of(cls, names: pa.ChunkedArray) -> Names:
        """Of some names."""
        return cls(len(names), pc.min(names).as_py() or "")

    def merge(self, other: Names) -> Names:
        """Of both."""
        least = min(filter(None, (self.least, other.least)), default="")
        return Names(self.total + other.total, least)


def quoted(name: str) -> str:
    """A name in quotes, on one line whatever characters it holds."""
    return f"'{name}'" if name.isprintable() else repr(name)


def utf8(name: str) -> str:
    """Spells out the bytes of a file's name that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as a list for a person, cut short where they are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def has_ending(names: pa.ChunkedArray, suffixes: Iterable[str]) -> pa.ChunkedArray:
    """True where a name ends with one of some suffixes, in small letters or capitals."""
    endings = "|".join(re.escape(suffix[1:]) for suffix in sorted(suffixes))
    return pc.match_substring_regex(names, rf"(?i)\.({endings})$")


def is_sound(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """True for the names of sound files that can be read, and are not hidden."""
    return pc.and_not(has_ending(names, AUDIO_SUFFIXES), pc.match_substring_regex(names, HIDDEN))


def tally(names: Iterable[str]) -> Tally:
    """Ending → how many of some names have it, and the first of them."""
    counted: Tally = {}
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        count, first = counted.get(suffix, (0, name))
        counted[suffix] = count + 1, min(first, name)
    return counted


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
    """One tally of all."""
    merged: Tally = {}
    for counted in tallies:
        for suffix, (count, first) in counted.items():
            before, name = merged.get(suffix, (0, first))
            merged[suffix] = before + count, min(name, first)
    return merged


def unread_sounds(counted: Tally) -> str:
    """Which of some files are sounds that can't be read, and the remedy; empty if none is."""
    unread = {suffix: found for suffix, found in counted.items() if suffix in UNREAD_SUFFIXES}
    if not unread:
        return ""
    most = max(unread, key=lambda suffix: unread[suffix])
    return (
        f"{_counts(unread)} are in no format that can be read: convert them, for example with "
        f"`ffmpeg -i x{most} x.wav`"
    )


def warn_unread(counted: Tally, path: str, warn: Warn) -> None:
    """Says which files of a folder are left out for their endings."""
    if words := unread_sounds(counted):
        warn(f"{path}: {words}")
    unknown = {
        suffix: found
        for suffix, found in counted.items()
        if suffix not in UNREAD_SUFFIXES | OTHER_SUFFIXES | AUDIO_SUFFIXES
    }
    if unknown:
        warn(f"{path}: {_counts(unknown)} are left out: they have no ending of a sound file")


def _counts(counted: Tally) -> str:
    total = sum(count for count, _ in counted.values())
    ordered = sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    kinds = listed((f"{count} {suffix or 'without ending'}" for suffix, (count, _) in ordered), 5)
    return f"{total} files ({kinds}; {quoted(ordered[0][1][1])} among them)"


def plain_name(label: str) -> str:
    """A class's name without capitals, blanks at the ends, and what Unicode writes in two ways."""
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


def split_word(name: str) -> str | None:
    """The word for a split that a name consists of, such as `training` of `Training_Set`."""
    found = _SPLIT_NAME.fullmatch(re.sub(r"[^a-z0-9]+", "", name.lower()))
    return found[1] if found else None


def split_of_file(name: str) -> str | None:
    """The word for a split at the start of a file's name, as `train-00000.tar`, or its folder's."""
    *folders, file = name.split("/")
    parts = [re.split(r"[-.]", file, maxsplit=1)[0], *reversed(folders)]
    return next(filter(None, map(split_word, parts)), None)


def word_in(name: str) -> str | None:
    """The one word for a split among the words of a name, such as `test` of `test-other`."""
    words = {word for part in re.split(r"[^a-z]+", name.lower()) if (word := split_word(part))}
    return words.pop() if len(words) == 1 else None


def meaning_of_splits(words: Iterable[str]) -> dict[str, str]:
    """What the words for splits that a corpus uses mean.

    `dev` and its like are validation beside `train`; without it they are training clips in some
    data sets, so that they are refused. `eval` and its like are test, but beside `test` they may
    be validation, and are refused.

    Args:
        words: as they stand in a column or a name.

    Returns:
        Word → train, validation or test.

    Raises:
        UserError: a word that is none, or one whose meaning is uncertain.
    """
    words = list(words)
    plain = {word: split_word(word) for word in words}
    certain = {SPLIT_WORDS.get(word or "") for word in plain.values()}
    meaning = {}
    for word, base in plain.items():
        if base is None:
            raise UserError(f"{quoted(word)} is no split: use {', '.join(SPLITS)}")
        meaning[word] = SPLIT_WORDS.get(base) or UNCERTAIN_WORDS[base]
        if base in SPLIT_WORDS:
            continue
        if meaning[word] == "validation" and "train" not in certain:
            raise UserError(
                f"the split {quoted(word)} means validation clips in some data sets and training "
                f"clips in others, and none is called train here: rename it train or validation"
            )
        if meaning[word] == "test" and "test" in certain:
            raise UserError(
                f"the split {quoted(word)} stands beside one called test: rename it validation, or "
                "leave one of them out"
            )
    return meaning
