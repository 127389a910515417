#!/usr/bin/env bash
# Set up, start and stop sdft on a TPU VM. queued.sh and compute_engine.sh run this script on each worker.
#
#   worker.sh setup PACKAGE            install PACKAGE (a pip requirement) with Python 3.12 into ~/sdft-env
#   worker.sh run BUCKET NAME ARG...   download the inputs and start `sdft ARG...`, unless it is running
#   worker.sh status                   print one line: "sdft: running", "sdft: exit N" or "sdft: absent"
#   worker.sh logs                     print the last 200 lines of the log and follow it
#   worker.sh tail                     print the last 30 lines of the log
#   worker.sh stop                     send SIGTERM: the run saves and exits with code 143
#
# The run is a systemd service, so it continues after the ssh session ends and receives SIGTERM when the VM is
# preempted. Every SDFT_MAINTENANCE seconds (default 5) it checks whether a maintenance event of its host is
# announced; if so, it saves and exits.

set -euo pipefail
export PATH=$HOME/.local/bin:$PATH

status() {
  local unit code exit_status
  unit=$(systemctl show sdft --property=LoadState,SubState,ExecMainCode,ExecMainStatus)
  code=$(sed -n 's/^ExecMainCode=//p' <<<"$unit")
  exit_status=$(sed -n 's/^ExecMainStatus=//p' <<<"$unit")
  case $unit in
    *LoadState=not-found* | *SubState=dead*) echo "sdft: absent" ;;
    *SubState=exited* | *SubState=failed*) echo "sdft: exit $((code == 1 ? exit_status : 128 + exit_status))" ;;
    *) echo "sdft: running" ;;
  esac
}

stop() {
  sudo systemctl stop sdft 2>/dev/null || true
  sudo systemctl reset-failed sdft 2>/dev/null || true
}

case ${1-} in
  setup)
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [[ -x ~/sdft-env/bin/python ]] || uv venv --python 3.12 ~/sdft-env
    uv pip install --python ~/sdft-env/bin/python "$2"
    ;;
  run)
    bucket=$2 name=$3
    shift 3
    if [[ $(status) == "sdft: running" ]]; then exec echo "sdft: already running"; fi
    stop
    mkdir -p ~/sdft-inputs
    gcloud storage rsync --recursive "gs://$bucket/inputs/$name" ~/sdft-inputs
    SDFT_MAINTENANCE=${SDFT_MAINTENANCE-5}
    # Use a file, because systemd would expand $ and % in arguments.
    {
      echo "export JAX_COMPILATION_CACHE_DIR=gs://$bucket/compiled"
      for variable in ${!SDFT_@}; do printf 'export %s=%q\n' "$variable" "${!variable}"; done
      printf 'exec %q' ~/sdft-env/bin/sdft
      printf ' %q' "$@"
      echo
    } >~/sdft-command.sh
    sudo systemd-run --unit=sdft --uid="$(id -u)" --gid="$(id -g)" --working-directory="$HOME/sdft-inputs" \
      --property=RemainAfterExit=yes --property=TimeoutStopSec=300 bash "$HOME/sdft-command.sh"
    ;;
  status) status ;;
  logs) sudo journalctl --unit=sdft --output=cat --lines=200 --follow ;;
  tail) sudo journalctl --unit=sdft --output=cat --lines=30 --no-pager ;;
  stop) stop ;;
  *)
    echo "worker.sh: unknown action ${1-}: use setup, run, status, logs, tail or stop." >&2
    exit 2
    ;;
esac
