import json
from typing import Any

import pytest

from serveprune.config.canary import Pause
from serveprune.config.deployment import DeploymentConfig

from .conftest import Load, Problems

MODEL = """\
models: {m: {source: {onnx: model.onnx}, tiers: [int8, lean]}}
profiles: {int8: {passes: [{quantize: {}}]}, lean: {passes: [{quantize: {}}]}}
deployments:
  m:
"""
TIERS = "tiers: dense, int8, lean"
CANARY = "canary: {tier: lean, steps: [{setWeight: 5}, {pause: 10m}]}"
GUARDS = (
    "max_error_ratio, max_error_ratio_above_stable, max_p99_ms, max_p99_times_stable, min_agreement, "
    "max_agreement_below_stable, min_samples, window, confidence"
)
DURATION = "expected a duration above 0 and of at most a year, such as 90s, 10m or 1h30m"


def deployment(*entries: str) -> str:
    """A config whose deployment has one of these entries a line, from line 5."""
    return MODEL + "".join(f"    {entry}\n" for entry in entries)


def steps(entries: str) -> str:
    return deployment("canary:", "  tier: lean", f"  steps: [{entries}]")


def guards(entries: str) -> str:
    return deployment("canary:", "  tier: lean", "  steps: [{setWeight: 5}, {pause: 1m}]", f"  guards: {{{entries}}}")


CASES = {
    # Tiers
    "canary of no tier": (
        deployment("canary: {tier: laen, steps: [{pause: 1m}]}"),
        f":5: deployments.m.canary.tier: expected a tier of m, got 'laen'; did you mean `lean`? {TIERS}",
    ),
    "stable of no tier": (
        deployment(CANARY, "stable: x"),
        f":6: deployments.m.stable: expected a tier of m, got 'x'; {TIERS}",
    ),
    "shadow of no tier": (
        deployment("shadow: {tier: x}"),
        f":5: deployments.m.shadow.tier: expected a tier of m, got 'x'; {TIERS}",
    ),
    "split over no tier": (
        deployment("split:", "  int8: 1", "  int9: 1"),
        f":7: deployments.m.split.int9: expected a tier of m, got 'int9'; did you mean `int8`? {TIERS}",
    ),
    "canary that is stable": (
        deployment(CANARY, "stable: lean"),
        ":6: deployments.m.stable: expected another tier than that of the canary, got 'lean'",
    ),
    "canary that is stable by default": (
        deployment("canary: {tier: dense, steps: [{pause: 1m}]}"),
        ":4: deployments.m.stable: expected another tier than that of the canary, got 'dense'",
    ),
    # What excludes each other
    "stable without a canary": (
        deployment("stable: int8"),
        ":5: deployments.m.stable: expected stable beside a canary only, got 'int8' without one; write default_tier",
    ),
    "default tier beside a canary": (
        deployment(CANARY, "default_tier: int8"),
        (
            ":6: deployments.m.default_tier: expected stable in place of default_tier beside a canary, got "
            "default_tier 'int8'"
        ),
    ),
    "default tier beside a split": (
        deployment("split: {int8: 1}", "default_tier: int8"),
        ":6: deployments.m.default_tier: expected no default_tier with a split, which names every tier, got 'int8'",
    ),
    "stable of an adaptive deployment": (
        deployment("policy: adaptive", "target_latency_ms: 50", CANARY, "stable: int8"),
        ":8: deployments.m.stable: expected no stable with policy adaptive, which chooses the tier, got 'int8'",
    ),
    "split of an adaptive deployment": (
        deployment("policy: adaptive", "target_latency_ms: 50", "split: {int8: 1}"),
        ":7: deployments.m.split: expected no split with policy adaptive, which chooses the tier, got one",
    ),
    "split beside a canary": (
        deployment(CANARY, "split: {int8: 1}"),
        ":6: deployments.m.split: expected split or canary, got both",
    ),
    "split of nothing": (
        deployment("split: {int8: 0, dense: 0}"),
        ":5: deployments.m.split: expected at least one tier with a weight above 0, got none",
    ),
    "split by less than nothing": (
        deployment("split: {int8: -1, dense: 2}"),
        ":5: deployments.m.split.int8: expected a number of at least 0, got -1",
    ),
    "split by a share": (
        deployment("split: {int8: 0.5, dense: 2}"),
        ":5: deployments.m.split.int8: expected a whole number, got 0.5",
    ),
    "shadow of what serves": (
        deployment("default_tier: int8", "shadow: {tier: int8}"),
        ":6: deployments.m.shadow: expected another tier than the default one, which serves already, got 'int8'",
    ),
    "agreement of the canary with itself": (
        deployment(
            "canary: {tier: lean, steps: [{setWeight: 5}], guards: {min_agreement: 0.9}}", "shadow: {tier: lean}"
        ),
        (
            ":6: deployments.m.shadow: expected another tier than that of the canary, for "
            "canary.guards.min_agreement compares their answers, got 'lean'"
        ),
    ),
    "agreement of the stable side with itself": (
        deployment(
            "stable: int8",
            "canary: {tier: lean, steps: [{setWeight: 5}], guards: {max_agreement_below_stable: 0.1}}",
            "shadow: {tier: int8}",
        ),
        (
            ":7: deployments.m.shadow: expected another tier than the stable one, for "
            "canary.guards.max_agreement_below_stable compares the answers of both sides with those of a third, got "
            "'int8'"
        ),
    ),
    "shadow of everything and more": (
        deployment("shadow: {tier: int8, sample_ratio: 2}"),
        ":5: deployments.m.shadow.sample_ratio: expected a number of at most 1, got 2",
    ),
    # Keys of requests
    "sticky without a choice": (
        deployment("sticky: {by: request_id}"),
        ":5: deployments.m.sticky: expected this with canary or split only, got it without",
    ),
    "sticky by nothing known": (
        deployment(CANARY, "sticky: {by: heador, name: x-user}"),
        (
            ":6: deployments.m.sticky.by: expected one of header, parameter, request_id, got 'heador'; did you mean "
            "`header`?"
        ),
    ),
    "sticky by a header without a name": (
        deployment(CANARY, "sticky: {by: header}"),
        ":6: deployments.m.sticky.name: expected the name of the header, got none",
    ),
    "sticky by an id with a name": (
        deployment(CANARY, "sticky: {by: request_id, name: x}"),
        ":6: deployments.m.sticky.name: expected no name with by: request_id, got 'x'",
    ),
    # Steps
    "no step": (steps(""), ":7: deployments.m.canary.steps: expected at least 1 entry, got an empty list"),
    "step of two": (
        steps("{setWeight: 5, pause: 1m}"),
        ":7: deployments.m.canary.steps[0]: expected exactly one of setWeight, pause per step, got setWeight, pause",
    ),
    "step of none": (
        steps("{}"),
        ":7: deployments.m.canary.steps[0]: expected exactly one of setWeight, pause per step, got none",
    ),
    "step in words of our own": (
        steps("{set_weight: 5}"),
        (
            ":7: deployments.m.canary.steps[0].set_weight: unknown key; did you mean `setWeight`? known keys: "
            "setWeight, pause"
        ),
    ),
    "weight above all": (
        steps("{setWeight: 101}"),
        ":7: deployments.m.canary.steps[0].setWeight: expected a number of at most 100, got 101",
    ),
    "weight that is not whole": (
        steps("{setWeight: 2.5}"),
        ":7: deployments.m.canary.steps[0].setWeight: expected a whole number, got 2.5",
    ),
    "weight that falls": (
        steps("{setWeight: 25}, {pause: 1m}, {setWeight: 5}"),
        (":7: deployments.m.canary.steps: expected weights that do not fall, got setWeight: 5 after 25 as step 3"),
    ),
    "step after the last": (
        steps("{setWeight: 100}, {pause: 1m}"),
        (
            ":7: deployments.m.canary.steps: expected no step after setWeight: 100, which promotes the canary for "
            "good, got 2 steps, of which it is number 1"
        ),
    ),
    "pause of no duration": (
        steps("{pause: 10 minutes}"),
        f":7: deployments.m.canary.steps[0].pause: {DURATION}, got '10 minutes'",
    ),
    "pause of Argo's form and no duration": (
        steps("{pause: {duration: 0}}"),
        f":7: deployments.m.canary.steps[0].pause: {DURATION}, got 0",
    ),
    "pause of another form": (
        steps("{pause: {seconds: 5}}"),
        (
            ":7: deployments.m.canary.steps[0].pause: expected a duration such as 10m, {duration: 10m}, or {} to wait "
            "for an operator, got a mapping with the keys seconds"
        ),
    ),
    # Guards
    "guards without a bound": (
        guards("min_samples: 5"),
        (
            ":8: deployments.m.canary.guards: expected at least one bound of max_error_ratio, "
            "max_error_ratio_above_stable, max_p99_ms, max_p99_times_stable, min_agreement, "
            "max_agreement_below_stable, got none"
        ),
    ),
    "unknown guard": (
        guards("max_p99: 5"),
        f":8: deployments.m.canary.guards.max_p99: unknown key; did you mean `max_p99_ms`? known keys: {GUARDS}",
    ),
    "guard of no sample": (
        guards("max_p99_ms: 5, min_samples: 0"),
        ":8: deployments.m.canary.guards.min_samples: expected a number of at least 1, got 0",
    ),
    "guard of certainty": (
        guards("max_p99_ms: 5, confidence: 1"),
        ":8: deployments.m.canary.guards.confidence: expected a number below 1, got 1",
    ),
    "guard in percent": (
        guards("max_error_ratio: 1"),
        ":8: deployments.m.canary.guards.max_error_ratio: expected a number below 1, got 1",
    ),
    "guard of no window": (
        guards("max_p99_ms: 5, window: soon"),
        f":8: deployments.m.canary.guards.window: {DURATION}, got 'soon'",
    ),
    "guard of agreement without a shadow": (
        guards("min_agreement: 0.9"),
        (
            ":4: deployments.m.shadow: expected a shadow, such as {tier: dense, sample_ratio: 0.02}, because "
            "canary.guards.min_agreement judges live answers by it, got none"
        ),
    ),
    "guard of agreement below stable without a shadow": (
        guards("max_agreement_below_stable: 0.1"),
        (
            ":4: deployments.m.shadow: expected a shadow, such as {tier: dense, sample_ratio: 0.02}, because "
            "canary.guards.max_agreement_below_stable judges live answers by it, got none"
        ),
    ),
    "guards that nothing reaches": (
        deployment("canary:", "  tier: lean", "  steps: [{pause: 1m}, {setWeight: 100}]", "  guards: {max_p99_ms: 5}"),
        (
            ":8: deployments.m.canary.guards: expected a step with a setWeight from 1 to 99, at which the guards see "
            "requests, got none; the canary would never be promoted"
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_load_config_reports_exactly_one_line_when_one_thing_is_wrong(
    text: str, expected: str, problems: Problems
) -> None:
    assert problems(text) == [f"serveprune.yaml{expected}"]


FULL = deployment(
    "stable: int8",
    "canary:",
    "  tier: lean",
    "  steps:",
    "    - setWeight: 5",
    "    - pause: 10m",
    "    - setWeight: 25",
    "    - pause: {duration: 1h}",
    "    - pause: {}",
    "    - setWeight: 100",
    "  guards: {max_error_ratio: 0.01, max_p99_ms: 40, min_agreement: 0.95, window: 5m}",
    "shadow: {tier: dense, sample_ratio: 0.02}",
    "sticky: {by: header, name: x-user}",
)


def test_load_config_reads_a_canary_with_all_that_belongs_to_it(load: Load) -> None:
    read = load(FULL).deployment("m")
    assert read.canary is not None
    assert read.canary.tier == "lean"
    assert [step.setWeight for step in read.canary.steps] == [5, None, 25, None, None, 100]
    assert [step.pause for step in read.canary.steps] == [None, Pause(600.0), None, Pause(3600.0), Pause(None), None]
    guards = read.canary.guards
    assert guards is not None
    assert guards.bounds == {"max_error_ratio": 0.01, "max_p99_ms": 40.0, "min_agreement": 0.95}
    assert (guards.min_samples, guards.window, guards.confidence) == (200, 300.0, 0.95)
    assert read.shadow is not None
    assert (read.shadow.tier, read.shadow.sample_ratio) == ("dense", 0.02)
    assert read.sticky is not None
    assert (read.sticky.by, read.sticky.name) == ("header", "x-user")


def test_load_config_reads_a_rollout_of_argo_s_getting_started_guide(load: Load) -> None:
    entries = "{setWeight: 20}, {pause: {}}, {setWeight: 40}, {pause: {duration: 10}}, {setWeight: 80}, {pause: {}}"
    read = load(steps(entries)).deployment("m").canary
    assert read is not None
    assert read.steps[3].pause == Pause(10.0)


LAST = {"tier": "lean", "steps": [{"setWeight": 5}]}


@pytest.mark.parametrize(
    ("written", "default", "stable"),
    [
        ({}, "dense", "dense"),
        ({"default_tier": "int8"}, "int8", "int8"),
        ({"stable": "int8", "canary": LAST}, "int8", "int8"),
        ({"canary": LAST}, "dense", "dense"),
        ({"split": {"int8": 20, "lean": 80}}, "lean", "lean"),
        ({"split": {"int8": 1, "lean": 1}}, "int8", "int8"),
        ({"policy": "adaptive", "target_latency_ms": 5}, "dense", None),
        ({"policy": "adaptive", "target_latency_ms": 5, "canary": LAST}, "dense", None),
    ],
)
def test_default_tier_is_what_would_serve_without_a_canary(
    written: dict[str, Any], default: str, stable: str | None
) -> None:
    read = DeploymentConfig.model_validate(written)
    assert (read.default_tier, read.stable_tier) == (default, stable)
    assert DeploymentConfig.model_validate_json(read.model_dump_json()) == read
    assert DeploymentConfig.model_validate(json.loads(read.model_dump_json())) == read


def test_shadow_may_be_the_canary_when_it_is_tried_out_before_it_serves() -> None:
    assert DeploymentConfig.model_validate({"shadow": {"tier": "lean"}}).shadow is not None
    assert DeploymentConfig.model_validate({"shadow": {"tier": "lean"}, "canary": LAST}).shadow is not None
