"""Tables for the terminal and in Markdown."""

from rich.console import Console

from flatten_det.lab.benchmark.report import make_markdown, make_table, number

COLUMNS = {"size": "left", "empty": "right", "ms": "right", "note": "left"}
ROWS = [["64", "", "1.5", ""], ["64", "", "2", "a | b"], ["128", "", "", "too slow"]]


def test_terminal():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(make_table("title", COLUMNS, ROWS))
    printed = captured.get()
    assert "empty" not in printed
    assert printed.count("64") == 1
    # Header, and a line between the two sizes.
    assert printed.count("├") == 1
    assert "too slow" in printed


def test_markdown():
    assert make_markdown("title", COLUMNS, ROWS).splitlines() == [
        "**title**",
        "",
        "| size | ms | note |",
        "| --- | ---: | --- |",
        "| 64 | 1.5 |  |",
        "| 64 | 2 | a \\| b |",
        "| 128 |  | too slow |",
    ]


def test_number():
    assert number(1.234, ".1f", "x") == "1.2x"
    assert number(None, ".1f", "x") == ""
