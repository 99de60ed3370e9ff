#!/bin/bash
# Grace 3600 s: the default; --measured=RUN takes it from a run on such a slice.
# Note: model.path=Qwen2.5-32B; eval.sets.aime24.path=data/aime-2024.parquet; eval.sets.aime25.path=data/aime-2025.jsonl: read from the image in each pod, where nothing here has looked.
# Note: Spot: 15 s from notice to kill, whatever the grace; what counts there is the last checkpoint.
# Restarts count, also those after 75: the flag only says which codes are no failure for good.
# Before v1.103 the parts of --mount are separated by : instead of ;.
# Watch: gcluster job logs fipo-32b     Stop: gcluster job cancel fipo-32b
exec gcluster job submit \
  --name fipo-32b \
  --project PROJECT --cluster CLUSTER --location ZONE \
  --image us-docker.pkg.dev/project/repo/fipo_jax:1 \
  --compute-type tpu7x-128 \
  --topology 4x4x4 \
  --num-slices 1 \
  --restarts 50 \
  --grace-period 3600s \
  --restart-on-exit-codes 1,75,76,134,137,139,143 \
  --gke-ttl-after-finished 24h \
  --gke-disable-parallel-containers \
  --priority high \
  --node-constraint cloud.google.com/gke-spot=true \
  --mount 'gs://models;/models;ro' \
  --command 'exec python launch/run.py --config=experiments/fipo_qwen2_5_32b.py --config.mesh.data=1 --config.mesh.fsdp=-1 --config.batch.micro_rows=128 --config.workdir=gs://bucket/runs/fipo-32b --config.checkpoint.every=1 --config.compile_cache=gs://bucket/runs/compile_cache'
