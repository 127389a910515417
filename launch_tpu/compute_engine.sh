#!/usr/bin/env bash
# TPU VMs as plain Compute Engine machines: the only way without GKE from tpu7x (Ironwood) on; also v5p and v6e.
# One slice is a managed instance group; several hosts are wired together by a workload policy.
#
#   compute_engine.sh create --name NAME --type TYPE --zone ZONE --project P [--spot]
#   compute_engine.sh setup  --name NAME --type TYPE --zone ZONE --project P [--package REQUIREMENT]
#   compute_engine.sh run    (setup's, without --package) --bucket BUCKET [--input PATH]... CONFIG [key=value...]
#   compute_engine.sh status | logs | delete   --name NAME --type TYPE --zone ZONE --project P
#
# Every action may be repeated, and takes --dry-run. CONFIG, --input, --command and the results are as in
# queued.sh. There is no watch here: a preempted slice has to be created and run again by hand (the run
# resumes), and for several slices or for Spot that restarts itself, GKE is the way.
#
# Costs: every chip, by the hour, from creation until `delete`, idle or not; deleting single VMs of the group
# does not help, the group makes them anew. What runs: gcloud compute instance-groups managed list.
# Tear down: compute_engine.sh delete, which also removes the template and the policy.
#
# Written from Google's documentation and users' reports; never run on a TPU by the authors.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gce() { run gcloud compute "$@" --project="$project"; }

exists() { # exists zone|region KIND...: whether there is a NAME of that kind (never, in a dry run)
  local where=$1
  shift
  [[ $(gce "$@" list --filter="name=$name AND $where~\"/${!where}\$\"" --format='value(name)') ]]
}

create() {
  local slice=() spot=()
  case $type in
    v5p-*) image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e disk=pd-balanced ;;
    v6e-*) image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e disk=hyperdisk-balanced ;;
    tpu7x-*) image=ubuntu-accel-2404-amd64-tpu-tpu7x disk=hyperdisk-balanced ;;
    *) die "$type is not to be had on Compute Engine: use queued.sh." ;;
  esac
  [[ ! ${given[spot]-} ]] || spot=(--provisioning-model=SPOT --instance-termination-action=DELETE)
  if ((hosts > 1)); then
    exists region resource-policies ||
      gce resource-policies create workload-policy "$name" --region="$region" --type=HIGH_THROUGHPUT \
        --accelerator-topology="$topology" --accelerator-topology-mode=AUTO_CONNECT
    # Bulk: a slice comes whole or not at all. The policy must be given with its full path.
    slice=(--target-size-policy-mode=bulk
      --workload-policy="projects/$project/regions/$region/resourcePolicies/$name")
  fi
  exists region instance-templates ||
    gce instance-templates create "$name" --instance-template-region="$region" --machine-type="$machine" \
      --create-disk="auto-delete=yes,boot=yes,size=200GB,type=$disk,image=projects/ubuntu-os-accelerator-images/global/images/family/$image" \
      --maintenance-policy=TERMINATE --scopes=cloud-platform ${spot[@]+"${spot[@]}"}
  exists zone instance-groups managed ||
    gce instance-groups managed create "$name" --zone="$zone" --size="$hosts" \
      --template="projects/$project/regions/$region/instanceTemplates/$name" \
      --default-action-on-vm-failure=do-nothing ${slice[@]+"${slice[@]}"}
  say "$((hosts * chips)) chips cost money until: $0 delete $(quoted --name "$name" --type "$type" --zone "$zone" --project "$project")"
}

find_vms() {
  mapfile -t vms < <(gce instance-groups managed list-instances "$name" --zone="$zone" \
    --filter=instanceStatus=RUNNING --format='value(name)' | sort)
  [[ ! $dry_run ]] || mapfile -t vms < <(seq -f "$name-vm%.0f" 0 $((hosts - 1)))
  ((${#vms[@]} == hosts)) || { say "${#vms[@]} of $hosts VMs run: try again when all do." && exit 1; }
}

on() { gce ssh "$1" --zone="$zone" --command="$2"; }

setup() {
  local vm
  find_vms
  for vm in "${vms[@]}"; do
    gce scp "$here/worker.sh" "$vm:worker.sh" --zone="$zone"
    on "$vm" "bash worker.sh setup $(quoted "${given[package]}")"
  done
}

start() {
  local i where=""
  find_vms
  for i in "${!vms[@]}"; do
    # JAX reads the peers of a slice in a form that these VMs do not publish, so they are named.
    ((hosts == 1)) || where="env SDFT_COORDINATOR=${vms[0]}:8476 SDFT_PROCESSES=$hosts SDFT_PROCESS=$i "
    on "${vms[$i]}" "${where}bash worker.sh run $(quoted "$bucket" "$name" "${sdft[@]}")"
  done
}

delete() {
  if exists zone instance-groups managed || [[ $dry_run ]]; then
    gce instance-groups managed delete "$name" --zone="$zone" --quiet
  fi
  if exists region instance-templates || [[ $dry_run ]]; then
    gce instance-templates delete "$name" --region="$region" --quiet
  fi
  if exists region resource-policies || [[ $dry_run ]]; then
    gce resource-policies delete "$name" --region="$region" --quiet
  fi
}

parse "create setup run status logs delete" "name type zone project package bucket input command" "spot" "$@"
need name type zone project
zone=${given[zone]} project=${given[project]} region=${given[zone]%-*}

case $action in
  run) need name bucket && take_config && stage && start ;;
  status) find_vms && for vm in "${vms[@]}"; do on "$vm" "bash worker.sh status"; done ;;
  logs) find_vms && on "${vms[0]}" "bash worker.sh logs" ;;
  *) "$action" ;;
esac
