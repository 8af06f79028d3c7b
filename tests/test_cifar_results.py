"""The figures in the documents of examples/cifar100 are those of its records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import compare
import paper
from comparing.paired import paired_difference
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
    for table in found:
        assert table in PAGE
    assert " ".join(record.get("heading", "").split()) in " ".join(PAGE.split())
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


def test_what_the_results_say_of_fashion_mnist():
    """Below its table, and in README.md."""
    record = RECORDS["fashion-mnist"]
    rows = {row["method"]: row for row in summary(record)}
    mean = {method: row["mean"] for method, row in rows.items()}

    def lowest(method, other):
        return rows[method]["differences"][other]["low"]

    def above(method, other):
        """With each seed."""
        return all(np.greater(record["accuracy"][method], record["accuracy"][other]))

    first, *others = rows
    assert (first, {*others[:2]}) == ("PKT", {"RRD 2025 -b 3", "RRD+KD 2025"})
    for method in others[:2]:
        difference = paired_difference(record["accuracy"][first], record["accuracy"][method])
        assert 0.2 < difference["mean"] < 0.3
        assert difference["low"] < 0
    for method in ("RRD 2025", "RRD+KD 2025"):
        assert above(method, "KD")
        assert lowest(method, "KD") > 0
    level = rows["RRD 2024"]["differences"]["KD"]
    assert level["low"] < 0 < level["high"]
    assert above("RRD 2025 -b 3", "RRD 2025")
    assert above("student", "CRD")
    assert above("student", "CRD+KD")
    level = rows["CRD -b 0.02"]["differences"]["student"]
    assert level["low"] < 0 < level["high"]
    methods = ("student", "KD", "RRD 2025", "RRD+KD 2025", "PKT")
    alone, *taught = (f"{mean[method]:.2f} %" for method in methods)
    said = "a student of {} reaches {} with KD, {} with RRD, {} with RRD+KD and {} with PKT"
    assert said.format(alone, *taught) in " ".join((ROOT / "README.md").read_text().split())


def test_what_the_results_say_of_the_settings():
    accuracy = {
        run: by_seed[0]
        for name in ("fashion-mnist-rrd", "fashion-mnist-order")
        for run, by_seed in RECORDS[name]["accuracy"].items()
    }
    moved = {run: value - accuracy["defaults"] for run, value in accuracy.items()}
    assert moved.pop("beta=0.3") < -1
    assert max(moved, key=moved.__getitem__) == "beta=3"
    assert 0.3 < moved.pop("beta=3") < 0.4
    assert all(abs(moved[run]) < 0.3 for run in moved.keys() - {"student", "KD"})
