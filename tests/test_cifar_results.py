"""The figures in the documents of examples/cifar100 are those of its records."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import compare
import paper
from comparing.paired import paired_difference, with_interval
from comparing.report import COMPARISON, summary
from comparing.study_report import STUDY

ROOT = Path(__file__).parents[1]
RESULTS = Path(compare.__file__).parent / "results"
PAGE = (RESULTS.parent / "RESULTS.md").read_text()
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
SHOWN = [name for name, record in RECORDS.items() if "accuracy" in record]


def quoted(*cells, page="README.md"):
    text = (RESULTS.parent / page).read_text()
    return f"| {' | '.join(cells)} |\n" in text


def tables(text):
    """Those of a Markdown text, as it has them."""
    return re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", SHOWN)
def test_the_results_have_the_tables_of_their_records(name):
    record = RECORDS[name]
    found = tables((STUDY if "factors" in record else COMPARISON).markdown(record, None))
    assert found
    assert {*found} <= {*tables(PAGE)}
    if "heading" in record:  # those of before 2026-11-30 have none
        assert " ".join(record["heading"].split()) in " ".join(PAGE.split())
    assert f"(results/{name}.json)" in PAGE


def test_every_picture_is_shown():
    shown = re.findall(r"\(results/(.+\.png)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in RESULTS.glob("*.png"))


def test_the_results_quote_the_published_transfer():
    published = {**paper.PUBLISHED["transfer_2025"]}
    assert quoted("method", *published.pop("datasets"), page="RESULTS.md")
    for method, figures in published.items():
        assert quoted(method, *map(str, figures), page="RESULTS.md")


def test_the_readme_quotes_the_speeds_of_its_records():
    speeds = RECORDS["speed-cpu-2-cores"]
    assert speeds["busy_cores"] < 0.1
    for row in speeds["rows"]:
        cells = [f"{1e3 * row['seconds']['median']:.0f}", f"{row['images_per_second']:.0f}"]
        if row["step"] == "no relational loss":
            cells += ["–", "–"]
        else:
            cells += [f"{1e3 * row['loss_seconds']:.1f}", f"{row['loss_share']:.1%}"]
        assert quoted(row["step"], *cells)
    shares = {row["step"]: f"{row['loss_share']:.1%}" for row in speeds["rows"]}
    published, ours = shares["published eager"], shares["rrd_kernels"]
    said = f"the published loss takes {published} of the time, this one {ours}]("
    assert said in (ROOT / "README.md").read_text()
    loaders = RECORDS["loaders-cpu-2-cores"]
    assert loaders["busy_cores"] < 0.1
    for row in loaders["rows"]:
        milliseconds = f"{1e3 * row['seconds']['median']:.2f}"
        assert quoted(row["loader"], milliseconds, f"{row['images_per_second']:.0f}")


def difference(record, method, other):
    """method − other with the same seed: its mean and interval, and both as the page has them."""
    found = paired_difference(record["accuracy"][method], record["accuracy"][other])
    return found, with_interval(found)


def test_what_the_results_say_of_fashion_mnist():
    """Below its table, and in README.md."""
    record = RECORDS["fashion-mnist"]
    mean = {row["method"]: row["mean"] for row in summary(record)}
    said = " ".join(PAGE.split())

    def above(method, other):
        """With each seed."""
        return all(np.greater(record["accuracy"][method], record["accuracy"][other]))

    assert next(iter(mean)) == "PKT"
    for method in ("RRD 2025", "RRD+KD 2025"):
        found, words = difference(record, "PKT", method)
        assert found["low"] < 0
        assert f"{words} over {method}" in said
        assert above(method, "KD")
        assert difference(record, method, "KD")[0]["low"] > 0
    assert f"RRD 2024, by {difference(record, 'RRD 2025', 'RRD 2024')[1]}" in said
    for method, other in (("RRD 2024", "KD"), ("CRD -b 0.02", "student")):
        found, _ = difference(record, method, other)
        assert found["low"] < 0 < found["high"]
    assert above("student", "CRD")
    assert above("student", "CRD+KD")
    words = difference(record, "RRD 2025 -b 3", "RRD 2025")[1]
    assert f"RRD's second is {words} above its first" in said
    seconds = record["seconds_per_epoch"]
    apart = np.median(seconds["RRD 2025"]) - np.median(seconds["RRD 2025 -b 3"])
    assert f"the two weights of RRD 2025 cost the same, and differ by {apart:.0f} s" in said
    epochs = record["settings"]["RRD 2025"]["epochs"]
    hours = epochs * sum(map(sum, seconds.values())) / record["jobs"] / 3600
    assert f"students take {hours:.1f} hours on two cores" in said
    deviations = [statistics.stdev(record["accuracy"][method]) for method in {*mean} - {"CRD"}]
    assert (round(min(deviations), 1), round(max(deviations), 2)) == (0.1, 0.45)
    methods = ("student", "KD", "RRD 2025", "RRD+KD 2025", "PKT")
    figures = [f"{mean[method]:.2f} %" for method in methods]
    words = (
        "a student of {} reaches {} with KD, {} with RRD 2025, {} with RRD+KD 2025 and {} with PKT"
    )
    assert words.format(*figures) in " ".join((ROOT / "README.md").read_text().split())


def test_what_the_results_say_of_the_settings():
    record = RECORDS["fashion-mnist-rrd"]
    accuracy = {run: by_seed[0] for run, by_seed in record["accuracy"].items()}
    order = RECORDS["fashion-mnist-order"]["accuracy"]
    assert order["defaults"][0] == accuracy["defaults"]
    accuracy["order"] = order["protocol=2024"][0]
    moved = {run: value - accuracy["defaults"] for run, value in accuracy.items()}
    assert max(moved, key=moved.__getitem__) == "beta=3"
    said = " ".join(PAGE.split())
    lost, gained = (f"{abs(moved.pop(run)):.2f}" for run in ("beta=0.3", "beta=3"))
    assert f"0.3 loses {lost} points. 3 was the highest, by {gained}," in said
    assert all(abs(moved[run]) < 0.3 for run in moved.keys() - {"student", "KD"})
    spans = []
    for name in ("nce_k", "nce_t_s"):
        values = [accuracy[run] for run in record["factors"][name]["runs"].values()]
        spans.append(f"{max(values) - min(values):.2f}")
    assert "K spans {}, τ_s {}:".format(*spans) in said
    crd = {run: by_seed[0] for run, by_seed in RECORDS["fashion-mnist-crd"]["accuracy"].items()}
    assert crd["KD"] > crd["student"] > crd["beta=0.02"] > crd["beta=0.1"] > crd["defaults"]


def apart_from(other, record):
    """The methods whose interval of the difference to the other is above zero, and below it."""
    found = {row["method"]: row["differences"].get(other) for row in summary(record)}
    assert found.pop(other) is None
    above = {method for method, each in found.items() if each["low"] > 0}
    return above, {method for method, each in found.items() if each["high"] < 0}


def test_what_the_results_say_of_transfer():
    digits = RECORDS["fashion-mnist-to-digits"]
    rows = summary(digits)
    assert [row["method"] for row in rows[:2]] == ["RRD 2025 -b 3", "RRD+KD 2025"]
    alone = digits["accuracy"]["student"]
    assert round(max(alone) - min(alone)) == 8
    assert len(rows) == 15
    assert apart_from("student", digits) == (set(), {"VID"})
    said = " ".join(PAGE.split())

    def above_the_student(record, method):
        """With each seed, in points."""
        return np.subtract(record["accuracy"][method], record["accuracy"]["student"])

    even = RECORDS["fashion-mnist-even"]
    assert [row["method"] for row in summary(even)[:2]] == ["RRD+KD 2025", "RRD 2025"]
    assert min(above_the_student(even, "RRD+KD 2025")) > 0
    assert min(above_the_student(even, "RRD 2025")) > 0
    assert apart_from("student", even) == ({"RRD 2025"}, set())
    low, high = sorted(-above_the_student(even, "CRD"))[::2]
    assert f"CRD is below the student with each seed, by {low:.1f} to {high:.1f} points" in said
    assert abs(difference(even, "PKT", "student")[0]["mean"]) < 0.2
    odd = RECORDS["fashion-mnist-even-to-odd"]
    assert apart_from("student", odd) == ({"AT", "RRD+KD 2025"}, {"PKT", "CRD+KD"})
    assert min(above_the_student(odd, "RRD 2025")) > 0
    assert [row["method"] for row in summary(odd)[-2:]] == ["CRD+KD", "PKT"]
    spread = max(odd["accuracy"]["KD"]) - min(odd["accuracy"]["KD"])
    assert f"its seeds are up to {spread:.1f} points apart" in said
    for record in (even, odd):
        assert apart_from("KD", record) == (set(), set())
