#!/usr/bin/env bash
# A Cloud TPU VM, a pod slice or several slices (v4, v5e, v5p, v6e) as a queued resource.
#
#   queued.sh create --name NAME --type TYPE --zone ZONE [--slices N] [--spot]
#   queued.sh setup  --name NAME --zone ZONE [--package REQUIREMENT]     waits for the slice, installs sdft
#   queued.sh run    --name NAME --zone ZONE --bucket BUCKET [--input PATH]... CONFIG [key=value...]
#   queued.sh logs   --name NAME --zone ZONE                             of the first worker
#   queued.sh watch  (all of create's, setup's and run's) [--restarts N] [--delete-after]
#   queued.sh delete --name NAME --zone ZONE
#
# Every action may be repeated, and takes --project P and --dry-run, which prints the commands and runs none.
# TYPE is v6e-16 or v6e-4x4, see accelerators.txt. Results are in gs://BUCKET/runs/NAME. CONFIG and each
# --input (a file, directory or gs://...) are in the run's directory under their last name: data.path=train.jsonl.
# --command continual runs `sdft continual` instead of `sdft train`. Multislice: --slices 2. REQUIREMENT is what
# pip installs: 'sdft_jax[tpu]' unless given, or such as 'sdft_jax[tpu] @ git+https://...'.
#
# watch does everything: it creates the slice, runs, creates it anew when it is preempted and starts the run
# again, which resumes. Exit code 2 of the run (a mistake of yours) ends it; other failures are retried
# --restarts times (3). --delete-after deletes the slice at the end, whatever the end is.
#
# Costs: every chip, by the hour, from ACTIVE until `delete`, idle or not; a request that waits costs nothing.
# What runs: gcloud compute tpus queued-resources list --zone ZONE. Tear down: queued.sh delete.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

qr() { run gcloud compute tpus queued-resources "$@" "${place[@]}"; }

everywhere() { qr ssh "$name" --node=all --worker=all --command="$1"; }

state() { qr list --filter="name~\"(^|/)$name\$\"" --format='value(state.state)'; }

create() {
  local now nodes=(--node-id="$name") spot=()
  [[ $runtime != - ]] || die "$type is not to be had as a queued resource: use compute_engine.sh or gke.sh."
  now=$(state) || return
  if [[ $now ]]; then
    say "$name exists and is $now: nothing to create."
    return
  fi
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  [[ ! ${given[spot]-} ]] || spot=(--spot)
  qr create "$name" --accelerator-type="$type" --runtime-version="$runtime" "${nodes[@]}" ${spot[@]+"${spot[@]}"} ||
    return
  say "$((slices * hosts * chips)) chips cost money from ACTIVE until: $0 delete $(quoted --name "$name" "${place[@]}")"
}

wait_active() {
  local now
  while true; do
    now=$(state)
    [[ ! $dry_run ]] || return 0
    case $now in
      ACTIVE) return ;;
      "" | FAILED | SUSPEND* | DELETING) say "$name is ${now:-absent}: create it (after a delete)." && return 1 ;;
    esac
    say "$name is $now: waiting."
    sleep "$poll"
  done
}

setup() {
  wait_active && qr scp "$here/worker.sh" "$name:" --node=all --worker=all &&
    everywhere "bash worker.sh setup $(quoted "${given[package]}")"
}

start() { everywhere "bash worker.sh run $(quoted "$bucket" "$name" "${sdft[@]}")"; }

restart() { everywhere "bash worker.sh stop" && start; }

delete() {
  local now
  now=$(state)
  if [[ $now || $dry_run ]]; then qr delete "$name" --force --quiet; else say "$name is absent: nothing to delete."; fi
}

verdict() { # of all workers: running, absent, lost, or an exit code
  local all
  all=$(everywhere "bash worker.sh status || echo sdft: absent") || { echo lost && return; }
  all=$(sed -n 's/.*sdft: \(exit \)\{0,1\}//p' <<<"$all")
  if (($(wc -l <<<"$all") < slices * hosts)); then echo lost && return; fi
  all=$(sort -u <<<"$all")
  case $'\n'$all$'\n' in
    *$'\n2\n'*) echo 2 ;;
    *absent*) echo absent ;;
    *$'\n143\n'*) echo 143 ;;
    *$'\n'[1-9]*) grep -m1 '^[1-9]' <<<"$all" ;;
    *running*) echo running ;;
    $'\n0\n') echo 0 ;;
    *) echo lost ;;
  esac
}

first() { qr ssh "$name" --node=0 --worker=0 --command="$1"; }

finish() { # finish CODE MESSAGE
  say "$2"
  if [[ ${given[delete-after]-} ]]; then delete; else say "$name still costs money: $0 delete $(quoted --name "$name" "${place[@]}")"; fi
  exit "$1"
}

watch() { # each round looks at what there is and takes one step, so it may be stopped and begun anew
  local left=${given[restarts]-3} silent=0 now code
  [[ $left =~ ^[0-9]+$ ]] || die "--restarts $left: give a whole number."
  stage
  if [[ $dry_run ]]; then
    create && setup && start && verdict >/dev/null
    say "until it is done: a look every $poll s; a preempted slice is deleted, created, set up and run again."
    finish 0 "after the run:"
  fi
  while true; do
    now=$(state) || now=unknown
    case $now in
      ACTIVE)
        code=$(verdict)
        case $code in
          running) silent=0 ;;
          lost) # some preempted nodes stay in an ACTIVE request
            ((++silent < 10)) || { say "no answer ten times: creating $name anew." && silent=0 && delete || true; }
            ;;
          0) finish 0 "the run is done: gs://$bucket/runs/$name" ;;
          2)
            first "bash worker.sh tail" || true
            finish 2 "exit code 2: mend what the log says and start again."
            ;;
          absent) { setup && restart; } || say "the slice does not answer: trying again." ;;
          143) say "stopped by SIGTERM: starting again." && { restart || true; } ;;
          *)
            first "bash worker.sh tail" || true
            ((left-- > 0)) || finish "$code" "exit code $code once more: giving up."
            say "exit code $code: starting again, $left restarts left."
            restart || true
            ;;
        esac
        ;;
      "") create || ((left-- > 0)) || finish 1 "the slice cannot be created: see above." ;;
      SUSPENDED) say "preempted: creating $name anew." && { delete || true; } ;;
      FAILED)
        ((left-- > 0)) || finish 1 "the request failed: see why with gcloud compute tpus queued-resources describe."
        delete || true
        ;;
      *) say "$name is $now: waiting." ;;
    esac
    sleep "$poll"
  done
}

parse "create setup run logs watch delete" \
  "name type zone project slices package bucket input command restarts" "spot delete-after" "$@"
case $action in
  create) need name type zone ;;
  run) need name zone bucket && take_config ;;
  watch) need name type zone bucket && take_config ;;
  *) need name zone ;;
esac
place=(--zone="${given[zone]}" ${given[project]+--project="${given[project]}"})

case $action in
  run) stage && start ;;
  logs) first "bash worker.sh logs" ;;
  *) "$action" ;;
esac
