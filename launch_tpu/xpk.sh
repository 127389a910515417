#!/usr/bin/env bash
# Try sdft on GKE through xpk (pip install xpk). xpk creates the image and the cluster, with JobSet and Kueue.
#
#   xpk.sh cluster --cluster C --type TYPE --zone ZONE --project P [--slices N] [--spot]
#   xpk.sh run     --name NAME --cluster C --type TYPE --zone ZONE --project P --bucket BUCKET --image IMAGE
#                  [--slices N] [--command continual] CONFIG [key=value...]
#   xpk.sh logs    --name NAME
#   xpk.sh delete  --name NAME --cluster C --zone ZONE --project P    delete the run, but not its results
#   xpk.sh delete-cluster   --cluster C --zone ZONE --project P
#
# Each action can be repeated safely and accepts --dry-run. xpk copies the directory that contains CONFIG into
# the image, so the run reads data files in that directory by their names: data.path=train.jsonl. Results are
# in gs://BUCKET/runs/NAME. xpk restarts a run that exits with code 127 or above (143 is SIGTERM), up to 50
# times here. It does not restart a run that exits with code 1 or 2: see the log.
#
# Costs: the cluster's nodes are billed by the chip-hour from `cluster` until `delete-cluster`, even if idle.
# List what is running: xpk cluster list; xpk workload list --cluster C.
# Tear down: xpk.sh delete-cluster.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "cluster run logs delete delete-cluster" "name cluster type zone project slices bucket image command" "spot" "$@"
case $action in
  cluster) need cluster type zone project ;;
  run) need name cluster type zone project bucket image && read_config ;;
  logs) need name ;;
  delete) need name cluster zone project ;;
  delete-cluster) need cluster zone project ;;
esac
location=(--cluster="${option[cluster]-}" --zone="${option[zone]-}" --project="${option[project]-}")

case $action in
  cluster)
    capacity=--on-demand
    [[ ! ${option[spot]-} ]] || capacity=--spot
    run xpk cluster create "${location[@]}" --tpu-type="$type" --num-slices="$slices" "$capacity"
    log "$((slices * hosts * chips)) chips are billed until you run: $0 delete-cluster $(quoted "${location[@]}")"
    ;;
  run)
    [[ -z ${inputs[*]-} ]] || die "xpk copies only the directory of CONFIG: write ${inputs[*]} and CONFIG into one file."
    if [[ $(run kubectl get jobset "$name" --ignore-not-found --output=name) ]]; then
      log "$name already exists: nothing to start; delete it to run it again."
      exit
    fi
    # exec makes sdft receive the SIGTERM that xpk forwards. Without parallel containers, there is one process
    # per host, as in the other launchers.
    run xpk workload create --workload="$name" "${location[@]}" --tpu-type="$type" --num-slices="$slices" \
      --base-docker-image="${option[image]}" --script-dir="$(dirname "$config")" \
      --env="JAX_COMPILATION_CACHE_DIR=gs://$bucket/compiled" --command="exec sdft $(quoted "${sdft[@]}")" \
      --no-use-parallel-containers --max-restarts=50 --termination-grace-period-seconds=300
    ;;
  logs)
    run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
      --prefix --tail=200 --follow --max-log-requests=64
    ;;
  delete) run xpk workload delete --workload="$name" "${location[@]}" --force ;;
  delete-cluster) run xpk cluster delete "${location[@]}" --force ;;
esac
