import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from matplotlib.image import imread

from raysound.metrics.declarations import EMBEDDING_METRICS
from raysound.metrics.intervals import difference, proportion_estimate
from raysound.report import charts, maps, pictures
from raysound.report.copies import copy_lines, pairs_to_show
from raysound.report.embeddings import embedding_lines
from raysound.report.formatting import number
from raysound.report.maps import MapPoint
from raysound.report.page import Rejects, render
from raysound.report.parts import kind_of
from tests.html_tree import Tree, assert_harmless
from tests.report_sample import (
    FLAC,
    LABELS,
    cells_of,
    copies_of,
    corpus,
    example,
    history,
    metrics,
    metrics_of,
    numbers,
    pair,
    points_of,
    rejects_of,
    shown_pair,
)
from tests.report_sample import page as html

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = '"><img src=x onerror=alert(1)>'


def page(**changes):
    """The parsed page of a small complete report with some arguments changed."""
    return Tree(html(**changes)).root


def row_of(tree, name):
    return next(row for row in tree.all("tr") if row.attributes.get("data-corpus") == name)


def test_page_loads_nothing_from_outside():
    """It has no external link, script or source."""
    tree = page()

    assert_harmless(tree)
    styles = [style.text for style in tree.all("style")]
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    assert len(list(tree.all("img"))) == 3  # two spectrograms and the colour scale


def test_page_forbids_loading_by_its_policy():
    """The policy is a second protection if escaping fails."""
    tree = page()
    policies = [
        meta.attributes["content"]
        for meta in tree.all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]

    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    (script,) = [each for each in tree.all("script") if "type" not in each.attributes]
    digest = hashlib.sha256("".join(script.children).encode()).digest()
    allowed = re.findall("script-src ([^;]*)", policies[0])
    assert allowed == [f"'sha256-{base64.b64encode(digest).decode()}'"]


@pytest.mark.parametrize(
    "evil", [SCRIPT, BREAKOUT, "a' onload='x", "</style>", "{{ 7 * 7 }}", "&lt;"]
)
def test_text_from_outside_is_escaped(evil):
    """Labels, clip ids, corpora, reasons and settings that look like markup are shown as text."""
    labels = [evil, "rain", "siren", "rooster"]
    tree = page(
        metrics=metrics_of(
            {"real": corpus("real", 9, 12, labels), evil: corpus("generated", 7, 12, labels)},
            labels,
        )
        | {"name": evil},
        examples=[
            example(
                corpus=evil, clip_id=evil, label=evil, prediction=evil, nearest_train_clip_id=evil
            )
        ],
        rejects=rejects_of({"corpus": evil, "clip_id": evil, "label": evil, "reason": evil}),
        settings_yaml=evil,
    )

    assert_harmless(tree)
    assert tree.one("h1").text == evil
    assert tree.one("title").text.startswith(evil)
    assert tree.one("pre").text == evil
    card = tree.one("li", class_="card")
    assert [cell.text for cell in card.all("dd")] == [evil, evil, "91.3%"]
    assert card.one("p", class_="clip").text.startswith(evil)
    assert card.one("audio").attributes["aria-label"] == evil
    assert evil in card.one("img").attributes["alt"]
    assert [cell.text for cell in tree.one("table", class_="clips").one("tbody").all("td")] == [
        evil
    ] * 3
    assert any(evil in cell.attributes.get("title", "") for cell in tree.all("td", class_="hit"))
    assert row_of(tree, evil).one("td", class_="clips").children[0] == "12"
    assert any(evil in title.text for title in tree.one("svg", class_="map").all("title"))
    assert json.loads(tree.one("script", id="data").children[0])["labels"][0] == evil


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_labels_do_not_change_the_structure_of_the_page(label):
    """With any label, the page has the same elements as with a plain label."""

    def tags(label):
        labels = [label, "-", "--"]
        tree = page(
            metrics=metrics_of({"real": corpus("real", 5, 6, labels)}, labels),
            examples=[example(label=label, prediction=label, clip_id=label)],
        )
        return [element.tag for element in tree.all()]

    assert tags("plain") == tags(label if label not in {"-", "--"} else "other")


def test_table_shows_the_numbers_of_the_metrics():
    """Numbers of clips and rejects, and each metric with its interval, equal the input."""
    given_metrics = metrics()
    tree = page(metrics=given_metrics)

    for name in ["real", "faithful", "poor"]:
        numbers = given_metrics["corpora"][name]
        row = row_of(tree, name)
        assert row.one("td", class_="clips").text == (
            f"{numbers['clips']}{numbers['rejected']} rejected"
        )
        shown = {cell.attributes["data-metric"]: cell for cell in row.all("td", class_="measure")}
        assert list(shown) == [
            "accuracy", "mmd2_x100", "frechet_distance", "recall", "coverage", "authenticity",
        ]  # fmt: skip
        for metric, cell in shown.items():
            assert float(cell.attributes["data-value"]) == numbers[metric]["value"]
        accuracy = numbers["accuracy"]
        assert shown["accuracy"].one("span", class_="value").text == f"{accuracy['value']:.1%}"
        assert shown["accuracy"].one("small").text == (
            f"{accuracy['low']:.1%} to {accuracy['high']:.1%}"
        )
        mmd = numbers["mmd2_x100"]
        assert shown["mmd2_x100"].one("small").text == (
            f"{mmd['low']:.2f} to {mmd['high']:.2f}".replace("-", "−")
        )
        drawn = row.one("div", class_="bar").attributes["style"]
        assert drawn == "--value:{value};--low:{low};--high:{high}".format(**accuracy)


def test_every_metric_has_a_column_and_a_description():
    """The collapsed table has all metrics of corpora and anchors; the method describes each."""
    given_metrics = metrics()
    tree = page(metrics=given_metrics)
    table = tree.one("table", class_="every")

    rows = {row.one("th").text: row for row in table.one("tbody").all("tr")}
    assert list(rows) == ["real", "faithful", "poor", "empty", "training copy", "noise"]
    keys = [cell.attributes["data-metric"] for cell in rows["real"].all("td")]
    measures = {
        key for key, value in given_metrics["corpora"]["real"].items()
        if isinstance(value, dict) and "value" in value
    }  # fmt: skip
    assert set(keys) == measures
    assert len(list(tree.one("dl", class_="meaning").all("dt"))) == len(keys)


def test_missing_values_have_a_reason():
    """There is a dash, and the reason is visible without a mouse."""
    row = row_of(page(), "empty")
    cells = {cell.attributes["data-metric"]: cell for cell in row.all("td", class_="measure")}

    assert cells["mmd2_x100"].one("span", class_="value").text == "–"
    assert cells["mmd2_x100"].attributes["data-value"] == ""
    assert cells["mmd2_x100"].one("small", class_="why").text == "0 clips: MMD needs at least 2"


def test_anchors_show_their_checks():
    """Passed checks are marked; an anchor names the metrics that are not worse than real."""
    given_metrics = metrics()
    tree = page(metrics=given_metrics)

    noise, copy = (
        next(row for row in tree.all("tr") if row.attributes.get("data-anchor") == name)
        for name in ("noise", "training_copy")
    )
    marks = {
        cell.attributes["data-metric"]: [each.text for each in cell.all("b", class_="kept")]
        for cell in noise.all("td", class_="measure")
    }
    assert marks["mmd2_x100"] == ["✓ must be above"]
    assert marks["recall"] == []
    assert not list(tree.all("b", class_="broken"))
    assert not list(tree.all("div", class_="warning"))
    assert noise.one("small", class_="not_worse_than_real").text == "not worse: Recall"
    assert "Accuracy" in copy.one("small", class_="not_worse_than_real").text


def test_failed_checks_give_a_warning_at_the_top():
    """The warning is before all metrics, and the check is marked as failed."""
    given_metrics = metrics()
    check = next(row for row in given_metrics["sanity"] if row["metric"] == "coverage")
    check |= {"passed": False, "value": 0.75, "bound": 0.5}
    tree = page(metrics=given_metrics)

    warning = tree.one("header").one("div", class_="warning")
    assert warning.attributes["role"] == "alert"
    assert "The classifier can't be trusted here." in warning.text
    assert [each.text for each in warning.all("li")] == [
        "coverage of noise is 0.75; it must be below that of real, 0.5"
    ]
    broken = tree.one("section", id="anchors").one("b", class_="broken")
    assert broken.text == "✕ must be below"


def test_mismatches_are_shown_at_the_top():
    """The text is that of metrics.json."""
    row = {
        "corpus": "poor",
        "kind": "level",
        "real": -40,
        "generated": -50,
        "text": "poor is quiet",
    }
    tree = page(metrics=metrics() | {"mismatch": [row]})

    box = tree.one("header").one("div", class_="mismatch")
    assert [each.text for each in box.all("li")] == ["poor is quiet."]


def test_ranking_names_those_that_do_not_differ_significantly():
    """In both directions; a single generator has no ranking."""
    corpora = {
        "real": corpus("real", 57, 60),
        "first": corpus("generated", 90, 100),
        "second": corpus("generated", 88, 100),
        "third": corpus("generated", 20, 100),
    }
    section = page(metrics=metrics_of(corpora)).one("section", id="ranking")

    assert [each.text for each in section.one("ol").all("li")] == [
        "first not significantly different from second",
        "second not significantly different from first",
        "third significantly different from every other",
    ]
    assert "Holm's correction for all pairs of this list" in section.one("p", class_="intro").text
    alone = {name: corpora[name] for name in ("real", "first")}
    assert not list(page(metrics=metrics_of(alone)).all("section", id="ranking"))


def test_classification_accuracy_scores_have_a_section():
    """Without scores it names the command; without generated corpora there is no section."""
    share = {"value": 0.8, "low": 0.7, "high": 0.9}

    def row(lost, p, missing=()):
        return {
            "train_clips": 340, "test_clips": 180, "missing_classes": list(missing),
            "clips_by_class": {"dog": {"train": 34, "validation": 6}, "rain": {}},
            "real_to_real": {"accuracy": share}, "generated_to_real": {"accuracy": share},
            "lost": {"value": lost, "low": lost - 0.05, "high": lost + 0.05},
            "p_adjusted": p, "significant": p < 0.05,
        }  # fmt: skip

    rows = {"faithful": row(0.01, 0.9), "poor": row(0.2, 1e-5, ["siren"]), "odd": row(-0.2, 0.01)}
    scores = {"test_clips": 200, "generated": rows}

    section = page(metrics=metrics() | {"cas": scores}).one("section", id="cas")

    cells = [[cell.text for cell in line.all("td")] for line in section.one("tbody").all("tr")]
    assert cells[0][0] == "340"
    assert cells[0][3].split() == ["1.0%", "-4.0%", "to", "6.0%"]
    assert [line[4] for line in cells] == ["0.900", "< 0.001", "0.010"]
    readings = [item.text for item in section.one("ul").all("li")]
    assert "faithful does not differ significantly from as many real clips" in readings[0]
    assert "poor gives a significantly lower accuracy than as many real" in readings[1]
    assert (
        "no training clip of siren: the other 2 classes are compared, on 180 of 200"
        in (readings[1])
    )
    assert "odd gives a significantly higher accuracy" in readings[2]
    assert "correction for 3 generators" in section.text
    assert "python jobs/cas.py CONFIG" in page().one("section", id="cas").text
    alone = page(metrics=metrics_of({"real": corpus("real", 19, 20, LABELS)}, LABELS))
    assert not list(alone.all("section", id="cas"))


def test_other_embeddings_have_a_table_each():
    """It has a column per metric, a row per corpus and anchor, and reasons for missing values."""
    assert 'id="embeddings"' not in html()
    keys = {metric.key for metric in EMBEDDING_METRICS}
    shown = metrics()
    rows = {
        name: {key: row[key] for key in ("clips", "compared", *keys)}
        for name, row in (shown["corpora"] | shown["anchors"]).items()
    }
    embedding = {
        "size": 6, "source": "a<b.onnx, 8000 Hz, 1 s", "digest": "x",
        "corpora": {name: rows[name] for name in shown["corpora"]},
        "anchors": {name: rows[name] for name in shown["anchors"]},
    }  # fmt: skip
    shown["embeddings"] = {"a": embedding, "b": embedding}

    text = html(metrics=shown)

    assert text.count('<table class="wide every sortable" data-embedding=') == 2
    assert "a&lt;b.onnx, 8000 Hz, 1 s; 6 dimensions" in text
    table = text[text.index('data-embedding="b"') :]
    table = table[: table.index("</table>")]
    assert table.count('<td class="measure"') == len(rows) * len(EMBEDDING_METRICS)
    assert table.index(">real<") < table.index(">faithful<") < table.index(">training copy<")
    assert f'title="{rows["empty"]["mmd2_x100"]["why"]}">–</td>' in table
    lines = list(embedding_lines(shown["embeddings"]))
    assert len(lines) == 1 + 2 * len(rows)
    assert {len(line) for line in lines} == {len(lines[0])}
    assert list(embedding_lines({})) == []


@pytest.mark.parametrize("evil", [SCRIPT, BREAKOUT])
def test_names_of_copies_are_escaped(evil):
    corpora = {"real": corpus("real", 9, 12), evil: corpus("generated", 7, 12)}
    copies = copies_of(corpora, real_pairs=[pair(evil, evil)])
    copies["corpora"][evil]["pairs"] = [pair(evil, evil)]
    copies["threshold"] = {"value": None, "clips": 0, "why": evil}
    given = metrics_of(corpora) | {"copies": copies}
    tree = page(metrics=given, pairs=[shown_pair(evil, 0), shown_pair(None, 0)])

    assert_harmless(tree)
    section = tree.one("section", id="copies")
    assert section.one("p", class_="intro").text.endswith(f"called a copy: {evil}.")
    for card in section.all("li", class_="pair"):
        assert [clip.text for clip in card.all("p", class_="clip")] == [evil, evil]
        assert [audio.attributes["aria-label"] for audio in card.all("audio")] == [evil, evil]


def with_copies(**changes):
    """Metrics with copies, changed by `changes`."""
    given = metrics()
    return given | {"copies": copies_of(given["corpora"], **changes)}


def test_copies_have_a_section_with_shares_and_pairs_side_by_side():
    """Each shown pair has two pictures and two players; all pairs are in a list."""
    assert 'id="copies"' not in html()
    pairs = [shown_pair("faithful", 0), shown_pair("faithful", 2), shown_pair(None, 0)]
    given = with_copies()
    given["copies"]["corpora"]["faithful"]["share"] = proportion_estimate(30, 100)
    tree = page(metrics=given, pairs=pairs)

    assert_harmless(tree)
    section = tree.one("section", id="copies")
    intro = section.one("p", class_="intro").text
    assert "the most similar of 100 of 120 training clips" in intro
    assert "from a similarity of 0.880 on" in intro
    assert "probability of at most 1%: it is calibrated on 120 training clips" in intro
    rows = {row.attributes["data-copies"]: row for row in section.all("tr")
            if "data-copies" in row.attributes}  # fmt: skip
    assert list(rows) == ["real", "faithful", "poor", "empty"]
    values = {name: row.one("td", class_="measure") for name, row in rows.items()}
    assert values["poor"].one("span").text == "20.0%"
    assert values["poor"].one("small").text == "13.3% to 28.9%"
    assert values["empty"].one("span").text == "–"
    cards = list(section.all("li", class_="pair"))
    assert [len(list(card.all("img"))) for card in cards] == [2, 2, 2]
    assert [len(list(card.all("audio"))) for card in cards] == [2, 2, 2]
    words = [card.one("p", class_="decision").text for card in cards]
    assert words == [
        "copy: similarity 0.950, 0.40 s later than in the training clip",
        "no copy: similarity 0.850, 0.20 s later than in the training clip",
        "similarity 0.970, at the same time",
    ]
    names = [clip.text for clip in cards[0].all("p", class_="clip")]
    assert names == ["faithful/0.wav", "real/0.wav"]
    summaries = [part.one("summary").text for part in section.all("details")]
    assert [text.split()[0] for text in summaries] == ["faithful", "poor", "Training"]
    lists = list(section.all("table", class_="rejects"))
    assert [len(list(one.one("tbody").all("tr"))) for one in lists] == [10, 10, 2]
    cells = [cell.text for cell in list(lists[0].one("tbody").all("tr"))[5].all("td")]
    assert cells == ["real/5.wav", "0.700", "−0.10", "no"]


def test_without_a_threshold_nothing_is_called_a_copy():
    why = "9 real clips: a threshold at 1.00% needs at least 99"
    none = {"value": None, "clips": 9, "why": why}
    tree = page(metrics=with_copies(threshold=none), pairs=[shown_pair("poor", 1)])

    section = tree.one("section", id="copies")
    intro = section.one("p", class_="intro").text
    assert f"There is no threshold, so no clip is called a copy: {why}." in intro
    words = section.one("li", class_="pair").one("p", class_="decision").text
    assert words == "similarity 0.900, 0.30 s later than in the training clip"
    assert [cell.text for cell in section.one("table", class_="rejects").all("th")][-2:] != ["Copy"]
    lines = list(copy_lines(with_copies(threshold=none)["copies"]))
    assert lines[:2] == [
        "copies: no threshold; 100 of 120 training clips searched",
        f"note: copies have no threshold: {why}",
    ]


def test_pairs_and_examples_have_the_same_colour_scale():
    """A pair that is louder than all examples extends the scale."""
    narrow, wide = (
        html(metrics=with_copies(), pairs=[shown_pair("poor", 0, level)]) for level in (0, 20)
    )
    high = re.compile(r'alt="from dark to bright"> (\S+)</span>')
    assert float(high.search(wide)[1]) - float(high.search(narrow)[1]) == pytest.approx(20, abs=0.2)


def test_copies_are_lines_of_text():
    lines = list(copy_lines(with_copies()["copies"]))
    assert lines[0] == ("copies: from a similarity of 0.880 on; 100 of 120 training clips searched")
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert list(rows) == ["poor", "empty", "real", "faithful"]
    assert rows["poor"][1:] == [
        "100", "20.0%", "13.3%", "–", "28.9%", "0.950", "poor/0.wav,", "real/0.wav",
    ]  # fmt: skip
    assert rows["empty"] == ["empty", "0", "–", "–"]
    assert list(copy_lines(None)) == []


def test_pairs_alternate_between_corpora():
    """The most similar pairs of each corpus and of the real clips come first."""
    copies = with_copies()["copies"]
    copies["corpora"]["poor"]["pairs"] = [pair("p.wav", "q.wav")]
    shown = [(name, rank) for name, rank, _ in pairs_to_show(copies, 100)]
    assert shown == [
        ("poor", 0), ("faithful", 0), (None, 0), ("faithful", 1), (None, 1), ("faithful", 2),
    ]  # fmt: skip
    assert [(name, rank) for name, rank, _ in pairs_to_show(copies, 4)] == shown[:4]
    assert pairs_to_show(copies, 0) == []


def test_the_data_of_the_script_has_the_clips_of_each_cell():
    """It has the count, then names and probabilities."""
    given_metrics = metrics()
    tree = page(metrics=given_metrics)
    data = json.loads(tree.one("script", id="data").children[0])

    table = next(
        each for each in tree.all("table", class_="matrix")
        if each.attributes["data-name"] == "faithful"
    )  # fmt: skip
    cells = data["cells"][int(table.attributes["data-corpus"])]
    counts = {cell.attributes["data-cell"]: int(cell.text) for cell in table.all("td") if cell.text}
    assert {cell: found[0] for cell, found in cells.items()} == counts
    count, *clips = cells["0,0"]
    assert len(clips) == min(20, count)
    assert clips[0] == ["faithful/0/0.wav", 0.9]


def test_the_map_has_a_mark_per_clip():
    """Real clips are hollow, and each corpus has a check box."""
    given_metrics = metrics()
    points = points_of(given_metrics["corpora"])
    tree = page(metrics=given_metrics, points=points)
    drawn = tree.one("svg", class_="map")

    groups = {each.attributes["data-corpus"]: each for each in drawn.all("g")}
    assert [len(list(group.all("path"))) for group in groups.values()] == [12, 12, 12, 0]
    assert "hollow" in groups["0"].attributes["class"]
    boxes = [box.attributes["data-map"] for box in tree.all("input")]
    assert boxes == ["0", "1", "2"]
    width, height = (float(part) for part in drawn.attributes["viewbox"].split()[2:])
    for path in drawn.all("path"):
        x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", path.attributes["d"]).groups())
        assert 0 < x < width
        assert 0 < y < height
    assert not list(page(points=[]).all("svg", class_="map"))


def test_table_has_real_first_then_the_best_generator():
    """Real clips come first, then generators by decreasing accuracy, then those without one."""
    rows = [row.attributes.get("data-corpus") for row in page().all("tr")]

    assert [name for name in rows if name] == ["real", "faithful", "poor", "empty"]


def readings(tree):
    return tree.one("ul", class_="readings").all("li")


def test_reading_follows_from_the_adjusted_p_value_of_the_difference():
    """66 and 80 of 100 differ as a single comparison, but not as one of 25 comparisons."""
    tree = page(
        metrics=metrics_of(
            {
                "real": corpus("real", 80, 100, LABELS),
                "close": corpus("generated", 70, 100, LABELS),
                "unadjusted": corpus("generated", 66, 100, LABELS),
                "below": corpus("generated", 30, 100, LABELS),
                "above": corpus("generated", 400, 400, LABELS),
                "unscored": corpus("generated", 0, 0, LABELS),
            },
            LABELS,
        )
    )

    read = {each.attributes["data-reading"]: each.text for each in readings(tree)}
    assert list(read) == ["above", "close", "unadjusted", "below", "unscored"]
    assert "does not differ significantly from real sounds" in read["close"]
    assert difference(proportion_estimate(66, 100), proportion_estimate(80, 100))["significant"]
    assert "does not differ significantly from real sounds" in read["unadjusted"]
    assert "a significantly lower accuracy than real sounds (37.5% of" in read["below"]
    assert "a significantly higher accuracy than real sounds" in read["above"]
    assert "has no scored clip" in read["unscored"]


def test_lede_names_the_best_generator_and_the_ceiling():
    """The first sentence has the accuracy of the best generator and that of real clips."""
    lede = page().one("p", class_="lede").text

    assert lede.startswith("The classifier, trained on real sounds, predicts the label of 91.0% of")
    assert "faithful" in lede
    assert "95.0% of held-out real clips" in lede


def test_a_collapsed_generator_with_the_best_accuracy_has_a_caveat():
    """The lede and the ranking name the metrics in which it is worse than real sounds."""
    real, collapsed = corpus("real", 95, 100), corpus("generated", 100, 100)
    places = 4 * np.eye(4, 6)[np.arange(100) % 4]
    collapsed |= numbers(100, 100, LABELS, places=places)
    tree = page(
        metrics=metrics_of(
            {"real": real, "collapsed": collapsed, "good": corpus("generated", 90, 100)}
        )
    )

    assert "Accuracy alone is not sufficient: by " in tree.one("p", class_="lede").text
    assert "collapsed is worse than real sounds." in tree.one("p", class_="lede").text
    ranked = [each.text for each in tree.one("section", id="ranking").one("ol").all("li")]
    assert ranked[0].startswith("collapsed significantly different from every other; worse")
    assert "Recall" in ranked[0]
    assert "worse" not in ranked[1]


def test_metrics_of_fewer_clips_have_a_note():
    """The corpus is not called worse in these metrics."""
    few = corpus("generated", 28, 30)
    tree = page(metrics=metrics_of({"real": corpus("real", 57, 60), "few": few}))

    cells = {
        cell.attributes["data-metric"]: cell.text
        for cell in row_of(tree, "few").all("td", class_="measure")
    }
    for metric in ("frechet_distance", "recall", "coverage"):
        assert cells[metric].endswith("of 30 clips, others 60"), cells[metric]
    assert "others" not in cells["mmd2_x100"]
    (reading,) = readings(tree)
    assert "Fréchet" not in reading.text


def test_each_of_200_classes_has_a_unique_mark():
    """A mark is a pair of one of eight colours and a shape."""
    points = [MapPoint("real", f"class {n}", n, n, f"{n}.wav") for n in range(200)]
    drawn = Tree(maps.embedding_map(points, [point.label for point in points], ["real"])).root

    marks = {
        (path.attributes["class"], re.sub(r"^M[\d.]+ [\d.]+", "", path.attributes["d"]))
        for path in drawn.all("path")
    }
    legend = {maps.legend_mark(number) for number in range(200)}

    assert len(marks) == len(legend) == 200
    assert {colour for colour, _ in marks} == {f"c{number}" for number in range(8)}


def test_the_method_names_the_metrics_that_depend_on_the_number_of_clips():
    """It names all declared metrics, and the number of clips that they are computed on."""
    text = page().one("section", id="method").text

    assert (
        "The values of Fréchet, Recall, Coverage, Macro F1, Calibration error, Inception score, "
        "Modified inception score, AM score and Effective classes depend on how many clips are "
        "compared, so they are computed on 60 clips of each corpus (as many as there are real test "
        "clips, at most 2,048)"
    ) in text


@pytest.mark.parametrize("value", [None, 0.5])
def test_a_skipped_check_is_listed_and_has_no_mark(value):
    """An undecided check, of a value without an interval, is not marked as failed either."""
    given_metrics = metrics()
    check = next(row for row in given_metrics["sanity"] if row["metric"] == "coverage")
    check |= {"passed": None, "why": "too few", "value": value}
    tree = page(metrics=given_metrics)

    section = tree.one("section", id="anchors")
    assert "Skipped checks: " in section.text
    assert "noise (coverage): too few" in section.text
    assert not list(section.all("b", class_="broken"))
    assert not list(tree.all("div", class_="warning"))


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (3e-5, ".3g", "3e−05"), (1234567.0, ".3g", "1234567"), (-0.001, ".2f", "0.00"),
        (-0.0001, "percent", "0.0%"), (-1.5, ".2f", "−1.50"), (None, ".2f", "–"),
    ],
)  # fmt: skip
def test_numbers_are_formatted(value, form, text):
    assert number(value, form) == text


def test_accuracy_per_class_shows_every_class_and_corpus():
    """There is a row per class and a column per corpus, in the order of the corpora."""
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
        assert cells[1].startswith(f"{entry['accuracy']['value']:.0%} of {entry['clips']}MMD ")
        assert cells[3] == "–"


@pytest.mark.parametrize("classes", [4, 50])
def test_confusion_matrices_show_the_counts(classes):
    """Cells with 0 are blank; with many classes, all matrices but the first are collapsed."""
    labels = [f"class {index}" for index in range(classes)]
    corpora = {
        "real": corpus("real", 90, 100, labels),
        "faithful": corpus("generated", 60, 100, labels),
    }
    section = page(metrics=metrics_of(corpora, labels)).one("section", id="confusions")

    tables = list(section.all("table", class_="matrix"))
    assert len(tables) == 2
    for table, each in zip(tables, corpora.values(), strict=True):
        rows = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
        assert [[int(count or 0) for count in row] for row in rows] == each["confusion"]
        assert [cell.text for cell in table.one("thead").all("th")][1:] == labels
    assert len(list(section.all("details"))) == (0 if classes == 4 else 1)


def test_many_classes_have_a_list_instead_of_a_matrix():
    """Its size does not grow with the square of the classes; its cells list their clips."""
    labels = [f"class {number:03d}" for number in range(400)]
    given_metrics = metrics_of({"real": corpus("real", 500, 800, labels)}, labels)
    text = html(metrics=given_metrics, examples=[], points=[])
    tree = Tree(text).root

    (table,) = tree.all("table", class_="matrix")
    rows = list(table.one("tbody").all("tr"))
    assert len(rows) == 200
    cell = rows[0].one("td", class_="miss")
    row, column = map(int, cell.attributes["data-cell"].split(","))
    assert int(cell.text) == given_metrics["corpora"]["real"]["confusion"][row][column] > 0
    data = json.loads(tree.one("script", id="data").children[0])
    assert len(data["cells"][0]) == 200
    assert len(text) < 1_000_000


def test_confusion_rows_follow_the_labels_of_the_classifier():
    """The order of the keys in metrics.json does not matter."""
    given_metrics = metrics()
    for each in given_metrics["corpora"].values():
        each["per_class"] = dict(sorted(each["per_class"].items()))

    table = page(metrics=given_metrics).one("table", class_="matrix")

    assert [row.one("th").text for row in table.one("tbody").all("tr")] == LABELS


@pytest.mark.parametrize(("windows", "count"), [(1, 0), (3, 1)])
def test_an_example_of_several_windows_states_that_the_first_is_shown(windows, count):
    text = "First of 3 windows; the probabilities are means over all windows."
    shown = [
        part.text for part in page(examples=[example(windows=windows)]).all("p", class_="clip")
    ]

    assert shown.count(text) == count


def test_each_example_has_a_card():
    """A card has a picture, a player, and the verdict right or wrong."""
    tree = page(
        examples=[
            example(),
            example(prediction="rain", target_probability=0.04),
            example(corpus="real"),
        ]
    )
    cards = list(tree.all("li", class_="card"))

    assert len(list(tree.all("audio"))) == len(cards) == 3
    assert [card.one("p", class_="verdict").text for card in cards] == [
        "✓right",
        "✓right",
        "✕wrong",
    ]
    assert [card.one("dt").text for card in cards] == ["label"] * 3
    assert [cell.text for cell in cards[1].all("dd")] == ["dog", "dog", "91.3%"]
    assert [cell.text for cell in cards[2].all("dd")] == [
        "dog",
        "rain",
        "91.3%, 4.0% for the label",
    ]
    for audio in tree.all("audio"):
        assert "controls" in audio.attributes
        assert audio.attributes["preload"] == "none"
        content = audio.attributes["src"].removeprefix("data:audio/flac;base64,")
        assert base64.b64decode(content) == FLAC


def test_rejects_are_counted_and_the_first_hundred_listed():
    """The counts include all rejects; 100 rows are listed, and the file of the rest is named."""
    rows = [
        {
            "corpus": "faithful" if index % 3 else "poor",
            "clip_id": f"{index}.wav",
            "label": "dog",
            "reason": "silent" if index % 2 else "unreadable",
        }
        for index in range(1234)
    ]
    section = page(rejects=rejects_of(*rows)).one("section", id="rejects")

    counted = [
        [cell.text for cell in [row.one("th"), *row.all("td")]]
        for row in section.one("table", class_="reasons").one("tbody").all("tr")
    ]
    assert sum(int(count) for _, _, count in counted) == 1234
    assert ["poor", "unreadable", "206"] in counted
    listed = list(section.one("table", class_="clips").one("tbody").all("tr"))
    assert [row.one("td").text for row in listed] == [f"{index}.wav" for index in range(100)]
    assert "1134 more are not shown; rejects.parquet holds all 1234." in section.text


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("cut short: the header says 9 samples, 3 are there",
         "cut short: the header says … samples, … are there"),
        ("s3://x/b.tar ends before this clip does", "… ends before this clip does"),
        ("can't be read: [Errno 5] 'it is.wav'", "can't be read: [Errno …] …"),
        ("no such file", "no such file"),
    ],
)  # fmt: skip
def test_the_kind_of_a_reason_has_no_numbers_paths_and_quotes(reason, kind):
    assert kind_of(reason) == kind


def test_rare_kinds_of_rejects_share_a_row():
    """The number of rows is bounded, and the total count is unchanged."""
    counts = {("poor", f"reason {'x' * n}"): 1 + (n < 50) for n in range(400)}
    section = page(rejects=Rejects([], counts)).one("section", id="rejects")

    rows = list(section.one("table", class_="reasons").one("tbody").all("tr"))
    numbers = [int(row.one("td", class_="count").text) for row in rows]
    assert len(rows) == 101
    assert sum(numbers) == 450
    assert "450 more are not shown" in section.text


def test_page_without_generated_corpora():
    """The lede has the accuracy of the classifier."""
    tree = page(metrics=metrics_of({"real": corpus("real", 19, 20, LABELS)}, LABELS))

    assert "predicts the label of 95.0% of held-out real clips" in tree.one("p", class_="lede").text
    assert len(list(tree.all("table", class_="matrix"))) == 1


def test_page_without_clips():
    """A page without scored clips, history, examples and rejects is complete."""
    tree = page(
        metrics=metrics_of(
            {"real": corpus("real", 0, 0, LABELS), "new": corpus("generated", 0, 0, LABELS)}, LABELS
        ),
        history=[],
        examples=[],
        points=[],
        rejects=rejects_of(),
        settings_yaml="",
    )

    assert "has scored no clip" in tree.one("p", class_="lede").text
    assert row_of(tree, "new").one("span", class_="value").text == "–"
    assert not list(tree.all("svg", class_="plot"))
    assert not list(tree.all("svg", class_="map"))
    assert not list(tree.all("audio"))
    assert "No clip is rejected." in tree.one("section", id="rejects").text


def test_a_missing_number_is_an_error():
    """A corpus without its number of rejects raises an error."""
    given_metrics = metrics()
    del given_metrics["corpora"]["poor"]["rejected"]

    with pytest.raises(UndefinedError, match="rejected"):
        page(metrics=given_metrics)


def test_same_input_gives_the_same_page():
    """The page does not depend on time or chance."""
    given_metrics = metrics()
    cells, points = cells_of(given_metrics["corpora"]), points_of(given_metrics["corpora"])
    arguments = (given_metrics, history(), [example()], cells, points, rejects_of(), "")

    assert render(*arguments) == render(*arguments)


def test_spectrogram_has_a_pixel_per_band_and_frame():
    """A loud lowest band gives a bright bottom row of the picture."""
    log_mel = np.full((64, 50), -8, dtype=np.float32)
    log_mel[0] = 2

    uri = pictures.spectrogram(log_mel, -8, 2)
    picture = imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))

    assert picture.shape[:2] == (64, 50)
    assert picture[-1, :, :3].min() > 0.7
    assert picture[:-1, :, :3].max() < 0.05


def test_long_spectrogram_keeps_its_clicks():
    """A single loud frame of ten thousand is bright in the reduced picture."""
    log_mel = np.zeros((8, 10_000), dtype=np.float32)
    log_mel[:, 4321] = 1

    uri = pictures.spectrogram(log_mel, 0, 1)
    picture = imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))

    assert picture.shape[:2] == (8, pictures.MAX_COLUMNS)
    assert (picture[0, :, 0] > 0.9).sum() == 1


@pytest.mark.parametrize("shape", [(64,), (64, 0), (0, 10)])
def test_spectrogram_raises_on_invalid_shapes(shape):
    """The error names the shape of an empty or one-dimensional array."""
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        pictures.spectrogram(np.zeros(shape, dtype=np.float32), 0, 1)


def test_colour_range_leaves_digital_silence_out():
    """Padding does not change the range, and there is a valid range without sound."""
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
    """2 to 6 ticks are on the axis at equal distances."""
    places = pictures.ticks(low, low + span)
    steps = np.diff(places)

    assert 2 <= len(places) <= 6
    assert min(places) >= low - span * 1e-3
    assert max(places) <= low + span * 1.001
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-2)


def test_learning_curves_mark_the_selected_epoch():
    """Three charts have named axes and name the selected epoch."""
    svgs = list(page().one("div", class_="curves").all("svg"))

    assert len(svgs) == 3
    for svg, quantity in zip(svgs, ["loss", "accuracy", "learning rate"], strict=True):
        words = [text.text for text in svg.all("text")]
        assert {"epoch", quantity, "epoch 3 selected"} <= set(words)
        assert svg.attributes["aria-label"] == f"{quantity} over the epochs, epoch 3 selected"
    # The line of the epoch comes last.
    figures = charts.learning_curves(history(9), 3)
    assert [len(figure.axes[0].lines) for figure in figures] == [3, 3, 2]


def test_learning_curves_are_inside_their_axes():
    """All points are inside the axes, which start at 0."""
    axes = charts.learning_curves(history(9), 3)[0].axes[0]
    points = axes.lines[0].get_xydata()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()

    assert points.tolist() == [[row["epoch"], row["train_loss"]] for row in history(9)]
    assert left <= points[:, 0].min()
    assert points[:, 0].max() <= right
    assert bottom == 0
    assert points[:, 1].max() <= top


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_learning_curves_skip_missing_and_non_finite_values(value):
    """Other epochs are drawn."""
    rows = history(4)
    rows[1]["train_loss"] = value

    loss = charts.learning_curves(rows, 3)[0]

    assert loss.axes[0].lines[0].get_xdata().tolist() == [1, 3, 4]
    assert not re.search(r"[\s,\"](nan|inf)[\s,\"]", charts.svg(loss))


def test_learning_curves_of_one_epoch():
    """A single epoch is drawn as a dot."""
    assert charts.learning_curves(history(1), 1)[0].axes[0].lines[0].get_marker() == "o"
    assert charts.learning_curves([], 1) == []


def test_all_text_of_a_chart_has_one_size():
    for figure in charts.learning_curves(history(4), 3):
        svg = charts.svg(figure)
        assert set(re.findall(r"font(?:-size)?: ([\d.]+px)", svg)) == {"8.5px"}


def test_charts_take_their_colours_from_the_page_and_repeat_no_identifier():
    """They are bitwise reproducible, so that reports can be compared."""
    figures = charts.learning_curves(history(4), 3)
    drawn = [charts.svg(figure) for figure in figures]
    names = [name for svg in drawn for name in re.findall(r' id="([^"]*)"', svg)]

    assert drawn == [charts.svg(figure) for figure in charts.learning_curves(history(4), 3)]
    assert len(set(names)) == len(names)
    for svg in drawn:
        assert "var(--soft)" in svg
        assert "rgb(var(--blue))" in svg
        assert not re.search(r"#[0-9a-f]{6}", svg)
