"""The figures in the documents of examples/cifar100 are those of its records."""

import json
import re
from pathlib import Path

import pytest

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import compare
import paper
from comparing.report import COMPARISON
from comparing.study_report import STUDY

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
    assert said in (RESULTS.parents[2] / "README.md").read_text()
    loaders = RECORDS["loaders-cpu-2-cores"]
    assert loaders["busy_cores"] < 0.1
    for row in loaders["rows"]:
        milliseconds = f"{1e3 * row['seconds']['median']:.2f}"
        assert quoted(row["loader"], milliseconds, f"{row['images_per_second']:.0f}")
