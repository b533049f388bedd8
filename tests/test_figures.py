"""What a chapter hands to the book: reproducible, complete, legible for everybody."""

import json
from itertools import combinations
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from vqa_core import figures

mpl.use("Agg")
ALT = "A line that falls from left to right"
DATA = pd.DataFrame({"x": [1, 2, 3], "y": [0.3, 0.2, 0.1]})


@pytest.fixture
def chapter(tmp_path):
    return figures.Chapter("03_fusion", profile="cpu", folder=tmp_path)


def draw():
    import matplotlib.pyplot as plt

    with mpl.rc_context():
        figures.use_style()
        fig, ax = plt.subplots()
        ax.plot(DATA["x"], DATA["y"], label="model")
        ax.legend()
    return fig


def linear(color: str) -> np.ndarray:
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    f = np.cbrt(np.clip(np.array(to_xyz) @ rgb / [0.95047, 1.0, 1.08883], 0.008856, None))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira & Fernandes 2009, severity 1
SEEN_BY = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_differ_for_every_eye(eyes):
    seen = [lab(np.clip(np.array(SEEN_BY[eyes]) @ linear(c), 0, 1)) for c in figures.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 25


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme):
    page = figures.BACKGROUND[theme]
    assert min(contrast(c, page) for c in figures.PALETTE) >= 3  # WCAG 1.4.11, graphics
    assert contrast(figures.INK[theme], page) >= 7


def test_markers_and_lines_say_the_same_as_colours():
    same = (figures.PALETTE, figures.MARKERS, figures.LINESTYLES, figures.HATCHES)
    assert {len(set(x)) for x in same} == {len(figures.PALETTE)}
    with mpl.rc_context():
        figures.use_style()
        styles = list(mpl.rcParams["axes.prop_cycle"])
    assert len(styles) == len(figures.PALETTE)
    assert all({"color", "marker", "linestyle"} <= s.keys() for s in styles)


def test_figure_writes_two_themes_data_and_provenance(chapter, tmp_path):
    spec = SimpleNamespace(hash="f" * 64, seed=4)
    record = SimpleNamespace(spec=spec, provenance={"data_hash": "abc"})
    shown = chapter.figure(draw(), "cost_curve", caption="It falls.", alt=ALT, data=DATA, records=[record, record])
    light, dark = (tmp_path / f"cost_curve{x}.svg" for x in ("", ".dark"))
    assert figures.INK["light"] in light.read_text()
    assert figures.INK["dark"] not in light.read_text()
    assert figures.INK["dark"] in dark.read_text()
    assert figures.INK["light"] not in dark.read_text()
    assert pd.read_csv(tmp_path / "cost_curve.csv").equals(DATA)
    about = json.loads((tmp_path / "cost_curve.json").read_text())
    assert (about["specs"], about["seeds"], about["data_hashes"]) == (["f" * 16], [4], ["abc"])
    assert about["profile"] == "cpu"
    assert about["alt"] == ALT
    assert about["versions"]["python"].startswith("3.")
    assert {"revision", "dirty", "hardware", "csv_sha256"} <= about.keys()
    assert shown._repr_mimebundle_()[figures.MIME] == {"kind": "figure", "name": "cost_curve"}
    assert "image/svg+xml" in shown._repr_mimebundle_()


PART = "<div hidden><style>div { color: red; }</style><script>document.title;</script></div>"


def test_interactive_part_stands_beside_the_drawing(chapter, tmp_path):
    words = {"caption": "It falls.", "alt": f'{ALT} & "down"', "data": DATA}
    for picture, kind in ((False, "image/svg+xml"), (True, "image/png")):
        shown = chapter.figure(draw(), "cost_curve", interactive=PART, picture=picture, **words)
        assert (tmp_path / "cost_curve.html").read_text() == PART
        preview = shown._repr_mimebundle_()
        assert preview["text/html"].startswith(
            f'{PART}<img alt="{ALT} &amp; &quot;down&quot;" src="data:{kind};base64,'
        )
        assert kind in preview
        assert preview[figures.MIME] == {"kind": "figure", "name": "cost_curve"}
    assert "text/html" not in chapter.figure(draw(), "other", **words)._repr_mimebundle_()
    assert not (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<p>See https://a.example/b.</p>", "a network address"),
        ("<script>new WebSocket('wss://a.example')</script>", "a network address"),
        ('<script src="plot.js"></script>', "a reference"),
        ("<script\nsrc=//a.example/plot.js></script>", "a reference"),
        ('<a href="other.html">other</a>', "a reference"),
        ('<link rel="stylesheet">', "something that is loaded"),
        ("<style>@import 'a.css';</style>", "something that is loaded"),
        ("<style>p { background: url('a.png') }</style>", "something that is loaded"),
        ("<script>fetch('a.json')</script>", "something that is loaded"),
        ("<script>const a = await import('./a.js')</script>", "something that is loaded"),
        ('<button onclick="f()">f</button>', "an inline handler"),
        ('<script type="application/json">1<b></script><img src=x>', "a reference"),
    ],
)
def test_interactive_part_is_whole_in_itself(chapter, tmp_path, inside, said):
    part = f"<div hidden>{inside}</div>"
    with pytest.raises(ValueError, match=f"cost_curve: the interactive part has {said}"):
        chapter.figure(draw(), "cost_curve", caption="It falls.", alt=ALT, data=DATA, interactive=part)
    assert not list(tmp_path.iterdir())


def test_interactive_part_may_hold_data_names_and_marks():
    allowed = (
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="#mark"/></svg><img alt="" src="data:image/png;base64,AA==">'
        '<script type="application/json">["see http://a.example, fetch(x)"]</script>'
        "<style>p { fill: url(#shade) }</style><script>for (let i = 0; i < 3; i += 1) f(i);</script>"
    )
    assert figures.fragment_problems(f"<div hidden>{allowed}</div>") == []
    assert "give it `hidden`" in figures.fragment_problems(f"<div>{allowed}</div>")[0]


def test_figure_is_the_same_bytes_every_time(chapter, tmp_path):
    def run():
        chapter.figure(draw(), "cost_curve", caption="It falls.", alt=ALT, data=DATA)
        return [p.read_bytes() for p in sorted(tmp_path.iterdir())]

    assert run() == run()


def test_picture_is_png_on_white(chapter, tmp_path):
    from PIL import Image

    chapter.figure(draw(), "pixels", caption="Pixels.", alt=ALT, data=DATA, picture=True)
    assert not list(tmp_path.glob("*.svg"))
    with Image.open(tmp_path / "pixels.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_smoke_figures_are_marked(tmp_path):
    smoke = figures.Chapter("03_fusion", profile="smoke", folder=tmp_path / "smoke")
    fig = draw()
    smoke.figure(fig, "cost_curve", caption="It falls.", alt=ALT, data=DATA)
    assert [t.get_text() for t in fig.texts] == ["smoke"]
    assert json.loads((tmp_path / "smoke/cost_curve.json").read_text())["profile"] == "smoke"


@pytest.mark.parametrize(
    ("alt", "said"),
    [
        ("too short", "too short"),
        ("It falls, that is the caption.", "caption"),
        ("see figures/03/cost_curve.svg", "path"),
    ],
)
def test_alt_text_must_say_something(chapter, tmp_path, alt, said):
    with pytest.raises(ValueError, match=said):
        chapter.figure(draw(), "cost_curve", caption="It falls, that is the caption.", alt=alt, data=DATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DATA.assign(y=[0.1, float("nan"), 0.2]), "NaN or infinity in column y"),
        (DATA.assign(y=[0.1, float("inf"), 0.2]), "NaN or infinity in column y"),
        (DATA.assign(name=["a", None, "b"]), "NaN or infinity in column name"),
        (DATA.rename(columns={"y": "mean"}), "needs low, high and n"),
        (DATA.iloc[:0], "with rows"),
        ([1, 2], "DataFrame"),
    ],
)
def test_data_must_be_whole(chapter, data, said):
    with pytest.raises(ValueError, match=said):
        chapter.figure(draw(), "cost_curve", caption="It falls.", alt=ALT, data=data)
    with pytest.raises(ValueError, match=said):
        chapter.table(data, "cost_table", caption="It falls.")


def test_table_keeps_all_digits(chapter, tmp_path):
    table = pd.DataFrame({"mean": [1 / 3], "low": [0.3], "high": [0.4], "n": [5]})
    chapter.table(table, "best", caption="The best.", formats={"mean": ".1%"})
    assert pd.read_csv(tmp_path / "best.csv")["mean"][0] == pytest.approx(1 / 3, abs=1e-9)
    assert json.loads((tmp_path / "best.json").read_text())["formats"] == {"mean": ".1%"}
    with pytest.raises(ValueError, match="formats name"):
        chapter.table(table, "best", caption="The best.", formats={"median": ".1%"})


INTERVAL = SimpleNamespace(mean=0.6, low=0.5, high=0.7, n=5, level=0.95)


def test_values_carry_their_n(chapter, tmp_path):
    chapter.value("best.accuracy", INTERVAL, of="seeds")
    chapter.value("questions", np.int64(300))
    chapter.value("best.name", "film")
    chapter.value("share", np.float32(0.25), n=40, of="questions")
    chapter.value("ratio", 1.5, exact=True, unit="times")
    stored = json.loads((tmp_path / "values.json").read_text())
    assert stored["best.accuracy"] == {
        **{"value": 0.6, "low": 0.5, "high": 0.7, "n": 5, "level": 0.95, "of": "seeds", "profile": "cpu"}
    }
    assert stored["questions"] == {"value": 300, "profile": "cpu"}
    assert stored["best.name"]["value"] == "film"
    assert stored["share"] == {"value": 0.25, "n": 40, "of": "questions", "profile": "cpu"}
    assert stored["ratio"] == {"value": 1.5, "unit": "times", "profile": "cpu"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("a", 0.5, "bare float"),
        ("a", float("nan"), "finite"),
        ("a", None, "needed"),
        ("a", True, "needed"),
        ("A b", 1, "key is"),
        ("a", {"mean": 0.5, "low": 0.4}, "needs mean, low, high and n"),
        ("a", {"mean": 0.5, "low": 0.6, "high": 0.7, "n": 3}, "low <= mean"),
        ("a", {"mean": 0.5, "low": 0.4, "high": 0.7, "n": 0}, "n >= 1"),
    ],
)
def test_values_without_ground_are_refused(chapter, tmp_path, key, value, said):
    with pytest.raises(ValueError, match=said):
        chapter.value(key, value)
    assert not list(tmp_path.iterdir())


def test_claims_need_an_interval(chapter, tmp_path):
    chapter.claim("M1a", INTERVAL, of="seeds")
    stored = json.loads((tmp_path / "claims.json").read_text())["M1a"]
    assert (stored["effect"], stored["low"], stored["high"], stored["n"]) == (0.6, 0.5, 0.7, 5)
    with pytest.raises(ValueError, match="needs an effect"):
        chapter.claim("F1", 0.5)
    with pytest.raises(ValueError, match="identifier"):
        chapter.claim("film is best", INTERVAL)


def test_names_are_checked(chapter):
    with pytest.raises(ValueError, match="joined by underscores"):
        chapter.table(DATA, "../escape", caption="No.")
    with pytest.raises(ValueError, match="allowed are"):
        figures.Chapter("03_fusion", profile="tpu")
    with pytest.raises(ValueError, match="stem"):
        figures.Chapter("3 fusion", profile="cpu")


def test_default_folder_is_in_the_build(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "vqa_core").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where JupyterLab starts a kernel
    assert figures.Chapter("03_fusion", profile="smoke").folder == tmp_path / "build/smoke/figures/03_fusion"
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match="not inside a checkout"):
        figures.Chapter("03_fusion", profile="smoke")
