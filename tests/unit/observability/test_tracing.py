import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.errors import InvalidArgument
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing import OpenTelemetry, stages_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def tracing() -> OpenTelemetry:
    return OpenTelemetry(endpoint=NOBODY, sample_ratio=0.0)


def begun(tracing: OpenTelemetry, *headers: tuple[str, str]) -> str:
    """Return what the answer to a request with these headers says of its span."""
    observer = RequestObserver(tracing=tracing, access=None)
    try:
        record = observer.begin("http", "/infer", headers)
    finally:
        observer.stop(timeout_seconds=5.0)
    assert record.trace_response is not None
    return record.trace_response


def test_sampled_caller_is_followed_whatever_the_ratio(tracing: OpenTelemetry) -> None:
    answer = begun(tracing, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    assert answer.startswith(f"00-{TRACE}-")
    assert answer.endswith("-01")
    assert PARENT not in answer


def test_caller_of_a_later_version_is_understood(tracing: OpenTelemetry) -> None:
    assert begun(tracing, ("traceparent", f"cc-{TRACE}-{PARENT}-01-what-the-future-brings")).startswith(f"00-{TRACE}-")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "")],
        [("traceparent", f"00-{TRACE}-{PARENT}")],
        [("traceparent", f"00-{TRACE.upper()}-{PARENT}-01")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{PARENT}-01-more")],
        [("traceparent", "x" * 5000)],
        [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("traceparent", f"00-{TRACE}-{PARENT}-01")],
        [("tracestate", "a=b")],
    ],
)
def test_request_without_a_sound_context_begins_a_trace(tracing: OpenTelemetry, headers: list[tuple[str, str]]) -> None:
    answer = begun(tracing, *headers)
    assert TRACE not in answer
    # Nothing that begins here is sampled. The other bit says that the trace's id is random.
    assert int(answer[-2:], 16) & 1 == 0


@settings(max_examples=50, deadline=None)
@given(parent=st.text(max_size=80), state=st.text(max_size=80))
def test_hostile_context_never_fails_a_request(parent: str, state: str) -> None:
    tracing = OpenTelemetry(endpoint=NOBODY, sample_ratio=0.0)
    assert begun(tracing, ("traceparent", parent), ("tracestate", state)).count("-") == 3
    tracing.close(timeout_seconds=5.0)


def test_unknown_protocol_of_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(InvalidArgument, match=r"expected http/protobuf or grpc, got 'http/json'"):
        OpenTelemetry(endpoint=NOBODY)


def record(**noted: float | None) -> RequestRecord:
    made = RequestRecord("http", "id", "/infer", received=100.0, received_ns=5_000_000_000)
    for name, value in noted.items():
        setattr(made, name, value)
    return made


def test_stages_follow_one_another_from_the_head_to_the_answer() -> None:
    made = record(
        admitted=101.0, settled=108.0, ended=109.0, preprocessing_seconds=2.0, queue_seconds=1.0, compute_seconds=3.0,
        batch_rows=8,
    )  # fmt: skip
    assert stages_of(made) == [
        ("receive", 100.0, 101.0, {}),
        ("preprocess", 102.0, 104.0, {}),
        ("queue", 104.0, 105.0, {}),
        ("compute", 105.0, 108.0, {"serveprune.batch.rows": 8}),
        ("encode", 108.0, 109.0, {}),
    ]
    assert made.ns_of(101.5) == 6_500_000_000


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({"ended": 101.0}, []),
        ({"ended": 103.0, "admitted": 101.0}, ["receive"]),
        ({"ended": 103.0, "admitted": 101.0, "settled": 102.0}, ["receive"]),
        # Given up first, and settled only then.
        ({"ended": 102.0, "admitted": 101.0, "settled": 103.0}, ["receive"]),
    ],
)
def test_request_that_got_not_so_far_has_fewer_stages(noted: dict[str, float], expected: list[str]) -> None:
    assert [name for name, *_ in stages_of(record(**noted))] == expected


@given(
    moments=st.lists(st.floats(0, 10), min_size=3, max_size=3).map(sorted),
    seconds=st.lists(st.none() | st.floats(0, 20), min_size=3, max_size=3),
)
def test_no_stage_leaves_its_request(moments: list[float], seconds: list[float | None]) -> None:
    admitted, settled, ended = (100.0 + moment for moment in moments)
    made = record(
        admitted=admitted, settled=settled, ended=ended, batch_rows=1,
        preprocessing_seconds=seconds[0], queue_seconds=seconds[1], compute_seconds=seconds[2],
    )  # fmt: skip
    times = [time for _, begin, end, _ in stages_of(made) for time in (begin, end)]
    assert times == sorted(times)
    assert all(100.0 <= time <= ended for time in times)
