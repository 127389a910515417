#!/usr/bin/env bash
# Run sdft on a Cloud TPU VM, a pod slice or several slices (v4, v5e, v5p, v6e), created as a queued resource.
#
#   queued.sh create --name NAME --type TYPE --zone ZONE [--slices N] [--spot]
#   queued.sh setup  --name NAME --zone ZONE [--package REQUIREMENT]     wait for the slice, then install sdft
#   queued.sh run    --name NAME --zone ZONE --bucket BUCKET [--input PATH]... CONFIG [key=value...]
#   queued.sh logs   --name NAME --zone ZONE                             follow the log of the first worker
#   queued.sh watch  (options of create, setup and run) [--restarts N] [--delete-after]
#   queued.sh delete --name NAME --zone ZONE
#
# Each action can be repeated safely and accepts --project P and --dry-run, which prints the commands without
# running them. TYPE is, for example, v6e-16 or v6e-4x4; see accelerators.txt. Results are in
# gs://BUCKET/runs/NAME. The run's working directory contains CONFIG and each --input (a file, a directory or
# gs://...) under its base name: data.path=train.jsonl. --command continual runs `sdft continual` instead of
# `sdft train`. For Multislice, use --slices 2. REQUIREMENT is a pip requirement, by default 'sdft_jax[tpu]';
# another example is 'sdft_jax[tpu] @ git+https://...'.
#
# watch does everything: it creates the slice and starts the run. After a preemption, it creates the slice
# again and restarts the run, which resumes. Exit code 2 of the run (user error) ends watch. Other failures
# are retried up to --restarts times (default 3). With --delete-after, watch deletes the slice when it ends,
# whether or not the run succeeded.
#
# Costs: all chips are billed by the hour from ACTIVE until `delete`, even when idle. Waiting is free.
# List what is running: gcloud compute tpus queued-resources list --zone ZONE.
# Tear down: queued.sh delete.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

queued_resources() { run gcloud compute tpus queued-resources "$@" "${location[@]}"; }

on_all_workers() { queued_resources ssh "$name" --node=all --worker=all --command="$1"; }

on_first_worker() { queued_resources ssh "$name" --node=0 --worker=0 --command="$1"; }

get_state() { queued_resources list --filter="name~\"(^|/)$name\$\"" --format='value(state.state)'; }

create() {
  local state nodes=(--node-id="$name") spot=()
  [[ $runtime != - ]] || die "$type is not available as a queued resource: use compute_engine.sh or gke.sh."
  state=$(get_state) || return
  if [[ $state ]]; then
    log "$name already exists and is $state: nothing to create."
    return
  fi
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  [[ ! ${option[spot]-} ]] || spot=(--spot)
  queued_resources create "$name" --accelerator-type="$type" --runtime-version="$runtime" \
    "${nodes[@]}" ${spot[@]+"${spot[@]}"} || return
  log "$((slices * hosts * chips)) chips are billed from ACTIVE until you run: $0 delete $(quoted --name "$name" "${location[@]}")"
}

wait_active() {
  local state
  while true; do
    state=$(get_state)
    [[ ! $dry_run ]] || return 0
    case $state in
      ACTIVE) return ;;
      "") log "$name does not exist: create it first." && return 1 ;;
      DELETING) log "$name is $state: create it again when it is deleted." && return 1 ;;
      FAILED | SUSPEND*) log "$name is $state: delete it, then create it again." && return 1 ;;
    esac
    log "$name is $state: waiting."
    sleep "$poll"
  done
}

setup() {
  wait_active && queued_resources scp "$here/worker.sh" "$name:" --node=all --worker=all &&
    on_all_workers "bash worker.sh setup $(quoted "${option[package]}")"
}

start() { on_all_workers "bash worker.sh run $(quoted "$bucket" "$name" "${sdft[@]}")"; }

restart() { on_all_workers "bash worker.sh stop" && start; }

delete() {
  local state
  state=$(get_state)
  if [[ $state || $dry_run ]]; then
    queued_resources delete "$name" --force --quiet
  else
    log "$name does not exist: nothing to delete."
  fi
}

run_status() { # print the status of the run over all workers: running, absent, lost, or an exit code
  local statuses
  statuses=$(on_all_workers "bash worker.sh status || echo sdft: absent") || { echo lost && return; }
  statuses=$(sed -n 's/.*sdft: \(exit \)\{0,1\}//p' <<<"$statuses")
  if (($(wc -l <<<"$statuses") < slices * hosts)); then echo lost && return; fi
  statuses=$(sort -u <<<"$statuses")
  case $'\n'$statuses$'\n' in
    *$'\n2\n'*) echo 2 ;;
    *absent*) echo absent ;;
    *$'\n143\n'*) echo 143 ;;
    *$'\n'[1-9]*) grep -m1 '^[1-9]' <<<"$statuses" ;;
    *running*) echo running ;;
    $'\n0\n') echo 0 ;;
    *) echo lost ;;
  esac
}

finish() { # finish CODE MESSAGE: delete the slice if --delete-after is set, and exit
  log "$2"
  if [[ ${option[delete-after]-} ]]; then
    delete
  else
    log "$name is still billed until you run: $0 delete $(quoted --name "$name" "${location[@]}")"
  fi
  exit "$1"
}

watch() { # each iteration reads the current state and takes one step, so watch can be stopped and started again
  local restarts_left=${option[restarts]-3} failed_polls=0 state status
  [[ $restarts_left =~ ^[0-9]+$ ]] || die "--restarts $restarts_left is not valid: give a whole number."
  upload
  if [[ $dry_run ]]; then
    create && setup && start && run_status >/dev/null
    log "until the run ends: check every $poll s; after a preemption, delete and create the slice, set it up and restart the run."
    finish 0 "when the run has ended:"
  fi
  while true; do
    state=$(get_state) || state=unknown
    case $state in
      ACTIVE)
        status=$(run_status)
        case $status in
          running) failed_polls=0 ;;
          lost) # a queued resource can stay ACTIVE although some of its nodes were preempted
            ((++failed_polls < 10)) ||
              { log "$name did not respond to 10 checks in a row: creating it again." && failed_polls=0 && delete || true; }
            ;;
          0) finish 0 "the run is complete: gs://$bucket/runs/$name" ;;
          2)
            on_first_worker "bash worker.sh tail" || true
            finish 2 "exit code 2 (user error): fix the error in the log and start the run again."
            ;;
          absent) { setup && restart; } || log "$name does not respond: trying again." ;;
          143) log "exit code 143 (SIGTERM): restarting the run." && { restart || true; } ;;
          *)
            on_first_worker "bash worker.sh tail" || true
            ((restarts_left-- > 0)) || finish "$status" "exit code $status, and no restarts left: giving up."
            log "exit code $status: restarting the run, $restarts_left restarts left."
            restart || true
            ;;
        esac
        ;;
      "") create || ((restarts_left-- > 0)) || finish 1 "$name cannot be created: see the error above." ;;
      SUSPENDED) log "$name was preempted: creating it again." && { delete || true; } ;;
      FAILED)
        ((restarts_left-- > 0)) ||
          finish 1 "the request for $name failed: for the reason, run gcloud compute tpus queued-resources describe."
        delete || true
        ;;
      *) log "$name is $state: waiting." ;;
    esac
    sleep "$poll"
  done
}

parse "create setup run logs watch delete" \
  "name type zone project slices package bucket input command restarts" "spot delete-after" "$@"
case $action in
  create) need name type zone ;;
  run) need name zone bucket && read_config ;;
  watch) need name type zone bucket && read_config ;;
  *) need name zone ;;
esac
location=(--zone="${option[zone]}" ${option[project]+--project="${option[project]}"})

case $action in
  run) upload && start ;;
  logs) on_first_worker "bash worker.sh logs" ;;
  *) "$action" ;;
esac
