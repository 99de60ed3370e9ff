#!/bin/bash
# Grace 3600 s: the default; --measured=RUN takes it from a run on such a slice.
# Note: model.path=Qwen2.5-32B; eval.sets.aime24.path=data/aime-2024.parquet; eval.sets.aime25.path=data/aime-2025.jsonl: read from the image in each pod, where nothing here has looked.
#
# Start:  gcloud compute tpus queued-resources create fipo-32b --node-id=fipo-32b --project=PROJECT --zone=ZONE --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --metadata-from-file=startup-script=THIS_FILE
# Watch:  gcloud compute tpus queued-resources describe fipo-32b --project=PROJECT --zone=ZONE
#         gcloud compute tpus tpu-vm ssh fipo-32b --worker=all --project=PROJECT --zone=ZONE --command="tail -n 5 /var/log/fipo-32b.log"
# Stop:   gcloud compute tpus tpu-vm ssh fipo-32b --worker=all --project=PROJECT --zone=ZONE --command="sudo touch /var/lib/fipo-32b.stop; sudo docker kill --signal=TERM fipo-32b"
# End:    gcloud compute tpus queued-resources delete fipo-32b --force --project=PROJECT --zone=ZONE
# A Spot slice that was taken away does not come back: delete it, and create it again.

exec >> /var/log/fipo-32b.log 2>&1
stop=/var/lib/fipo-32b.stop
failures=0
gcloud auth configure-docker us-docker.pkg.dev --quiet
until docker pull us-docker.pkg.dev/project/repo/fipo_jax:1; do echo "waiting for the image"; sleep 30; done
# Before the machine goes down: docker's own grace is 10 s.
trap 'ending=1; docker stop --time=3600 fipo-32b' TERM
while [ -z "$ending" ] && [ ! -e "$stop" ]; do
  docker rm --force fipo-32b 2> /dev/null
  docker run --rm --name=fipo-32b --privileged --user=0 --network=host --shm-size=16g us-docker.pkg.dev/project/repo/fipo_jax:1 bash -c 'set -eo pipefail; mkdir -p /tmp/code; cd /tmp/code; python -c '"'"'from etils import epath; import sys; sys.stdout.buffer.write(epath.Path("gs://bucket/code.tar.gz").read_bytes())'"'"' | tar -xz; exec python launch/run.py --config=experiments/fipo_qwen2_5_32b.py --config.mesh.data=1 --config.mesh.fsdp=-1 --config.batch.micro_rows=64 --config.workdir=gs://bucket/runs/fipo-32b --config.compile_cache=gs://bucket/runs/compile_cache' &
  child=$!
  wait $child; code=$?
  while kill -0 $child 2> /dev/null; do wait $child; code=$?; done  # a signal had ended the first wait
  echo "$(date --iso-8601=seconds) ended with exit code $code"
  case $code in
    75) ;;  # saved; after maintenance it goes on
    1|76|134|137|139|143)
      failures=$((failures + 1))
      if [ $failures -gt 3 ]; then
        echo "more than 3 restarts: given up"
        exit $code
      fi ;;
    *) exit $code ;;
  esac
  sleep 10
done
