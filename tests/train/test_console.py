"""What a person sees of a training, and where the rest is."""

import re

import pytest
from fixtures import write_segmentor_config
from rich.console import Console
from tool_modules import load_tool

from flatten_det.train import console


@pytest.fixture
def train(ade20k_folder, tmp_path, monkeypatch, capsys):
    """Trains a tiny segmentor for so many iterations; returns what is printed, and the newest log."""
    write_segmentor_config(tmp_path / "tiny.py", ade20k_folder)
    monkeypatch.chdir(tmp_path)
    tool = load_tool("train")

    def train(iterations: int, *options: str) -> tuple[str, str]:
        fields = [f"train_cfg.max_iters={iterations}", "train_cfg.val_interval=1"]
        fields.append("default_hooks.logger.interval=1")
        assert tool.main(["tiny.py", *options, "--cfg-options", *fields]) == 0
        log = max((tmp_path / "work_dirs").rglob("*.log"))
        return capsys.readouterr().out, log.read_text()

    return train


def bests(printed: str) -> list[tuple[float, str]]:
    rows = re.findall(r"^│ mIoU +│ ([\d.]+) +│ (\S+) +│$", printed, re.MULTILINE)
    return [(float(value), best) for value, best in rows]


def test_summary_progress_and_metrics(train):
    printed, log = train(2)
    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("[1/2]"))
    assert first <= 20
    summary = "\n".join(lines[:first])
    assert re.search(r"^train +\w+Dataset: \d+ images, \d+ classes, batches of 2$", summary, re.M)
    assert re.search(r"^schedule +2 iterations, \w+, learning rate ", summary, re.M)
    assert re.search(r"^\[2/2\]  loss [\d.]+  lr \S+  [\d.]+ s/iter  eta 0:00:00$", printed, re.M)
    assert "paramwise" not in printed
    assert "System environment" not in printed
    # All of it is in the log file.
    assert "System environment" in log
    assert "Config:\n" in log
    assert re.search(r"Iter\(val\) \[\d+/\d+\] +aAcc", log)


def test_best_of_all_validations_after_a_resumption_too(train):
    (before,) = bests(train(1)[0])
    printed, _ = train(2, "--resume")
    assert printed.startswith("config ")
    after = bests(printed)[-1]
    best = max(before[0], after[0])
    assert before[1] == "*"
    assert after[1] == ("*" if after[0] == best else f"{best:.4g}")


def test_precision(train):
    assert re.search(r"^precision +mixed, bfloat16$", train(1, "--amp", "bf16")[0], re.M)


def test_verbose_prints_the_log(train):
    printed, _ = train(1, "--verbose")
    assert "System environment" in printed
    assert re.search(r"Iter\(train\) \[1/1\]", printed)


def test_on_a_terminal_progress_is_one_line(train, monkeypatch):
    terminal = Console(force_terminal=True, width=150, color_system=None)
    monkeypatch.setattr(console, "make_console", lambda: terminal)
    printed, _ = train(2)
    assert "[1/2]" not in printed
    # Which of its states are drawn is a matter of time.
    assert re.search(r"train ━+ 2/2 (loss [\d.]+|validating) ?", printed)


def test_prints_of_libraries_go_to_the_log(capsys):
    lines = []
    printed = console._PrintedLines()
    print("before there is a log", file=printed)
    printed.use(type("Logger", (), {"info": lines.append}))
    print("one\n\ntwo", end="", file=printed)
    assert lines == ["before there is a log", "one"]
