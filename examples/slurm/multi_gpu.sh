#!/bin/bash
# All GPUs of one node: sbatch examples/slurm/multi_gpu.sh --model_name_or_path ... --output_dir ...
# Change the number of GPUs, the time, and what your cluster asks for (partition, account, modules).
#SBATCH --job-name=hf_mixup
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
set -euo pipefail

accelerate launch \
    --config_file configs/accelerate/multi_gpu.yaml \
    --num_processes "$SLURM_GPUS_ON_NODE" \
    examples/run_classification.py "$@"
