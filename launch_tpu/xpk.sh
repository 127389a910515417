#!/usr/bin/env bash
# GKE for trying out, through xpk (pip install xpk): it makes the cluster, with JobSet and Kueue, and the image.
#
#   xpk.sh cluster --cluster C --type TYPE --zone ZONE --project P [--slices N] [--spot]
#   xpk.sh run     --name NAME --cluster C --type TYPE --zone ZONE --project P --bucket BUCKET --image IMAGE
#                  [--slices N] [--command continual] CONFIG [key=value...]
#   xpk.sh logs    --name NAME
#   xpk.sh delete  --name NAME --cluster C --zone ZONE --project P       the run, not its results
#   xpk.sh delete-cluster      --cluster C --zone ZONE --project P
#
# Every action may be repeated, and takes --dry-run. xpk puts the directory of CONFIG into the image, so data
# beside it is found by its name: data.path=train.jsonl. Results are in gs://BUCKET/runs/NAME. xpk starts a run
# again on exit codes of 127 and more (143 is SIGTERM), 50 times here, but not on 1 or 2: see the log.
#
# Costs: the nodes of the cluster, by the chip-hour, from `cluster` until `delete-cluster`, idle or not.
# What runs: xpk cluster list; xpk workload list --cluster C. Tear down: xpk.sh delete-cluster.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "cluster run logs delete delete-cluster" "name cluster type zone project slices bucket image command" "spot" "$@"
case $action in
  cluster) need cluster type zone project ;;
  run) need name cluster type zone project bucket image && take_config ;;
  logs) need name ;;
  delete) need name cluster zone project ;;
  delete-cluster) need cluster zone project ;;
esac
place=(--cluster="${given[cluster]-}" --zone="${given[zone]-}" --project="${given[project]-}")

case $action in
  cluster)
    capacity=--on-demand
    [[ ! ${given[spot]-} ]] || capacity=--spot
    run xpk cluster create "${place[@]}" --tpu-type="$type" --num-slices="$slices" "$capacity"
    say "$((slices * hosts * chips)) chips cost money until: $0 delete-cluster $(quoted "${place[@]}")"
    ;;
  run)
    if [[ $(run kubectl get jobset "$name" --ignore-not-found --output=name) ]]; then
      say "$name exists: nothing to start; delete it to run it again."
      exit
    fi
    # exec, so that the SIGTERM which xpk passes on reaches sdft; one process a host, as elsewhere.
    run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$type" --num-slices="$slices" \
      --base-docker-image="${given[image]}" --script-dir="$(dirname "$config")" \
      --env="JAX_COMPILATION_CACHE_DIR=gs://$bucket/compiled" --command="exec sdft $(quoted "${sdft[@]}")" \
      --no-use-parallel-containers --max-restarts=50 --termination-grace-period-seconds=300
    ;;
  logs)
    run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
      --prefix --tail=200 --follow --max-log-requests=64
    ;;
  delete) run xpk workload delete --workload="$name" "${place[@]}" --force ;;
  delete-cluster) run xpk cluster delete "${place[@]}" --force ;;
esac
