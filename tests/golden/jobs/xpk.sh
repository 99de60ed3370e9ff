#!/bin/bash
# Grace 3600 s: the default; --measured=RUN takes it from a run on such a slice.
# Note: model.path=Qwen2.5-32B; eval.sets.aime24.path=data/aime-2024.parquet; eval.sets.aime25.path=data/aime-2025.jsonl: read from the image in each pod, where nothing here has looked.
# Restarts count, also those after 75; 42 and 127 to 255 restart whatever is listed, so 130 does too.
# Stop: xpk workload delete --workload fipo-32b --cluster CLUSTER
exec xpk workload create \
  --workload fipo-32b \
  --project PROJECT --cluster CLUSTER --zone ZONE \
  --docker-image us-docker.pkg.dev/project/repo/fipo_jax:1 \
  --tpu-type=v5litepod-256 \
  --num-slices=4 \
  --max-restarts=50 \
  --termination-grace-period-seconds=3600 \
  --restart-on-exit-codes=1,75,76,134,137,139,143 \
  --priority=high \
  --command 'exec python launch/run.py --config=experiments/fipo_qwen2_5_32b.py --config.mesh.data=4 --config.mesh.fsdp=-1 --config.batch.micro_rows=1024 --config.workdir=gs://bucket/runs/fipo-32b --config.compile_cache=gs://bucket/runs/compile_cache'
