"""Batches that TorchServe makes of requests that ask for different things."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from e2e.graphs import CARRIER_WIDTH
from e2e.torchserve.conftest import carrier_inputs
from e2e.torchserve.torchserve_process import TorchServeProcess

ROWS = 32


def carried(number: int, **headers: str) -> dict[str, Any]:
    return {"json": carrier_inputs(number), "headers": headers}


def test_rows_of_different_tiers_are_answered_in_order(torchserve: TorchServeProcess) -> None:
    tiers = ["int8" if number % 3 == 0 else "dense" for number in range(ROWS)]
    requests = [carried(number, **{"x-compression-tier": tier}) for number, tier in enumerate(tiers)]

    for _ in range(3):
        answers = torchserve.ask_at_once("carrier", requests)

        assert [answer.status_code for answer in answers] == [200] * ROWS
        assert [answer.json()["who"] for answer in answers] == [[[number]] for number in range(ROWS)]
        assert [answer.headers["x-compression-tier"] for answer in answers] == tiers
        totals = [answer.json()["total"][0][0] for answer in answers]
        np.testing.assert_allclose(totals, [number + number / 100 * CARRIER_WIDTH for number in range(ROWS)], rtol=1e-5)


def test_bad_rows_fail_alone_each_with_its_own_status(torchserve: TorchServeProcess) -> None:
    bad: dict[int, tuple[dict[str, Any], int]] = {
        1: ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        5: (carried(5, **{"x-compression-tier": "int3"}), 404),
        8: ({"json": {"id": [8]}}, 400),
        11: ({"json": {**carrier_inputs(11), "x": [1.0]}}, 400),
        12: ({"json": {**carrier_inputs(12), "id": ["twelve"]}}, 400),
    }
    requests = [bad[number][0] if number in bad else carried(number) for number in range(16)]

    answers = torchserve.ask_at_once("carrier", requests)

    for number, answer in enumerate(answers):
        if number in bad:
            assert answer.status_code == bad[number][1], answer.text
            assert answer.json()["error"]
            assert "x-compression-tier" not in answer.headers
        else:
            assert answer.status_code == 200, answer.text
            assert answer.json()["who"] == [[number]]


def test_requests_of_several_rows_are_batched_too(torchserve: TorchServeProcess) -> None:
    def several(first: int) -> dict[str, Any]:
        rows = [carrier_inputs(first + index) for index in range(first % 4 + 1)]
        return {"json": {name: [row[name] for row in rows] for name in ("id", "x")}}

    answers = torchserve.ask_at_once("carrier", [several(number) for number in range(16)])

    for number, answer in enumerate(answers):
        assert answer.json()["who"] == [[number + index] for index in range(number % 4 + 1)]


def test_every_answer_is_right_under_load_of_all_kinds(torchserve: TorchServeProcess) -> None:
    before = torchserve.worker_pids("carrier")

    def kind(number: int) -> dict[str, Any]:
        if number % 7 == 6:
            return {"json": {**carrier_inputs(number), "x": "wrong"}}
        if number % 5 == 4:
            return {"path": "/1.0/tier/int8", **carried(number)}
        return carried(number, **{"x-compression-tier": "int8"} if number % 3 == 0 else {})

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda number: torchserve.ask("carrier", **kind(number)), range(600)))

    for number, answer in enumerate(answers):
        if number % 7 == 6:
            assert answer.status_code == 400
            continue
        assert answer.status_code == 200, answer.text
        assert answer.json()["who"] == [[number]]
        wanted = "int8" if number % 5 == 4 or number % 3 == 0 else "dense"
        assert answer.headers["x-compression-tier"] == wanted
    assert torchserve.worker_pids("carrier") == before
