"""``flatten-det serve`` as a process: what the manual tells to ask, a flood, and the end."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from time import sleep
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest
from bombs import png_bomb
from fastapi import HTTPException
from PIL import Image
from readme_commands import PYTHON, REQUESTS, run_python, save_random_weights

from flatten_det.commands import main
from flatten_det.commands.serve import parse_args, run
from flatten_det.serving import server
from flatten_det.serving.server import open_socket
from flatten_det.serving.uploads import check_header

CONFIG = "mask-rcnn_flatten-pvt-nano_fpn_shapes"


@pytest.fixture(autouse=True)
def limit_of_pixels(monkeypatch):
    """Pillow's, which the command sets for its process, is that of before after each test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-upload-mb", "0"], "--max-upload-mb: must be positive"),
        (["--timeout", "nan"], "--timeout: must be positive"),
        (["--timeout", "inf"], "--timeout: must be positive"),
        (["--port", "70000"], "--port: must be 0 to 65535"),
    ],
)
def test_senseless_limits_are_usage_errors(options, message, capsys):
    with pytest.raises(SystemExit):
        parse_args([CONFIG, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "no such host"])
def test_addresses_that_cannot_be_had_are_told(host, monkeypatch, capsys):
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["serve", CONFIG, "--host", host, "--port", port]
        monkeypatch.setattr(sys, "argv", ["flatten-det", *words])
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert ("another --port" if host == "127.0.0.1" else "address of this machine") in line


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("flatten_det.commands.serve.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["flatten-det", "serve", CONFIG])
    assert main(["serve", CONFIG]) == 2
    assert "pip install 'flatten-det[serve]'" in capsys.readouterr().err


def test_more_pixels_than_pillow_takes_can_be_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "run_server", lambda app, opened, limits: None)
    run(parse_args([CONFIG, "--port", "0", "--device", "cpu", "--max-pixels", "200000000"]))
    for side, is_taken in ((14_000, True), (15_000, False)):
        header = png_bomb(tmp_path / "bomb.png", side, side).read_bytes()
        with nullcontext() if is_taken else pytest.raises(HTTPException, match="200000000 pixels"):
            check_header(header, 200_000_000)


@pytest.mark.slow
def test_server(tmp_path):
    weights = tmp_path / "weights" / "random.pth"
    save_random_weights(CONFIG, weights)
    images = tmp_path / "data" / "shapes" / "val" / "images"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    cv2.imwrite(str(images / "000000.jpg"), noise)
    words = ["serve", CONFIG, str(weights), "--port", "0", "--queue", "4", "--device", "cpu"]
    code = f"from flatten_det.commands import main; raise SystemExit(main({words!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0].rstrip("/")
            _ask_as_the_manual_does(address, tmp_path)
            _flood(address, tmp_path)
            _open_the_page(address)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stdout.read() == "stopped\n"
        finally:
            process.kill()


def _ask_as_the_manual_does(address: str, cwd: Path) -> None:
    for command in REQUESTS:
        words = shlex.split(command.replace("http://127.0.0.1:8000", address))
        if shutil.which("curl"):
            done = subprocess.run(words, cwd=cwd, capture_output=True, check=True)
            if "score=" in command:
                assert json.loads(done.stdout)["height"] == 128
    if shutil.which("curl"):
        assert cv2.imread(str(cwd / "predicted.png")) is not None
        weights = json.loads((cwd / "attention.json").read_text())["weights"]
        assert np.shape(weights) == (16, 16)
    run_python(PYTHON["serve"][0].replace("http://127.0.0.1:8000", address), cwd)


def _flood(address: str, folder: Path) -> None:
    """Of 60 images at once, and nonsense between them, each gets its own answer."""
    images = [
        cv2.imencode(".png", np.full((16, 16 + number, 3), 4 * number, np.uint8))[1].tobytes()
        for number in range(60)
    ]
    statuses: Counter[int] = Counter()

    def ask(number: int) -> None:
        for content in (os.urandom(99), images[number]):
            while True:
                try:
                    with urlopen(Request(f"{address}/predict", content), timeout=60) as answer:
                        statuses[answer.status] += 1
                        assert json.load(answer)["width"] == 16 + number
                        break
                except urllib.error.HTTPError as error:
                    statuses[error.code] += 1
                    if error.code != 503:
                        break
                    sleep(float(error.headers["Retry-After"]))

    with ThreadPoolExecutor(60) as threads:
        list(threads.map(ask, range(60)))
    assert statuses[200] == statuses[415] == 60
    assert statuses[503] > 0
    assert statuses.keys() == {200, 415, 503}


def _open_the_page(address: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", address], capture_output=True, text=True, timeout=60
    )
    assert "instance segmentation, 6 classes" in done.stdout
