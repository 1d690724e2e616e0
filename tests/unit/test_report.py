import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from matplotlib.image import imread

from raysound.metrics.classification import classification_report
from raysound.report import pictures
from raysound.report.page import Example, render
from tests.html_tree import Tree, assert_harmless

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = '"><img src=x onerror=alert(1)>'
FLAC = b"fLaC not really"


def corpus(role, right, clips, labels, rejected=0):
    """A corpus whose first `right` clips were heard as asked, the others as the next class."""
    truth = np.arange(clips) % len(labels)
    heard = np.where(np.arange(clips) < right, truth, (truth + 1) % len(labels))
    report = classification_report(truth, np.eye(len(labels))[heard], labels)
    return {"role": role, "found": clips + rejected, "rejected": rejected, **report}


def metrics_of(corpora, labels):
    judge = {
        "run": "cnn-1a2b3c4d",
        "model": "cnn",
        "labels": labels,
        "epoch": 3,
        "validation_accuracy": 0.97,
        "feature_id": "ab12cd34",
        "train_clips": 320,
        "validation_clips": 40,
    }
    return {"schema": 1, "name": "demo", "judge": judge, "corpora": corpora}


LABELS = ["dog", "rain", "siren", "rooster"]


def metrics():
    return metrics_of(
        {
            "poor": corpus("generated", 20, 100, LABELS),
            "empty": corpus("generated", 0, 0, LABELS, rejected=7),
            "real": corpus("real", 57, 60, LABELS),
            "faithful": corpus("generated", 91, 100, LABELS, rejected=3),
        },
        LABELS,
    )


def history(epochs=5):
    return [
        {
            "epoch": epoch,
            "lr": 1e-3 / epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.8 / epoch,
            "validation_loss": 2.2 / epoch,
            "validation_accuracy": 0.95 - 0.8 / epoch,
            "seconds": 1.5,
        }
        for epoch in range(1, epochs + 1)
    ]


def example(**changes):
    fields = {
        "corpus": "faithful",
        "clip_id": "faithful/dog/0001.wav",
        "label": "dog",
        "prediction": "dog",
        "probability": 0.913,
        "log_mel": np.linspace(-8, 2, 64 * 50, dtype=np.float32).reshape(64, 50),
        "audio": FLAC,
        "seconds_per_frame": 0.02,
    }
    return Example(**fields | changes)


def page(**changes):
    """The parsed page of a small full report, parts of it changed."""
    parts = {
        "metrics": metrics(),
        "history": history(),
        "examples": [example(), example(corpus="real", prediction="rain")],
        "rejects": [{"corpus": "faithful", "clip_id": "a.wav", "label": "dog", "reason": "silent"}],
        "settings_yaml": "name: demo\n",
    }
    return Tree(render(**parts | changes)).root


def row_of(tree, name):
    return next(row for row in tree.all("tr") if row.attributes.get("data-corpus") == name)


def test_page_loads_nothing_from_outside():
    """The page has no script and no link, and every source is inside it."""
    tree = page()

    assert_harmless(tree)
    styles = [style.text for style in tree.all("style")]
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    assert len(list(tree.all("img"))) == 3  # two spectrograms and the colour scale


def test_page_forbids_loading_by_its_policy():
    """A browser is told to load nothing, should a hole be left in the escaping."""
    policies = [
        meta.attributes["content"]
        for meta in page().all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]

    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "script-src" not in policies[0]


@pytest.mark.parametrize(
    "evil", [SCRIPT, BREAKOUT, "a' onload='x", "</style>", "{{ 7 * 7 }}", "&lt;"]
)
def test_text_from_outside_does_nothing(evil):
    """A label, clip id, corpus, reason or setting that looks like markup is shown as it is."""
    labels = [evil, "rain", "siren", "rooster"]
    tree = page(
        metrics=metrics_of(
            {"real": corpus("real", 9, 12, labels), evil: corpus("generated", 7, 12, labels)},
            labels,
        )
        | {"name": evil},
        examples=[example(corpus=evil, clip_id=evil, label=evil, prediction=evil)],
        rejects=[{"corpus": evil, "clip_id": evil, "label": evil, "reason": evil}],
        settings_yaml=evil,
    )

    assert_harmless(tree)
    assert tree.one("h1").text == evil
    assert tree.one("title").text.startswith(evil)
    assert tree.one("pre").text == evil
    card = tree.one("li", class_="card")
    assert [cell.text for cell in card.all("dd")] == [evil, evil, "91.3%"]
    assert card.one("p", class_="clip").text == evil
    assert card.one("audio").attributes["aria-label"] == evil
    assert evil in card.one("img").attributes["alt"]
    assert [cell.text for cell in tree.one("table", class_="clips").one("tbody").all("td")] == [
        evil
    ] * 3
    assert any(evil in cell.attributes.get("title", "") for cell in tree.all("td", class_="hit"))
    assert row_of(tree, evil).one("td", class_="clips").text == "12"


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_label_leaves_the_page_whole(label):
    """Whatever the label, the page has the same elements as with a plain one."""

    def tags(label):
        labels = [label, "-", "--"]
        tree = page(
            metrics=metrics_of({"real": corpus("real", 5, 6, labels)}, labels),
            examples=[example(label=label, prediction=label, clip_id=label)],
        )
        return [element.tag for element in tree.all()]

    assert tags("plain") == tags(label if label not in {"-", "--"} else "other")


def test_table_shows_the_numbers_of_the_metrics():
    """Clips, rejected, accuracy, interval, top 3 and share of the judge are those given."""
    given_metrics = metrics()
    tree = page(metrics=given_metrics)
    own = given_metrics["corpora"]["real"]["accuracy"]["value"]

    for name in ["real", "faithful", "poor"]:
        numbers = given_metrics["corpora"][name]
        row = row_of(tree, name)
        accuracy = numbers["accuracy"]

        assert row.one("td", class_="clips").text == str(numbers["clips"])
        assert (
            row.one("td", class_="rejected").text == f"{numbers['rejected']} of {numbers['found']}"
        )
        assert row.one("span", class_="value").text == f"{accuracy['value']:.1%}"
        assert row.one("td", class_="figure").one("small").text == (
            f"{100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f}%"
        )
        assert row.one("td", class_="top-3").text == f"{numbers['top_3']['value']:.1%}"
        assert row.one("td", class_="share").text == f"{accuracy['value'] / own:.1%}"
        drawn = row.one("div", class_="bar").attributes["style"]
        assert drawn == "--value:{value};--low:{low};--high:{high}".format(**accuracy)


def test_table_has_real_first_then_the_best_generator():
    """The judge's own score leads, then accuracy falls, and what has none comes last."""
    rows = [row.attributes.get("data-corpus") for row in page().all("tr")]

    assert [name for name in rows if name] == ["real", "faithful", "poor", "empty"]


def test_reading_follows_from_the_intervals():
    """Intervals that touch are said to, though the accuracy itself lies below the judge's."""
    tree = page(
        metrics=metrics_of(
            {
                "real": corpus("real", 80, 100, LABELS),
                "overlapping": corpus("generated", 66, 100, LABELS),
                "below": corpus("generated", 30, 100, LABELS),
                "above": corpus("generated", 400, 400, LABELS),
                "unscored": corpus("generated", 0, 0, LABELS),
            },
            LABELS,
        )
    )

    def reading(name):
        return row_of(tree, name).one("td", class_="reading").text

    assert reading("real") == "The judge's own score: the ceiling."
    assert reading("overlapping").startswith("Not told apart from real by this judge")
    assert reading("below").startswith("Below the judge's own score")
    assert reading("above").startswith("Above the judge's own score")
    assert reading("unscored") == "No clip could be scored."


def test_lede_names_the_best_generator_and_the_ceiling():
    """The first sentence holds the best generator's accuracy and the judge's own."""
    lede = page().one("p", class_="lede").text

    assert lede.startswith("The judge, a classifier trained on real sounds, recognised 91.0% of")
    assert "faithful" in lede
    assert "95.0% of held-out real sounds" in lede


def test_accuracy_per_class_shows_every_class_and_corpus():
    """A row a class, a column a corpus, in the order of the table of corpora."""
    given_metrics = metrics()
    table = page(metrics=given_metrics).one("table", class_="classes")

    assert [cell.text for cell in table.one("thead").all("th")] == [
        "Class", "real", "faithful", "poor", "empty",
    ]  # fmt: skip
    rows = list(table.one("tbody").all("tr"))
    assert [row.one("th").text for row in rows] == LABELS
    for row in rows:
        entry = given_metrics["corpora"]["faithful"]["per_class"][row.one("th").text]
        cells = [cell.text for cell in row.all("td")]
        assert cells[1] == f"{entry['accuracy']['value']:.0%} of {entry['clips']}"
        assert cells[3] == "–"


@pytest.mark.parametrize("classes", [4, 50])
def test_confusion_matrices_hold_the_counts(classes):
    """Each cell is the count given, nought left blank; many classes are folded after the first."""
    labels = [f"class {index}" for index in range(classes)]
    corpora = {
        "real": corpus("real", 90, 100, labels),
        "faithful": corpus("generated", 60, 100, labels),
    }
    section = page(metrics=metrics_of(corpora, labels)).one("section", id="confusions")

    tables = list(section.all("table", class_="matrix"))
    assert len(tables) == 2
    for table, numbers in zip(tables, corpora.values(), strict=True):
        rows = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
        assert [[int(count or 0) for count in row] for row in rows] == numbers["confusion"]
        assert [cell.text for cell in table.one("thead").all("th")][1:] == labels
    assert len(list(section.all("details"))) == (0 if classes == 4 else 1)


def test_confusion_rows_follow_the_labels_of_the_judge():
    """A metrics.json with sorted keys names the rows of the matrix no differently."""
    given_metrics = metrics()
    for numbers in given_metrics["corpora"].values():
        numbers["per_class"] = dict(sorted(numbers["per_class"].items()))

    table = page(metrics=given_metrics).one("table", class_="matrix")

    assert [row.one("th").text for row in table.one("tbody").all("tr")] == LABELS


def test_each_example_has_its_card():
    """One picture and one player an example, and right or wrong said in words."""
    tree = page(examples=[example(), example(prediction="rain"), example(corpus="real")])
    cards = list(tree.all("li", class_="card"))

    assert len(list(tree.all("audio"))) == len(cards) == 3
    assert [card.one("p", class_="verdict").text for card in cards] == [
        "✓right",
        "✓right",
        "✕wrong",
    ]
    assert [card.one("dt").text for card in cards] == ["labelled", "asked for", "asked for"]
    assert [cell.text for cell in cards[2].all("dd")] == ["dog", "rain", "91.3%"]
    for audio in tree.all("audio"):
        assert "controls" in audio.attributes
        assert audio.attributes["preload"] == "none"
        content = audio.attributes["src"].removeprefix("data:audio/flac;base64,")
        assert base64.b64decode(content) == FLAC


def test_rejects_are_counted_and_the_first_hundred_listed():
    """Counts cover all rejects; 100 rows are listed and the rest is said to be elsewhere."""
    rows = [
        {
            "corpus": "faithful" if index % 3 else "poor",
            "clip_id": f"{index}.wav",
            "label": "dog",
            "reason": "silent" if index % 2 else "unreadable",
        }
        for index in range(1234)
    ]
    section = page(rejects=rows).one("section", id="rejects")

    counted = [
        [cell.text for cell in [row.one("th"), *row.all("td")]]
        for row in section.one("table", class_="reasons").one("tbody").all("tr")
    ]
    assert sum(int(count) for _, _, count in counted) == 1234
    assert ["poor", "unreadable", "206"] in counted
    listed = list(section.one("table", class_="clips").one("tbody").all("tr"))
    assert [row.one("td").text for row in listed] == [f"{index}.wav" for index in range(100)]
    assert "1134 more are not shown; rejects.parquet holds all 1234." in section.text


def test_page_without_generated_corpora():
    """A judge alone is reported with its own score."""
    tree = page(metrics=metrics_of({"real": corpus("real", 19, 20, LABELS)}, LABELS))

    assert "recognised 95.0% of held-out real sounds" in tree.one("p", class_="lede").text
    assert len(list(tree.all("table", class_="matrix"))) == 1


def test_page_of_nothing():
    """No scored clip, no history, no example and no reject still make a whole page."""
    tree = page(
        metrics=metrics_of(
            {"real": corpus("real", 0, 0, LABELS), "new": corpus("generated", 0, 0, LABELS)}, LABELS
        ),
        history=[],
        examples=[],
        rejects=[],
        settings_yaml="",
    )

    assert "has scored no clip" in tree.one("p", class_="lede").text
    assert row_of(tree, "new").one("span", class_="value").text == "–"
    assert row_of(tree, "new").one("td", class_="share").text == "–"
    assert not list(tree.all("svg"))
    assert not list(tree.all("audio"))
    assert "No clip was rejected." in tree.one("section", id="rejects").text


def test_page_without_a_real_corpus():
    """Without a real corpus there is no ceiling, and the table says so."""
    tree = page(metrics=metrics_of({"new": corpus("generated", 3, 4, LABELS)}, LABELS))

    assert row_of(tree, "new").one("td", class_="share").text == "–"
    assert (
        row_of(tree, "new").one("td", class_="reading").text == "No real score to read it against."
    )


def test_a_missing_number_is_an_error():
    """A corpus without its rejected count is refused instead of shown with a gap."""
    given_metrics = metrics()
    del given_metrics["corpora"]["poor"]["rejected"]

    with pytest.raises(UndefinedError, match="rejected"):
        page(metrics=given_metrics)


def test_same_input_gives_the_same_page():
    """Nothing in the page depends on the clock or on chance."""
    arguments = (metrics(), history(), [example()], [], "name: demo\n")

    assert render(*arguments) == render(*arguments)


def test_spectrogram_is_a_pixel_a_band_and_frame_with_low_bands_below():
    """A loud lowest band is a bright bottom row of the picture."""
    log_mel = np.full((64, 50), -8, dtype=np.float32)
    log_mel[0] = 2

    uri = pictures.spectrogram(log_mel, -8, 2)
    picture = imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))

    assert picture.shape[:2] == (64, 50)
    assert picture[-1, :, :3].min() > 0.7
    assert picture[:-1, :, :3].max() < 0.05


def test_long_spectrogram_keeps_its_clicks():
    """A single loud frame among ten thousand is still bright in the narrowed picture."""
    log_mel = np.zeros((8, 10_000), dtype=np.float32)
    log_mel[:, 4321] = 1

    uri = pictures.spectrogram(log_mel, 0, 1)
    picture = imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))

    assert picture.shape[:2] == (8, pictures.MAX_COLUMNS)
    assert (picture[0, :, 0] > 0.9).sum() == 1


@pytest.mark.parametrize("shape", [(64,), (64, 0), (0, 10)])
def test_spectrogram_refuses_what_is_none(shape):
    """An empty or flat array is refused with its shape."""
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        pictures.spectrogram(np.zeros(shape, dtype=np.float32), 0, 1)


def test_colour_range_leaves_digital_silence_out():
    """Padding at the floor does not darken the sounds, and no sounds give a usable range."""
    sound = np.linspace(-3, 3, 1000, dtype=np.float32)[None, :]
    padded = np.concatenate([np.full((1, 9000), -11.5, dtype=np.float32), sound], axis=1)

    low, high = pictures.colour_range([padded])

    assert -3 <= low < -2.8
    assert 2.9 < high <= 3
    assert pictures.colour_range([]) == (0.0, 1.0)
    assert pictures.colour_range([np.zeros((4, 4), dtype=np.float32)]) == (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e4))
def test_ticks_are_even_and_few(low, span):
    """Ticks lie on the axis, evenly, and are neither crowded nor missing."""
    places = pictures.ticks(low, low + span)
    steps = np.diff(places)

    assert 2 <= len(places) <= 6
    assert min(places) >= low - span * 1e-3
    assert max(places) <= low + span * 1.001
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-2)


def test_learning_curves_mark_the_kept_epoch():
    """Three drawings with named axes, and the kept epoch written into each."""
    svgs = list(page().one("div", class_="curves").all("svg"))

    assert len(svgs) == 3
    for svg, quantity in zip(svgs, ["loss", "accuracy", "learning rate"], strict=True):
        words = [text.text for text in svg.all("text")]
        assert {"epoch", quantity, "epoch 3 kept"} <= set(words)
        assert len(list(svg.all("line", class_="chosen"))) == 1
    assert [len(list(svg.all("polyline"))) for svg in svgs] == [2, 2, 1]


def test_learning_curves_stay_inside_their_drawing():
    """Every point lies inside the axes, the lowest loss lowest."""
    loss = pictures.learning_curves(history(9), 3)[0]
    points = re.findall(r'points="([^"]+)"', loss)[0].split()
    places = [tuple(map(float, point.split(","))) for point in points]

    assert len(places) == 9
    assert all(pictures.LEFT <= x <= pictures.WIDTH - pictures.RIGHT for x, _ in places)
    assert all(pictures.TOP <= y <= pictures.HEIGHT - pictures.BOTTOM for _, y in places)
    assert [y for _, y in places] == sorted(y for _, y in places)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_learning_curves_leave_out_what_is_no_number(value):
    """A loss that blew up or was not measured leaves a gap and no nan in the drawing."""
    rows = history(4)
    rows[1]["train_loss"] = value

    loss = pictures.learning_curves(rows, 3)[0]

    assert "nan" not in loss
    assert "inf" not in loss
    assert len(re.findall(r'points="([^"]+)"', loss)[0].split()) == 3


def test_learning_curves_of_one_epoch():
    """A single epoch is drawn as a dot."""
    assert 'class="dot dot-0"' in pictures.learning_curves(history(1), 1)[0]
    assert pictures.learning_curves([], 1) == []
