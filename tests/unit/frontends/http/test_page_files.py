"""The files of the page at ``/ui``, as they are shipped."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

UI = Path(__file__).resolve().parents[4] / "serveprune" / "frontends" / "http" / "ui"
STYLE = (UI / "page.css").read_text(encoding="utf-8")
TEXT_CONTRAST, GRAPHICS_CONTRAST = 4.5, 3.0
"""Of WCAG 2.2, level AA."""


def palettes() -> Mapping[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\n *\}", STYLE, flags=re.DOTALL)[:2]
    colours = [dict(re.findall(r"--([\w-]+): (#\w+)", text)) for text in (light, dark)]
    assert colours[0].keys() == colours[1].keys()
    return dict(zip(("light", "dark"), colours, strict=True))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_the_standard_says_of_black_and_white() -> None:
    assert contrast("#fff", "#000") == pytest.approx(21)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_tiers_stand_out_from_their_ground(scheme: str) -> None:
    colours = palettes()[scheme]
    pairs = [(word, ground) for word in ("ink", "soft") for ground in ("card", "ground", "faint")]
    pairs += [(word, "card") for word in ("accent", "good", "warn", "bad")]
    pairs += [("on-accent", "accent"), ("bad", "bad-ground"), ("warn", "warn-ground")]
    too_faint = [pair for pair in pairs if contrast(colours[pair[0]], colours[pair[1]]) < TEXT_CONTRAST]
    tiers = [name for name in colours if name.startswith("tier-")]
    too_faint += [(name, "card") for name in tiers if contrast(colours[name], colours["card"]) < GRAPHICS_CONTRAST]

    assert too_faint == []
    assert len({colours[name] for name in tiers}) == 8


@pytest.mark.parametrize("file", sorted(UI.iterdir()), ids=lambda file: file.name)
def test_file_needs_nothing_from_elsewhere_and_makes_no_html_of_text(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")

    assert re.findall(r"https?://|//\w+\.\w+/", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []
    if file.suffix == ".html":
        assert re.findall(r"\son\w+=|style=|<script(?![^>]*src=)|<style", text) == []
