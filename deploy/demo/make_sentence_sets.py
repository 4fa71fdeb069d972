"""Write the demo's two sentence sets from the texts in vaderSentiment's source distribution.

Writes `sentences_calibration.jsonl` and `sentences_evaluation.jsonl`: disjoint, unlabelled, one `{"text":
...}` a line, three quarters movie reviews and one quarter product reviews, lengths as they come. The tweets
and the newspaper editorials in the same archive are left out: the former name private persons, the latter
belong to the newspaper.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import random
import tarfile
from pathlib import Path

SDIST_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIE_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
PRODUCT_REVIEWS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
HOW_TO_GET_THE_DATA = (
    "the source distribution of vaderSentiment 3.3.2 (the wheel lacks the texts): "
    "`pip download --no-deps --no-build-isolation --no-binary vaderSentiment vaderSentiment==3.3.2`"
)


def read_snippets(resources: tarfile.TarFile, member: str) -> list[str]:
    """Read the texts of one TAB-separated file: identifier, mean rating, text.

    Raises:
        ValueError: if a line has not three fields.
    """
    stream = resources.extractfile(member)
    if stream is None:
        raise ValueError(f"{member}: expected a file in the archive, it is not one")
    texts = []
    # Not splitlines: it would also break at the exotic separators that occur inside texts.
    for number, line in enumerate(stream.read().decode("utf-8-sig").rstrip("\n").split("\n"), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{member}, line {number}: expected 3 fields between TABs, got {len(fields)}")
        texts.append(" ".join(html.unescape(fields[2]).split()))
    return texts


def distinct(texts: list[str], *, seen: set[str]) -> list[str]:
    """Keep the first of equal texts (case aside) that hold a letter; `seen` grows by what is kept."""
    kept = []
    for text in texts:
        identity = text.casefold()
        if identity not in seen and any(character.isalpha() for character in text):
            seen.add(identity)
            kept.append(text)
    return kept


def write_lines(path: Path, texts: list[str]) -> None:
    """Write one JSON object a line, UTF-8."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_bytes("".join(lines).encode())


def main() -> None:
    """Draw both sets at random, without replacement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help=HOW_TO_GET_THE_DATA)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "serveprune" / "demo")
    parser.add_argument("--count", type=int, default=512, help="lines in each file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.sdist is None or not arguments.sdist.is_file():
        parser.error(HOW_TO_GET_THE_DATA)

    with tarfile.open(arguments.sdist) as sdist:
        nested = sdist.extractfile(SDIST_MEMBER)
        if nested is None:
            parser.error(f"{arguments.sdist} has no file {SDIST_MEMBER}; {HOW_TO_GET_THE_DATA}")
        with tarfile.open(fileobj=io.BytesIO(nested.read())) as resources:
            seen: set[str] = set()
            movies = distinct(read_snippets(resources, MOVIE_REVIEWS), seen=seen)
            products = distinct(read_snippets(resources, PRODUCT_REVIEWS), seen=seen)

    # Reproducible on purpose; nothing here is a secret.
    chance = random.Random(arguments.seed)
    from_products = arguments.count // 4
    from_movies = arguments.count - from_products
    chance.shuffle(movies)
    chance.shuffle(products)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate(("sentences_calibration.jsonl", "sentences_evaluation.jsonl")):
        chosen = movies[part * from_movies :][:from_movies] + products[part * from_products :][:from_products]
        chance.shuffle(chosen)
        write_lines(arguments.out / name, chosen)
        print(f"{name}: {len(chosen)} texts, {sum(map(len, chosen)) / len(chosen):.0f} characters on average")


if __name__ == "__main__":
    main()
