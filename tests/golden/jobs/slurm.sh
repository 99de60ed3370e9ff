#!/bin/bash
#SBATCH --job-name=fipo-32b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fipo-32b-%j.log
#SBATCH --signal=TERM@600
# Grace 600 s before the time limit: --grace_s.
# Start, from the folder of the repository:  sbatch THIS_FILE
# Stop, saved:                               touch fipo-32b-JOB.stop; scancel --signal=TERM JOB

export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
mine=fipo-32b-$SLURM_JOB_ID
srun --kill-on-bad-exit=1 .venv/bin/python launch/run.py --config=experiments/fipo_qwen2_5_32b.py --config.mesh.data=1 --config.mesh.fsdp=-1 --config.batch.micro_rows=64 --config.workdir=runs/fipo-32b
code=$?
echo "ended with exit code $code"
case $code in
  75) if [ -e "$mine.stop" ]; then exit $code; fi ;;
  1|76|134|137|139|143)
    echo "$code" >> "$mine.failures"
    if [ "$(wc -l < "$mine.failures")" -gt 50 ]; then
      echo "more than 50 restarts: given up"
      exit $code
    fi ;;
  *) exit $code ;;
esac
scontrol requeue "$SLURM_JOB_ID"
