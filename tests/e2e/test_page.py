"""The page at ``/ui`` in a real browser, on a server of the demo's models."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from contract.certificates import Authority

from e2e.browser import PHONE, Browser, browsing
from e2e.conftest import DemoRun, Serve
from e2e.deployment import FASHION, minilm, write_fashion
from e2e.server_process import ServerProcess, wait_until

OPERATORS_TOKEN = "an-operators-own-token-01"
CLIENTS_TOKEN = "a-token-of-clients-0001"
ENVIRONMENT = {"SERVEPRUNE_ADMIN_TOKEN": OPERATORS_TOKEN, "SERVEPRUNE_TOKENS": CLIENTS_TOKEN}
ADMIN = {
    "http": "127.0.0.1:0",
    "grpc": "127.0.0.1:0",
    "through_ui": True,
    "tokens": {"environment": "SERVEPRUNE_ADMIN_TOKEN"},
}
TIERS = ["dense", "int8", "lean", "lean-int8", "tiny-int8"]
CANARY = {
    "tier": "int8",
    "steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}],
    "guards": {"max_error_ratio": 0.05, "min_samples": 20, "window": "5m"},
}
NOTHING = "\N{EN DASH}"
"""What the page shows in place of a figure that there is none of."""
HOSTILE = "<img src=x onerror=document.title='broken'>"


def write_page_config(folder: Path, demo: DemoRun, **sections: Any) -> Path:
    """Lay out the demo's models, the tier ``lean`` of the image classifier with a gate that refuses it."""
    profiles = yaml.safe_load((demo.folder / "serveprune.yaml").read_text(encoding="utf-8"))["profiles"]
    profiles["lean"]["gate"] = {"min_quality": 0.999}
    models = {"fashion": {**FASHION, "tiers": TIERS}, "minilm": minilm()}
    return write_fashion(
        folder, stored=demo.store, **{"profiles": profiles, "models": models, "server": {"admin": ADMIN}, **sections}
    )


@pytest.fixture(scope="module")
def running(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = write_page_config(tmp_path_factory.mktemp("page"), demo, deployments={"fashion": {"canary": CANARY}})
    with ServerProcess(file, environment=ENVIRONMENT) as running:
        running.wait_open().wait_ready("minilm").wait_state("fashion", "tiny-int8", "ready")
        running.wait_state("fashion", "lean", "refused")
        yield running


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser, running: ServerProcess) -> Iterator[Browser]:
    """The page of the image classifier; whatever a test does, nothing complains and nobody else is asked."""
    one_browser.open("about:blank")
    one_browser.complaints()
    one_browser.open(f"{running.url}/ui/#fashion")
    one_browser.script("sessionStorage.clear()")
    one_browser.wait(lambda: one_browser.text("#model") == "fashion", what="the page shows the model")
    yield one_browser
    assert one_browser.complaints() == []
    ours = (f"{running.url}/", f"blob:{running.url}/", "about:", "data:", "chrome:")
    assert [url for url in one_browser.asked() if not url.startswith(ours)] == []


@contextmanager
def load(server: ServerProcess) -> Iterator[None]:
    """Have a client ask for a small tier and for none in turns."""
    picture = (server.folder / "boot.png").read_bytes()
    stopped = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            while not stopped.wait(0.01):
                for model in ("fashion@tiny-int8", "fashion"):
                    answer = client.post(
                        f"/v2/models/{model}/infer", content=picture, headers={"Content-Type": "image/png"}
                    )
                    assert answer.status_code == 200

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def figure(browser: Browser, tier: str, name: str) -> str:
    return browser.text(f'#tiers tr[data-tier="{tier}"] [data-figure="{name}"]')


def is_above_zero(text: str) -> bool:
    number = text.split(" ")[0]
    return number not in ("", NOTHING) and float(number) > 0


def test_picture_has_a_dot_for_each_tier(browser: Browser, running: ServerProcess) -> None:
    tiers = running.tiers("fashion")
    browser.one("#picture .dot")
    dots = {dot.get_attribute("data-tier"): dot for dot in browser.all("#picture .dot")}
    assert set(dots) == set(TIERS)
    classes = {name: str(dot.get_attribute("class")).split() for name, dot in dots.items()}
    assert [name for name, words in classes.items() if "refused" in words] == ["lean"]
    assert [name for name in dots if browser.all(f'.dot[data-tier="{name}"] .ring')] == ["dense"]
    place = browser.script(
        "return Object.fromEntries([...document.querySelectorAll('#picture .dot')].map((dot) => { const c = "
        "dot.querySelector('.body'); return [dot.dataset.tier, ['cx', 'cy', 'r'].map((a) => +c.getAttribute(a))]; }))"
    )
    compressed = TIERS[1:]
    by_latency = sorted(compressed, key=lambda name: tiers[name]["latency_ms"]["tier"])
    assert sorted(compressed, key=lambda name: place[name][0]) == by_latency
    by_quality = sorted(compressed, key=lambda name: -tiers[name]["quality"]["top1_agreement"])
    assert sorted(compressed, key=lambda name: place[name][1]) == by_quality
    assert max(place, key=lambda name: place[name][2]) == "dense"
    assert "refused by its gate" in str(dots["lean"].get_attribute("aria-label"))
    assert browser.text('#tiers tr[data-tier="lean"] .state') == "refused"
    assert "0.999" in browser.text('#tiers tr[data-tier="lean"] .why')
    # One colour a tier, wherever it is seen.
    for index, name in enumerate(TIERS):
        assert f"t{index}" in classes[name]
        assert browser.all(f'#tiers tr[data-tier="{name}"] .chip.t{index}')


def test_figures_move_under_load_and_rest_without(browser: Browser, running: ServerProcess) -> None:
    assert figure(browser, "lean-int8", "rate") in ("", NOTHING, "0")
    with load(running):
        browser.wait(lambda: is_above_zero(figure(browser, "tiny-int8", "rate")), what="the rate moves")
        for name in ("p50", "p99", "share"):
            assert is_above_zero(figure(browser, "tiny-int8", name))
        browser.wait(lambda: browser.all('#rates path[data-tier="tiny-int8"]'), what="there is a line")
        assert is_above_zero(browser.text('#figures [data-figure="rate"]'))
        assert figure(browser, "tiny-int8", "errors") == "0 %"
    assert figure(browser, "lean", "rate") == "0"


def test_page_asks_nothing_while_nobody_looks(browser: Browser, running: ServerProcess) -> None:
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => arguments[0]});"
    tell = "document.dispatchEvent(new Event('visibilitychange'));"
    count = "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/ui/state')).length"
    browser.script(f"const hidden = arguments[0]; {hide.replace('arguments[0]', 'hidden')} {tell}", True)
    before = browser.script(f"performance.clearResourceTimings(); {count}")
    # A whole look and a half would fit in here.
    browser.driver.execute_async_script("setTimeout(arguments[0], 3000)")
    assert browser.script(count) - before <= 1  # one may have been on its way
    browser.script(f"const hidden = arguments[0]; {hide.replace('arguments[0]', 'hidden')} {tell}", False)
    browser.wait(lambda: browser.script(count) > before + 1, what="it asks again")


def test_percentiles_are_those_of_prometheus(browser: Browser) -> None:
    """By hand: 10 answers, 5 of them in (1, 2], 4 in (2, 4], 1 beyond."""
    window = {"bounds": [1, 2, 4], "buckets": [0, 5, 9, 10]}
    found = browser.module("live.js", "return [0.5, 0.7, 0.99].map((share) => m.quantile(a[0], share))", window)
    assert found == [2, 3, 4]
    assert browser.module("live.js", "return m.quantile({bounds: [1], buckets: [0, 0]}, 0.5)") is None


def shown_difference(browser: Browser) -> dict[str, str]:
    browser.one("#answers .output")
    figures = ("largest", "mean", "cosine", "argmax")
    return {name: browser.text(f'#answers .output [data-figure="{name}"]') for name in figures}


def test_form_compares_two_tiers_by_tensors(browser: Browser, running: ServerProcess) -> None:
    browser.click('input[value="tensors"]')
    inputs = json.loads(str(browser.one("#inputs").get_attribute("value")))
    assert (inputs[0]["name"], inputs[0]["datatype"], inputs[0]["shape"]) == ("image", "FP32", [1, 1, 28, 28])
    values = np.random.default_rng(3).normal(size=784).astype(np.float32)
    text = json.dumps([{**inputs[0], "data": [round(float(value), 4) for value in values]}])
    browser.script("document.querySelector('#inputs').value = arguments[0]", text)
    browser.script("document.querySelector('#first').value = 'dense'; document.querySelector('#second').value = 'lean'")
    browser.script("document.querySelector('#times').value = '1'")
    browser.click("#send")
    shown = shown_difference(browser)

    answers = [
        running.http.post(f"/v2/models/fashion@{tier}/infer", json={"inputs": json.loads(text)}).json()
        for tier in ("dense", "lean")
    ]
    one, other = (np.array(answer["outputs"][0]["data"]) for answer in answers)
    assert float(shown["largest"]) == pytest.approx(np.abs(one - other).max(), rel=1e-2, abs=1e-6)
    assert float(shown["mean"]) == pytest.approx(np.abs(one - other).mean(), rel=1e-2, abs=1e-6)
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert float(shown["cosine"]) == pytest.approx(cosine, abs=1e-4)
    assert shown["argmax"] == ("yes" if one.argmax() == other.argmax() else "no")
    # What a gate refuses, another tier stands in for, and the page says so.
    assert browser.text('[data-side="1"] [data-figure="served"]') == answers[1]["parameters"]["tier"] != "lean"
    assert answers[1]["parameters"]["tier_reason"] in browser.text('[data-side="1"]')
    assert " ms" in browser.text('[data-side="0"] [data-figure="latency"]')


def test_form_sends_a_picture_and_a_text(browser: Browser, running: ServerProcess) -> None:
    browser.one("#image").send_keys(str(running.folder / "boot.png"))
    browser.click("#send")
    assert shown_difference(browser)["argmax"] == "yes"
    assert len(browser.all(".bars > .two")) == 10
    assert browser.text('[data-side="1"] [data-figure="served"]') == "tiny-int8"

    browser.script("location.hash = 'minilm'")
    browser.wait(lambda: browser.text("#model") == "minilm", what="the other model is shown")
    browser.fill("#text", "ein großartiger Film")
    browser.click("#send")
    assert 0.9 < float(shown_difference(browser)["cosine"]) < 1


def is_said(browser: Browser, text: str) -> bool:
    return text in browser.text("#answers .failed")


def test_form_says_what_is_wrong_with_a_request(browser: Browser) -> None:
    browser.click('input[value="tensors"]')
    for text, said in (("[", "as a JSON list"), ("{}", "as a JSON list"), ("[]", "image")):
        browser.script("document.querySelector('#inputs').value = arguments[0]", text)
        browser.click("#send")
        browser.wait(partial(is_said, browser, said), what=f"it says {said}")
    # The console tells of the answer 400, as it does of any; nothing else is in it.
    assert all("400 (Bad Request)" in complaint for complaint in browser.complaints())


def become_operator(browser: Browser, token: str = OPERATORS_TOKEN) -> None:
    browser.click("#operate")
    browser.fill("#operator-token", token)
    browser.fill("#who", "ada")
    browser.click("dialog [type=submit]")


def act(browser: Browser, name: str, phase: str) -> None:
    browser.click(f'#rollout [data-act="{name}"]')
    browser.click("dialog [type=submit]")
    browser.wait(lambda: browser.all(f'#rollout [data-phase="{phase}"]'), what=f"the rollout is {phase}")


def test_rollout_is_shown_and_only_operators_move_it(browser: Browser, running: ServerProcess) -> None:
    browser.one('#rollout [data-phase="paused"]')
    assert "20 % to int8" in browser.text("#rollout")
    assert browser.text("#rollout .steps .now") == "until resumed"
    assert "max_error_ratio" in browser.text("#rollout .guards")
    assert browser.all("[data-act]") == []

    become_operator(browser, "nobody-knows-this-token-02")
    browser.wait(lambda: "none of this server's" in browser.text("dialog .error"), what="the token is refused")
    assert browser.all("[data-act]") == []
    assert all("401 (Unauthorized)" in complaint for complaint in browser.complaints())
    browser.fill("#operator-token", OPERATORS_TOKEN)
    browser.click("dialog [type=submit]")
    # The guard wants to see requests before the next step.
    with load(running):
        act(browser, "resume", "paused")
        browser.wait(lambda: "50 % to int8" in browser.text("#rollout"), what="the next step is done")
    act(browser, "promote", "promoted")
    assert "100 % to int8" in browser.text("#rollout")
    act(browser, "abort", "aborted")
    assert "0 % to int8" in browser.text("#rollout")
    assert [button.get_attribute("data-act") for button in browser.all("[data-act]")] == ["reload"]
    log = (running.folder / "store" / "audit.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in log.splitlines()]
    done = [(line["operation"], line["who"]) for line in events if line["event"] == "request"]
    assert done == [("rollout.resume", "ada"), ("rollout.promote", "ada"), ("rollout.abort", "ada")]
    # Kept in this tab only.
    assert browser.script("return [localStorage.length, document.cookie]") == [0, ""]


def test_config_that_is_rejected_is_shown_as_text(browser: Browser, running: ServerProcess) -> None:
    become_operator(browser)
    browser.wait(lambda: browser.all('[data-act="reload"]'), what="there is a button")
    file = running.folder / "serveprune.yaml"
    before = file.read_text(encoding="utf-8")
    document = yaml.safe_load(before)
    document["models"]["fashion"]["tiers"] = ["dense", HOSTILE]
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    browser.wait(lambda: browser.all('#config [data-outcome="rejected"]'), what="the page says so")
    assert HOSTILE in browser.text("#config .problems")
    assert browser.all("main img[src=x]") == []
    file.write_text(before, encoding="utf-8")
    browser.click('[data-act="reload"]')
    browser.wait(lambda: browser.all('#config [data-outcome="unchanged"]'), what="all is well again")
    assert browser.script("return document.title") == "fashion · serveprune"


def test_page_suits_a_phone_the_dark_and_a_screen_reader(browser: Browser) -> None:
    luminance = "return getComputedStyle(document.documentElement).backgroundColor.match(/[0-9]+/g).map(Number)"
    wide = "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    try:
        browser.click("#send")
        shown_difference(browser)
        browser.prefer("dark")
        assert max(browser.script(luminance)) < 60
        browser.prefer("light")
        assert min(browser.script(luminance)) > 200
        assert browser.nameless() == []
        headings = "return [...document.querySelectorAll('h1, main h2')].map((e) => e.tagName)"
        assert browser.script(headings)[:2] == ["H1", "H2"]
        for width in (PHONE[0], 320):
            browser.resize(width, PHONE[1])
            browser.wait(lambda: browser.script("return innerWidth") <= PHONE[0], what="the page is narrow")
            assert browser.script(wide) <= width
    finally:
        browser.resize(1320, 900)
        browser.prefer("")


def test_server_with_tokens_shows_nothing_without_one(
    one_browser: Browser, serve: Serve, tmp_path: Path, dense_store: Path
) -> None:
    file = write_fashion(
        tmp_path,
        stored=dense_store,
        models={"fashion": {**FASHION, "tiers": ["dense"]}},
        server={"tokens": {"environment": "SERVEPRUNE_TOKENS"}},
    )
    running = serve(file, environment=ENVIRONMENT).wait_open()
    one_browser.open(f"{running.url}/ui/")
    one_browser.script("sessionStorage.clear()")
    one_browser.fill("#token", "nobody-knows-this-token-02")
    one_browser.click("dialog [type=submit]")
    one_browser.wait(lambda: "none of this server's" in one_browser.text("dialog .error"), what="it is refused")
    assert "fashion" not in one_browser.text("main")
    one_browser.fill("#token", CLIENTS_TOKEN)
    one_browser.click("dialog [type=submit]")
    one_browser.wait(lambda: one_browser.text("#model") == "fashion", what="the page shows the model")
    one_browser.wait(lambda: one_browser.text('#tiers [data-tier="dense"] .state') == "ready", what="dense is ready")
    one_browser.click("#send")
    assert float(shown_difference(one_browser)["cosine"]) == pytest.approx(1)
    # Nobody may act through a page that was not told so.
    assert not one_browser.one("#operate").is_displayed()
    assert httpx.get(f"{running.url}/ui/admin/config", trust_env=False).status_code == 404


def test_page_is_as_whole_over_tls(serve: Serve, tmp_path: Path, dense_store: Path) -> None:
    issued = Authority(tmp_path / "authority").issue("server")
    file = write_fashion(
        tmp_path,
        stored=dense_store,
        models={"fashion": {**FASHION, "tiers": ["dense"]}},
        server={
            "tls": {"certificate_file": str(issued.certificate), "key_file": str(issued.key)},
            "tokens": {"environment": "SERVEPRUNE_TOKENS"},
            "admin": ADMIN,
        },
    )
    running = serve(file, environment=ENVIRONMENT).wait_open()
    url = f"https://{running.endpoints['http']}"
    with browsing(tmp_path / "profile", trusts_any_certificate=True) as browser:
        browser.open(f"{url}/ui/")
        browser.fill("#token", CLIENTS_TOKEN)
        browser.click("dialog [type=submit]")
        browser.wait(lambda: browser.text('#tiers [data-tier="dense"] .state') == "ready", what="dense is ready")
        become_operator(browser)
        browser.click('[data-act="reload"]')
        browser.wait(lambda: browser.all('#config [data-outcome="unchanged"]'), what="the config is read again")
        browser.click("#send")
        assert float(shown_difference(browser)["cosine"]) == pytest.approx(1)
        assert browser.script("return isSecureContext")
        # That the first look had no token; nothing else was amiss, and nothing went another way.
        assert all("401 (Unauthorized)" in complaint for complaint in browser.complaints())
        others = (f"{url}/", f"blob:{url}/", "about:", "data:", "chrome:")
        assert [asked for asked in browser.asked() if not asked.startswith(others)] == []


def test_build_is_shown_while_it_runs(one_browser: Browser, serve: Serve, tmp_path: Path, dense_store: Path) -> None:
    running = serve(write_fashion(tmp_path, stored=dense_store)).wait_open()
    running.wait_state("fashion", "dense", "ready")
    wait_until(lambda: "starting" not in stage(running), what="the build's process has begun to work")
    child = running.build_child()
    child.suspend()  # so that nothing below is a race
    one_browser.open(f"{running.url}/ui/#fashion")
    one_browser.wait(lambda: state(one_browser) == stage(running), what="the page says how far it is")
    assert "1 being built" in one_browser.text("#tiers-sub")
    (bar,) = one_browser.all('#tiers tr[data-tier="int8"] .bar')
    assert bar.is_displayed()
    # Dense has no latency of its own to be drawn at before a tier was measured beside it.
    assert one_browser.all("#picture .dot") == []

    child.resume()
    one_browser.wait(lambda: state(one_browser) == "ready", what="the page shows the tier")
    assert not bar.is_displayed()
    assert "being built" not in one_browser.text("#tiers-sub")
    one_browser.wait(lambda: len(one_browser.all("#picture .dot")) == 2, what="both tiers are in the picture")


def state(browser: Browser) -> str:
    return browser.text('#tiers tr[data-tier="int8"] .state')


def stage(server: ServerProcess) -> str:
    """Return in the page's words how far the build is."""
    int8 = server.tiers("fashion")["int8"]
    progress = int8["progress"]
    if progress is None:
        return str(int8["state"])
    return f"building {int(100 * progress['fraction'] + 0.5)} %, {progress['message'] or progress['stage']}"


def test_page_can_be_switched_off(serve: Serve, tmp_path: Path, dense_store: Path) -> None:
    models = {"fashion": {**FASHION, "tiers": ["dense"]}}
    running = serve(write_fashion(tmp_path, stored=dense_store, models=models, server={"ui": False})).wait_open()
    for path in ("/ui", "/ui/", "/ui/main.js", "/ui/state"):
        assert running.http.get(path).status_code == 404


def test_page_of_several_processes_shows_the_sum_and_moves_rollouts(
    serve: Serve, tmp_path: Path, fashion_store: Path
) -> None:
    file = write_fashion(
        tmp_path,
        stored=fashion_store,
        deployments={"fashion": {"canary": CANARY}},
        server={"admin": ADMIN, "processes": 2, "executors": 2},
    )
    running = serve(file, environment=ENVIRONMENT).wait_open().wait_ready("fashion")
    wait_until(lambda: running.metric("serveprune_processes") == 2, what="both processes listen")
    picture = (tmp_path / "boot.png").read_bytes()

    def anew(path: str, **options: Any) -> httpx.Response:
        """Ask over a connection of its own, which either process may get."""
        method = "POST" if options else "GET"
        return httpx.request(method, f"{running.url}{path}", trust_env=False, timeout=60, **options)

    for _ in range(24):
        anew("/v2/models/fashion@int8/infer", content=picture, headers={"Content-Type": "image/png"})

    def counted() -> set[float]:
        documents = [anew("/ui/state").json() for _ in range(12)]
        return {
            sum(tier["codes"].get("OK", 0) for tier in document["live"]["tiers"] if tier["tier"] == "int8")
            for document in documents
        }

    wait_until(lambda: counted() == {24}, what="both processes show the sum")
    headers = {"Authorization": f"Bearer {OPERATORS_TOKEN}"}
    assert anew("/ui/admin/rollouts/fashion/abort", json={"who": "ada"}).status_code == 401
    wait_until(
        lambda: {anew("/ui/state").json()["rollouts"][0]["phase"] for _ in range(6)} == {"paused"},
        what="both processes show the rollout",
    )
    told = anew("/ui/admin/rollouts/fashion/promote", json={"who": "ada"}, headers=headers)
    assert (told.status_code, told.json()["phase"]) == (200, "promoted")
    wait_until(
        lambda: {anew("/ui/state").json()["rollouts"][0]["phase"] for _ in range(12)} == {"promoted"},
        what="both processes show it",
    )
    reloaded = anew("/ui/admin/config/reload", content=b"", headers=headers)
    assert (reloaded.status_code, reloaded.json()["outcome"]) == (200, "unchanged")
    wait_until(
        lambda: {anew("/ui/state").json()["config"]["outcome"] for _ in range(12)} == {"unchanged"},
        what="both processes show what became of the config",
    )
    assert OPERATORS_TOKEN not in running.log
    assert running.stop() == 0
