"""`nsnet ui` as its user has it: a real cluster, a real browser (Debian's chromium, driven by Playwright)."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.kernel.test_cli_real import QUICKSTART, begin, interrupted, nsnet

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402 - after we know it is there

SECONDS = 20_000  # ms; the machine may be busy


@pytest.fixture(scope="module", autouse=True)
def _quickstart() -> Iterator[None]:
    nsnet("up", "--no-verify", QUICKSTART)
    yield
    nsnet("down", "--all")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with begin("ui", "--no-open") as serving:
        assert serving.stdout is not None
        yield serving.stdout.readline().strip()
        interrupted(serving)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, open and filled; what it asks of elsewhere, and any error in it, fails the test."""
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(SECONDS)
    found = context.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on(
        "request",
        lambda sent: wrong.append(sent.url) if not sent.url.startswith(("http://127.0.0.1:", "data:")) else None,
    )
    found.goto(url)
    expect(found.locator("#health")).to_have_text("healthy", timeout=SECONDS)
    yield found
    context.close()
    assert wrong == []


def pods() -> list[tuple[str, str]]:
    """Name and node of web's pods."""
    items = json.loads(nsnet("get", "po", "-l", "app=web", "-o", "json").stdout)["items"]
    return [(item["metadata"]["name"], item["spec"]["nodeName"]) for item in items]


def test_everything_is_in_the_picture_and_the_token_is_not_in_the_address(page: Page) -> None:
    drawn = json.loads(nsnet("graph", "-o", "json").stdout)["nodes"]
    shown = page.eval_on_selector_all(".box", "boxes => boxes.map(box => box.dataset.id)")
    assert sorted(shown) == sorted(node["id"] for node in drawn)
    assert "token" not in page.url
    assert page.locator("#serves path").count() == len([node for node in drawn if node["kind"] == "service"])


def test_two_clicks_are_a_trace_and_it_is_the_one_that_trace_prints(page: Page) -> None:
    (first, _), *others = pods()
    page.click(f'[data-id="pod/default/{first}"]')
    page.click('[data-id="svc/default/web"]')
    page.wait_for_selector("#hops li")
    expect(page.locator("#ways button")).to_have_count(len(others) + 1)
    told = json.loads(nsnet("trace", first, "svc/web", "-o", "json").stdout)
    for number, way in enumerate(told["ways"]):
        page.locator("#ways button").nth(number).click()
        expect(page.locator("#verdict")).to_contain_text(way["verdict"])
        places = list(dict.fromkeys(hop["where"] for hop in way["hops"]))
        listed = page.locator("#hops li:not(.turn) button").all_text_contents()
        assert listed[: len(places)] == places
    assert page.locator("#track").get_attribute("d")
    assert page.locator(".box.at").get_attribute("data-id") == f"pod/default/{first}"  # the reply has come home


def test_a_packet_that_is_sent_is_seen_on_its_way(page: Page) -> None:
    page.fill("#from", "host/client")
    page.fill("#to", "node/node2:30080")
    page.click("#send")
    expect(page.locator("#verdict")).to_contain_text("observed: ", timeout=SECONDS)
    places = page.locator("#hops li button").all_text_contents()
    assert places[:2] == ["host/client", "switch outside"]
    assert "node/node2" in places


def test_what_is_wrong_is_said_as_text(page: Page) -> None:
    page.fill("#from", "<img src=x onerror=alert(1)>")
    page.fill("#to", "svc/web")
    page.press("#to", "Enter")
    expect(page.locator("#verdict")).to_contain_text('"<img src=x onerror=alert(1)>"')
    assert page.locator("#verdict img").count() == 0


def test_the_picture_follows_the_store(page: Page) -> None:
    nsnet("scale", "deploy/web", "--replicas", "5")
    expect(page.locator('.pod[data-id^="pod/default/web-"]')).to_have_count(5, timeout=SECONDS)
    expect(page.locator("#feed li", has_text="is there on node/")).to_have_count(2)
    nsnet("scale", "deploy/web", "--replicas", "3")
    expect(page.locator('.pod[data-id^="pod/default/web-"]')).to_have_count(3, timeout=SECONDS)
    expect(page.locator("#health")).to_have_text("healthy", timeout=SECONDS)


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("node1")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.id") == "node/node1"
    page.keyboard.press("Enter")
    assert page.input_value("#from") == "node/node1"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.id") == "node/node2"
    page.select_option("#protocol", "icmp")
    page.focus('[data-id="node/node2"]')
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("delivered to node/node2")
    page.keyboard.press("Escape")
    assert (page.input_value("#from"), page.locator("#hops li").count()) == ("", 0)
    assert page.eval_on_selector_all("#fabric .box", "boxes => boxes.filter(box => box.tabIndex === 0).length") == 1


def test_drift_is_shown_where_it_is_and_a_trace_says_what_it_does(page: Page) -> None:
    from nsnet import controller

    mine = {node: name for name, node in pods()}
    controller.stop("quickstart")
    lost = "quickstart.node.node1"
    route = json.loads(
        subprocess.run(
            ["ip", "-n", lost, "-j", "route", "show", "dev", "flannel.1"], check=True, capture_output=True
        ).stdout
    )[0]
    subprocess.run(["ip", "-n", lost, "route", "delete", route["dst"]], check=True)
    expect(page.locator("#drift li")).to_contain_text(f"ip -n {lost} route", timeout=SECONDS)
    expect(page.locator('[data-id="node/node1"] .mark.drift')).to_have_text("drift 1")
    page.click(f'[data-id="pod/default/{mine["node1"]}"]')
    page.click(f'[data-id="pod/default/{mine["node2"]}"]')
    expect(page.locator("#verdict.bad")).to_be_visible(timeout=SECONDS)
    expect(page.locator(".box.ended")).to_be_visible()
    nsnet("up", "--no-verify", QUICKSTART)
    expect(page.locator("#health")).to_have_text("healthy", timeout=SECONDS)
    expect(page.locator(".mark.drift")).to_have_count(0)


def test_a_fault_is_marked_where_it_is(page: Page) -> None:
    nsnet("fault", "add", "ip-forward-off", "--on", "node/node2")
    expect(page.locator('[data-id="node/node2"] .mark.fault')).to_have_text("ip-forward-off", timeout=SECONDS)
    expect(page.locator("#faults li")).to_contain_text("The node does not forward")
    nsnet("fault", "clear")
    expect(page.locator(".mark.fault")).to_have_count(0, timeout=SECONDS)


def test_it_ends_at_once_with_the_page_open_and_the_page_says_so(browser: Browser) -> None:
    context = browser.new_context()
    with begin("ui", "--no-open") as serving:
        assert serving.stdout is not None
        page = context.new_page()
        page.goto(serving.stdout.readline().strip())
        page.wait_for_selector(".pod")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=10) == 0  # the page's connection is not waited for
    expect(page.locator("#health")).to_contain_text("no connection", timeout=SECONDS)
    context.close()


def test_a_port_that_is_taken(url: str) -> None:
    port = url.partition("/?")[0].rpartition(":")[2]
    assert f"error: port {port} cannot be listened on: " in nsnet("ui", "--no-open", "--port", port, code=5).stderr
