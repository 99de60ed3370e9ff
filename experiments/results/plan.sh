#!/bin/sh
# The forecasts of plan.md, one JSON a row, in the order of their use; then plan.json and plan.png of them all.
#   sh experiments/results/plan.sh FOLDER [NAME ...]     (a minute or two of one core each; what is there is left alone)
folder=$1
shift
wanted=" $* "
names=""

row() {  # NAME EXPERIMENT TOPOLOGY LENGTHS [FLAG ...]
  name=$1 experiment=$2 topology=$3 lengths=$4
  shift 4
  names="$names,$folder/$name.json"
  case "$wanted" in "  " | *" $name "*) ;; *) return ;; esac
  [ -e "$folder/$name.json" ] || ${PYTHON:-python} launch/plan.py --config=experiments/$experiment.py \
    --topology=$topology --lengths=$lengths --price=4.2 --out="$folder/$name.json" "$@"
}

k4=lognormal:3100,16000 k10=lognormal:9000,24000
go_on=--config.rollout.unfinished=continue
big=fipo_qwen2_5_32b
int8=--config.rollout.cache_dtype=int8

mkdir -p "$folder"
row v5p-128_4k $big v5p-128 $k4 $go_on
row v5p-128_4k_finish $big v5p-128 $k4
row v5p-128_10k $big v5p-128 $k10 $go_on
row v5p-128_10k_finish $big v5p-128 $k10
row v5p-256_10k $big v5p-256 $k10 $go_on
row v6e-256_10k $big v6e-256 $k10 $go_on
row v7x-128_10k $big v7x-128 $k10 $go_on
row v5p-128_4k_int8 $big v5p-128 $k4 $go_on $int8
row v5p-128_10k_int8 $big v5p-128 $k10 $go_on $int8
row v6e-256_10k_int8 $big v6e-256 $k10 $go_on $int8
row v5p-256_4k $big v5p-256 $k4 $go_on
row v6e-256_4k $big v6e-256 $k4 $go_on
row v7x-128_4k $big v7x-128 $k4 $go_on
row v5p-64_4k $big v5p-64 $k4 $go_on --config.mesh.fsdp=32
row v5p-512_4k $big v5p-512 $k4 $go_on
row v5p-1024_4k $big v5p-1024 $k4 $go_on --config.mesh.context=2
row 4x_v5p-512_4k $big v5p-512 $k4 $go_on --slices=4 --config.mesh.context=4
row v5p-1024_4k_finish $big v5p-1024 $k4 --config.mesh.context=2
row v5p-64_10k $big v5p-64 $k10 $go_on --config.mesh.fsdp=32
row v5p-512_10k $big v5p-512 $k10 $go_on
row v5p-1024_10k $big v5p-1024 $k10 $go_on --config.mesh.context=2
row 4x_v5p-512_10k $big v5p-512 $k10 $go_on --slices=4 --config.mesh.context=4
row v5p-1024_10k_finish $big v5p-1024 $k10 --config.mesh.context=2
# Weak scaling: so many prompts more as there are chips, in eight updates as ever.
row weak_v5p-256_4k $big v5p-256 $k4 $go_on --config.batch.prompts=1024 --config.batch.minibatch_prompts=128
row weak_v5p-1024_4k $big v5p-1024 $k4 $go_on --config.batch.prompts=4096 --config.batch.minibatch_prompts=512
row weak_4x_v5p-512_4k $big v5p-512 $k4 $go_on --slices=4 \
  --config.batch.prompts=8192 --config.batch.minibatch_prompts=1024
# Other models.
row 72b_v5p-256_4k $big v5p-256 $k4 $go_on --config.model.path=Qwen2.5-72B --config.mesh.fsdp=128
row 7b_v6e-8 fipo_qwen2_5_math_7b v6e-8 lognormal:1500,6000 $go_on
# As --search proposes.
row 7b_v6e-8_search fipo_qwen2_5_math_7b v6e-8 lognormal:1500,6000 $go_on $int8 --config.model.remat=context \
  --config.rollout.tensor=4 --config.rollout.slots=1024 --config.rollout.cache_tokens=4663040
row v5p-128_4k_search $big v5p-128 $k4 $go_on $int8 --config.rollout.slots=4096 --config.rollout.cache_tokens=43305984
row 7b_v6e-8_tensor4 fipo_qwen2_5_math_7b v6e-8 lognormal:1500,6000 $go_on --config.rollout.tensor=4

[ "$wanted" != "  " ] || ${PYTHON:-python} launch/plan.py --results="${names#,}" --out=experiments/results/plan.json \
  --plot=experiments/results/plan.png
