import pytest

from serveprune.rollouts.judgement import Finding, Judgement, Verdict

OK, LACKING, BREACH = Verdict.OK, Verdict.NOT_ENOUGH_SAMPLES, Verdict.BREACH


@pytest.mark.parametrize(
    ("found", "whole"),
    [
        ([OK], OK),
        ([OK, OK], OK),
        ([OK, LACKING], LACKING),
        ([LACKING, BREACH], BREACH),
        ([BREACH, OK], BREACH),
        ([], LACKING),
    ],
)
def test_judgement_is_the_worst_finding(found: list[Verdict], whole: Verdict) -> None:
    assert Judgement(tuple(Finding("max_p99_ms", verdict, "") for verdict in found)).verdict is whole


def test_judgement_tells_the_figures_of_all_or_of_some() -> None:
    judgement = Judgement((Finding("a", OK, "all is well"), Finding("b", BREACH, "1 of 1"), Finding("c", OK, "so so")))
    assert judgement.figures == "all is well; 1 of 1; so so"
    assert judgement.figures_of(BREACH) == "1 of 1"
    assert judgement.figures_of(OK) == "all is well; so so"
