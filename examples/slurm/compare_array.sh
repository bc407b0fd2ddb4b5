#!/bin/bash
# A comparison as a job array, a part in each job: sbatch examples/slurm/compare_array.sh configs/compare/sst2.yaml
# Change the number of jobs, the time, and what your cluster asks for; output_dir must be seen by all nodes. A job that
# was lost is run again by its number: sbatch --array=3 --export=ALL,PARTS=16 examples/slurm/compare_array.sh ...
#SBATCH --job-name=hf_mixup
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
set -euo pipefail

# Of --array=3 the count is 1, so how many parts there are has to be said.
hf-mixup compare "$@" --part "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}"
