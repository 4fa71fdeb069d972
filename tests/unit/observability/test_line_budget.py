from serveprune.observability.line_budget import LineBudget


def test_as_many_lines_as_in_ten_seconds_may_come_at_once() -> None:
    budget = LineBudget(5, now=0.0)
    assert [budget.take(0.0) for _ in range(51)] == [True] * 50 + [False]
    assert budget.left_out == 1


def test_lines_come_back_with_time_and_are_never_saved_beyond_that() -> None:
    budget = LineBudget(5, now=0.0)
    for _ in range(60):
        budget.take(0.0)
    assert [budget.take(1.0) for _ in range(6)] == [True] * 5 + [False]
    assert sum(budget.take(10_000.0) for _ in range(1000)) == 50


def test_no_more_lines_come_through_than_the_rate_allows_however_many_there_are() -> None:
    budget = LineBudget(10, now=0.0)
    written = sum(budget.take(tick / 1000) for tick in range(60_000))
    assert written == 10 * 10 + 10 * 60 - 1 or written == 10 * 10 + 10 * 60
    assert written + budget.left_out == 60_000
