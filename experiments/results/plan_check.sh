#!/bin/sh
# The runs of plan_check.md in FOLDER, and their forecasts: sh experiments/results/plan_check.sh FOLDER [START]
# START: how a run is started, "python launch/run.py"
folder=$1
start=${2:-python launch/run.py}
names=""

run() {  # NAME [FLAG ...]
  name=$1
  shift
  names="$names,$folder/$name"
  [ -e "$folder/$name/result.json" ] || $start --config=experiments/plan_check.py --config.workdir="$folder/$name" "$@"
}

run fitted
run more_slots --config.rollout.slots=128
run fewer_slots --config.rollout.slots=32
run shorter --config.rollout.max_response_tokens=120 --config.batch.row_tokens=136
run longer --config.rollout.max_response_tokens=400 --config.batch.row_tokens=416
run continue --config.rollout.unfinished=continue
run grows_faster --config.seed=1 --config.optimizer.learning_rate=3e-4
run small_cache --config.rollout.cache_tokens=6000
${PYTHON:-python} launch/plan.py --check="${names#,}" --out=experiments/results/plan_check.json
