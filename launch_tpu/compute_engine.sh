#!/usr/bin/env bash
# Run sdft on TPU VMs created as Compute Engine instances: the only way without GKE for tpu7x (Ironwood) and
# newer; v5p and v6e also work. One slice is a managed instance group. If the slice has several hosts, a
# workload policy connects them.
#
#   compute_engine.sh create --name NAME --type TYPE --zone ZONE --project P [--spot]
#   compute_engine.sh setup  --name NAME --type TYPE --zone ZONE --project P [--package REQUIREMENT]
#   compute_engine.sh run    (options of setup, except --package) --bucket BUCKET [--input PATH]...
#                            CONFIG [key=value...]
#   compute_engine.sh status | logs | delete   --name NAME --type TYPE --zone ZONE --project P
#
# Each action can be repeated safely and accepts --dry-run. CONFIG, --input, --command and the results are as
# in queued.sh. There is no watch action: after a preemption, create the slice and start the run again by hand
# (the run resumes). For several slices, or to restart Spot slices automatically, use GKE.
#
# Costs: all chips are billed by the hour from creation until `delete`, even when idle. Deleting single VMs
# does not stop the billing, because the group creates them again.
# List what is running: gcloud compute instance-groups managed list.
# Tear down: compute_engine.sh delete, which also removes the template and the policy.
#
# Written from Google's documentation and users' reports; the authors have not run it on a TPU.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gce() { run gcloud compute "$@" --project="$project"; }

exists() { # exists zone|region KIND...: succeed if a resource of this kind is named NAME (always fails in a dry run)
  local scope=$1
  shift
  [[ $(gce "$@" list --filter="name=$name AND $scope~\"/${!scope}\$\"" --format='value(name)') ]]
}

create() {
  local slice=() spot=()
  case $type in
    v5p-*) image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e disk=pd-balanced ;;
    v6e-*) image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e disk=hyperdisk-balanced ;;
    tpu7x-*) image=ubuntu-accel-2404-amd64-tpu-tpu7x disk=hyperdisk-balanced ;;
    *) die "$type is not available as a Compute Engine instance: use queued.sh." ;;
  esac
  [[ ! ${option[spot]-} ]] || spot=(--provisioning-model=SPOT --instance-termination-action=DELETE)
  if ((hosts > 1)); then
    exists region resource-policies ||
      gce resource-policies create workload-policy "$name" --region="$region" --type=HIGH_THROUGHPUT \
        --accelerator-topology="$topology" --accelerator-topology-mode=AUTO_CONNECT
    # In bulk mode, all VMs of the slice are created, or none. The policy must be given by its full path.
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
  log "$((hosts * chips)) chips are billed until you run: $0 delete $(quoted --name "$name" --type "$type" --zone "$zone" --project "$project")"
}

find_vms() {
  mapfile -t vms < <(gce instance-groups managed list-instances "$name" --zone="$zone" \
    --filter=instanceStatus=RUNNING --format='value(name)' | sort)
  [[ ! $dry_run ]] || mapfile -t vms < <(seq -f "$name-vm%.0f" 0 $((hosts - 1)))
  ((${#vms[@]} == hosts)) || { log "${#vms[@]} of $hosts VMs are running: try again when all are." && exit 1; }
}

on_vm() { gce ssh "$1" --zone="$zone" --command="$2"; }

setup() {
  local vm
  find_vms
  for vm in "${vms[@]}"; do
    gce scp "$here/worker.sh" "$vm:worker.sh" --zone="$zone"
    on_vm "$vm" "bash worker.sh setup $(quoted "${option[package]}")"
  done
}

start() {
  local i environment=""
  find_vms
  for i in "${!vms[@]}"; do
    # These VMs do not publish the metadata from which JAX detects the other hosts, so pass it explicitly.
    ((hosts == 1)) || environment="env SDFT_COORDINATOR=${vms[0]}:8476 SDFT_PROCESSES=$hosts SDFT_PROCESS=$i "
    on_vm "${vms[$i]}" "${environment}bash worker.sh run $(quoted "$bucket" "$name" "${sdft[@]}")"
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
zone=${option[zone]} project=${option[project]} region=${option[zone]%-*}

case $action in
  run) need name bucket && read_config && upload && start ;;
  status) find_vms && for vm in "${vms[@]}"; do on_vm "$vm" "bash worker.sh status"; done ;;
  logs) find_vms && on_vm "${vms[0]}" "bash worker.sh logs" ;;
  *) "$action" ;;
esac
