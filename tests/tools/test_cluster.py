"""The files of docs/cluster: linted, and run with stand-ins for Slurm's commands."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from forked_ranks import wait_for
from kubernetes_validate import ValidationError, validate
from readme_commands import ROOT, few_images

from flatten_det.commands.train import parse_args
from flatten_det.files.checkpoints import load_as_data

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # Of pytest's.

CLUSTER = ROOT / "docs" / "cluster"
SLURM = Path(__file__).parent / "slurm"
SCRIPTS = Path(sys.executable).parent
SHELL_FILES = [CLUSTER / "train.sbatch", ROOT / ".ci" / "run", SLURM / "scontrol"]
KUBERNETES = "1.31"  # Where a Job's podFailurePolicy is stable.


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def pod_templates() -> Iterator[dict]:
    yield documents("job.yaml")[1]["spec"]["template"]
    for replicas in documents("pytorchjob.yaml")[0]["spec"]["pytorchReplicaSpecs"].values():
        yield replicas["template"]


def lint(*command: object) -> None:
    done = subprocess.run([SCRIPTS / str(command[0]), *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_files_are_linted():
    lint("shellcheck", *SHELL_FILES)
    for template in pod_templates():
        (container,) = template["spec"]["containers"]
        *bash, script = container["command"]
        assert bash == ["bash", "-c"]
        done = subprocess.run(
            [SCRIPTS / "shellcheck", "--shell=bash", "-"],
            input=script,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_linted():
    lint("hadolint", CLUSTER / "Dockerfile")


def test_the_image_gets_all_that_the_package_is_built_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["only-include"],
        *wheel["force-include"],
    }
    ignored, *allowed = re.findall(
        r"^!?[\w*].*", (CLUSTER / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE
    )
    assert ignored == "*"
    assert {line[1:] for line in allowed if line[0] == "!"} == needed


def test_kubernetes_knows_every_field():
    for document in documents("job.yaml"):
        validate(document, KUBERNETES, strict=True)
    for template in pod_templates():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        validate(pod, KUBERNETES, strict=True)
    template["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(ValidationError):
        validate(pod, KUBERNETES, strict=True)


def test_pods_run_a_training_whose_options_exist():
    for template in pod_templates():
        words = template["spec"]["containers"][0]["command"][-1].replace("\\\n", " ").split()
        args = parse_args(words[words.index("flatten-det", words.index("--no-python")) + 2 :])
        assert args.work_dir
        assert args.cfg_options == {"resume": True}


def steps(work_dir: Path) -> list[int]:
    """Iterations of the newest run in a work dir that were logged."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = logs[-1].read_text().splitlines() if logs else []
    return [json.loads(line)["step"] for line in lines if '"loss"' in line]


@pytest.mark.slow
def test_a_batch_job_that_gets_sigusr1_saves_comes_again_and_goes_on(tmp_path):
    options = [*few_images(8), "train_dataloader.batch_size=2", "default_hooks.logger.interval=1"]
    work_dir = tmp_path / "work_dirs" / "17"
    environment = os.environ | {
        "PATH": os.pathsep.join(map(str, (SLURM, SCRIPTS, os.environ["PATH"]))),
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "2",
        "OMP_NUM_THREADS": "1",
    }

    def submit(iterations: int) -> subprocess.Popen:
        length = [f"train_cfg.max_iters={iterations}", "train_cfg.val_interval=1000000"]
        command = [CLUSTER / "train.sbatch", "flatten-pvt-nano_semantic-fpn_shapes"]
        return subprocess.Popen(
            [*command, "--cfg-options", *options, *length],
            cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    job = submit(100_000)
    try:
        wait_for(lambda: job.poll() is not None or steps(work_dir))
        assert job.poll() is None, job.stdout.read()
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
        output, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 0, output
    assert output.count("pre-empted (SIGUSR1) after iteration ") == 1
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
    done = load_as_data(str(work_dir / "interrupted.pth"))["meta"]["iter"]

    job = submit(done + 2)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert steps(work_dir) == [done + 1, done + 2]
    assert "Training finished." in output
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
