"""10,605 movie review snippets with mean ratings, from vaderSentiment's source distribution (MIT).

The wheel lacks them. Those rated at least 1 in favour or against are labelled; 2,752 of them are held out.
"""

import io
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

_SDIST = "vaderSentiment-3.3.2"
_ARCHIVE = f"{_SDIST}/additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_LEAST_RATING = 1.0
_HELD_OUT = 2752


@dataclass(frozen=True, slots=True)
class Snippet:
    """A text, and whether it speaks in favour; None where its rating is too close to neither."""

    text: str
    positive: bool | None


def read_snippets(folder: Path) -> tuple[list[Snippet], list[Snippet]]:
    """Return the snippets to learn from and the held-out ones, all of which are labelled.

    Args:
        folder: Where the source distribution is, or is downloaded to.
    """
    path = folder / f"{_SDIST}.tar.gz"
    if not path.exists():
        name, _, version = _SDIST.partition("-")
        options = ["--no-deps", "--no-build-isolation", "--no-binary", name, "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, f"{name}=={version}"], check=True)
    with tarfile.open(path) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, _ARCHIVE))) as inner:
        lines = _member(inner, _SNIPPETS).decode("latin-1").strip().split("\n")
    snippets = [_snippet(line) for line in lines]
    random.Random(0).shuffle(snippets)
    labelled = [snippet for snippet in snippets if snippet.positive is not None]
    held_out = labelled[:_HELD_OUT]
    chosen = set(map(id, held_out))
    seen = {snippet.text.casefold() for snippet in held_out}
    learnt = [each for each in snippets if id(each) not in chosen and each.text.casefold() not in seen]
    return learnt, held_out


def _snippet(line: str) -> Snippet:
    _, rating, text = line.split("\t")
    favour = float(rating)
    return Snippet(" ".join(text.split()), favour > 0 if abs(favour) >= _LEAST_RATING else None)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
