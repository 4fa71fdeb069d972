import random

import pytest

from serveprune.config.versions import served_versions, version_order


@pytest.mark.parametrize(
    "ascending",
    [
        ["1", "2", "9", "10", "100"],
        ["1.2", "1.9", "1.10", "1.10.1", "2"],
        ["v1", "v2", "v10"],
        ["beta", "1"],
        ["2024-05-31", "2024-06-01", "2025-01-01"],
        ["1", "1-rc", "2"],
        ["01", "1", "2"],
        ["9" * 100, "1" + "0" * 100],
    ],
)
def test_versions_are_ordered_by_their_numbers_and_else_as_text(ascending: list[str]) -> None:
    shuffled = random.Random(0).sample(ascending, len(ascending))
    assert sorted(shuffled, key=version_order) == ascending


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("latest", ["10"]),
        ("all", ["1", "9", "10"]),
        ({"latest": 1}, ["10"]),
        ({"latest": 2}, ["9", "10"]),
        ({"latest": 7}, ["1", "9", "10"]),
        (("10", "1"), ["1", "10"]),
        (("1", "none"), ["1"]),
    ],
)
def test_policy_says_which_versions_are_served(
    policy: str | dict[str, int] | tuple[str, ...], served: list[str]
) -> None:
    assert served_versions(["10", "1", "9"], policy) == served
