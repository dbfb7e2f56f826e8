"""The report of an edit: one file, complete, safe against any name, and alive in a browser."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from editors import Editor, EditorConfig, SirenConfig, edit_picture, write_report
from editors.report import FRAMES, weight_changes
from nfn_opt.functionals import EquivariantConfig

BODY = EquivariantConfig(hidden_channels=2, hidden_layers=1, fourier_frequencies=0, position_bands=1)
NASTY = '"><script>alert(1)</script>{{data}}&é.png'


def make_editor(edit: str = "dilate", channels: int = 1, seed: int = 0) -> Editor:
    siren = SirenConfig(hidden_width=8, omega_0=8.0, out_channels=channels)
    config = EditorConfig(siren=siren, edit=edit, image_size=(6, 5), body=BODY)
    editor = Editor(config, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        editor.std.fill_(3.0)  # a change that can be seen
    return editor


def report(
    path: Path,
    editors: list[Editor],
    channels: int = 1,
    strength: float = 1.0,
    name: str = "a.png",
    **options: Any,
) -> Path:
    picture = torch.rand(8, 9, channels, generator=torch.Generator().manual_seed(0))
    done = edit_picture(picture, editors, strength=strength, overlap=1)
    return write_report(path, done, editors, name=name, seconds=1.25, **options)


class Page(html.parser.HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.contents: dict[str, str] = {}
        self._inside = ""
        self.feed(self.text)
        self.data = json.loads(self.contents["script data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._inside = f"{tag} {given['id']}" if "id" in given else tag
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.contents[self._inside] = self.contents.get(self._inside, "") + data


def decoded(source: str) -> Image.Image:
    head, _, content = source.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    picture.load()
    return picture


@pytest.mark.parametrize("channels", [1, 3])
def test_the_file_needs_nothing_else(tmp_path: Path, channels: int) -> None:
    page = Page(report(tmp_path / "new" / "report.html", [make_editor()], channels))
    assert all(source.startswith("data:") for source in page.sources)
    assert "://" not in page.text
    assert "default-src 'none'" in page.text
    assert "{{" not in page.text
    frames = [decoded(source) for source in page.data["frames"]]
    assert len(frames) == FRAMES
    assert {frame.size for frame in frames} == {(9 * 16, 8 * 16)}
    assert {frame.mode for frame in frames} == {"L" if channels == 1 else "RGB"}
    assert len({frame.tobytes() for frame in frames}) == FRAMES
    assert [entry["name"] for entry in page.data["references"]] == ["original", "INRs unedited", "exact edit"]
    assert all(decoded(entry["source"]).size == (144, 128) for entry in page.data["references"])
    assert len(page.data["chart"]) == FRAMES
    for source in page.sources:
        if source.startswith("data:image"):
            decoded(source)


def test_names_are_text(tmp_path: Path) -> None:
    plain, nasty = (
        Page(report(tmp_path / "report.html", [make_editor()], name=name)) for name in ("a", NASTY)
    )
    assert nasty.tags == plain.tags
    assert nasty.contents["title"] == f"dilate: {NASTY}"
    assert nasty.contents["h1"].strip() == NASTY


def test_the_numbers(tmp_path: Path) -> None:
    picture = torch.rand(8, 9, 1, generator=torch.Generator().manual_seed(0))
    editor = make_editor()
    done = edit_picture(picture, editor)
    page = Page(write_report(tmp_path / "report.html", done, editor, name="a.png", seconds=1.25))
    numbers = page.contents["dd"]
    for text in (
        f"{done.psnr:.1f} ",
        str(done.tiles),
        f"{done.error:.5f}",
        f"{done.no_edit_error:.5f}",
        "1.2",
    ):
        assert text in numbers


def test_the_report_is_that_of_the_whole_edit(tmp_path: Path) -> None:
    whole, half = (report(tmp_path / f"{s}.html", [make_editor()], strength=s) for s in (1.0, 0.5))
    assert whole.read_text() == half.read_text()


def test_a_chain_and_a_size(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "r.html", [make_editor(), make_editor("blur", seed=1)], size=(300, 400)))
    assert page.contents["title"] == "dilate, then blur: a.png"
    assert [decoded(page.data["frames"][i]).format for i in (0, -1)] == ["JPEG", "JPEG"]
    assert decoded(page.data["frames"][0]).size == (400, 300)


def test_without_an_exact_edit(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "report.html", [make_editor("halve")]))
    assert len(page.data["references"]) == 2
    assert "svg" not in page.tags
    assert "exact" not in page.contents["dt"]


def test_weight_changes_do_not_depend_on_the_order_of_neurons() -> None:
    editor = make_editor()
    done = edit_picture(torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(0)), editor)
    before, after = done.before.inrs, done.after.inrs
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))

    def permuted(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The first hidden layer in another order."""
        first, bias, second = (values[f"layers.{part}"] for part in ("0.weight", "0.bias", "1.weight"))
        moved = {"layers.0.weight": first[:, order], "layers.0.bias": bias[:, order]}
        return {**values, **moved, "layers.1.weight": second[:, :, order]}

    expected = weight_changes(before, after)
    found = weight_changes(
        before.with_params(permuted(before.params)), after.with_params(permuted(after.params))
    )
    for name, (share, change) in expected.items():
        assert found[name][0] == pytest.approx(share)
        torch.testing.assert_close(found[name][1], change)
        assert change.shape == before.params[name].shape[1:]
        assert share > 0


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or its driver is not installed (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed; it is in the extra dev"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("report") / "report.html", [make_editor()], 3, name=NASTY)


def opened(browser: Any, page: Path, *, width: int = 1200, scheme: str = "light") -> Any:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    for _ in range(600):
        if browser.execute_script("return document.getElementById('stage').dataset.ready === 'true'"):
            return browser
        time.sleep(0.1)
    pytest.fail(f"the page was never ready: {browser.get_log('browser')}")


def pixels(browser: Any) -> str:
    return browser.execute_script("return document.getElementById('view').toDataURL()")


def set_strength(browser: Any, value: float) -> None:
    browser.execute_script(
        "const s = document.getElementById('strength'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        value,
    )


def test_the_sliders_change_the_picture(browser: Any, page_file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page_file)
    seen = []
    for strength in (1.0, 0.5, 0.25, 0.0, 1.0):
        set_strength(browser, strength)
        seen.append(pixels(browser))
    assert seen[0] == seen[-1]
    assert len(set(seen)) == 4
    for key, place in (("ARROW_LEFT", "48"), ("END", "100"), ("HOME", "0")):
        divider = browser.find_element("id", "divider")
        divider.send_keys(getattr(Keys, key))
        assert divider.get_attribute("aria-valuenow") == place
    whole = decoded(pixels(browser)).convert("RGB")
    assert whole.tobytes() == decoded(Page(page_file).data["frames"][-1]).convert("RGB").tobytes()
    browser.find_element("id", "divider").send_keys(Keys.END)
    before = []
    for number, label in enumerate(("original", "INRs unedited", "exact edit")):
        browser.find_elements("css selector", "#compare input")[number].send_keys(" ")
        assert browser.find_element("id", "left-tag").text == label
        before.append(pixels(browser))
    assert len(set(before)) == 3
    assert browser.get_log("browser") == []


def test_the_divider_follows_the_pointer(browser: Any, page_file: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, page_file)
    first = pixels(browser)
    stage = browser.find_element("id", "stage")
    quarter = stage.size["width"] // 4
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(
        quarter, 0
    ).release().perform()
    assert abs(int(browser.find_element("id", "divider").get_attribute("aria-valuenow")) - 75) <= 1
    assert pixels(browser) != first


def test_playing(browser: Any, page_file: Path) -> None:
    opened(browser, page_file)
    button = browser.find_element("id", "play")
    first = pixels(browser)
    button.click()
    for _ in range(600):
        if pixels(browser) != first:
            break
        time.sleep(0.1)
    else:
        pytest.fail("nothing moved")
    assert button.text == "Pause"
    button.click()
    assert button.text == "Play"
    assert pixels(browser) == pixels(browser)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_every_screen(browser: Any, page_file: Path, width: int, scheme: str, tmp_path: Path) -> None:
    opened(browser, page_file, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.save_screenshot(str(tmp_path / "screen.png"))
    with Image.open(tmp_path / "screen.png") as screen:
        corner = screen.convert("L").getpixel((2, 2))
    assert isinstance(corner, int)
    assert (corner < 64) == (scheme == "dark")
    assert browser.get_log("browser") == []
