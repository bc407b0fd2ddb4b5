#!/bin/bash
# Several nodes, one launcher on each: sbatch examples/slurm/multi_node.sh --model_name_or_path ... --output_dir ...
# Change the numbers of nodes and GPUs, the time, and what your cluster asks for; output_dir must be seen by all nodes.
#SBATCH --job-name=hf_mixup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
set -euo pipefail

read -r HEAD_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
# Jobs that share a node must not share a port.
PORT=$((20000 + SLURM_JOB_ID % 10000))
export HEAD_NODE PROCESSES PORT

# shellcheck disable=SC2016  # In single quotes, so that each node puts in its own SLURM_NODEID.
srun bash -c 'accelerate launch \
    --config_file configs/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$PROCESSES" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD_NODE" \
    --main_process_port "$PORT" \
    examples/run_classification.py "$@"' launcher "$@"
