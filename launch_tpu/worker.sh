#!/usr/bin/env bash
# Runs on a TPU VM: what queued.sh and compute_engine.sh ask of each worker.
#
#   worker.sh setup PACKAGE            install PACKAGE (a pip requirement) with Python 3.12 into ~/sdft-env
#   worker.sh run BUCKET NAME ARG...   fetch the inputs and start `sdft ARG...`; does nothing if it runs
#   worker.sh status                   one line: "sdft: running", "sdft: exit N" or "sdft: absent"
#   worker.sh logs                     the log so far, and what is added to it
#   worker.sh tail                     the end of the log
#   worker.sh stop                     SIGTERM: the run saves and ends with 143
#
# The run is a systemd service, so it outlives the ssh session, and a preempted VM sends it SIGTERM. It looks
# every SDFT_MAINTENANCE seconds (5) whether maintenance is announced for its host, and saves and ends if so.

set -euo pipefail
export PATH=$HOME/.local/bin:$PATH

status() {
  local unit code number
  unit=$(systemctl show sdft --property=LoadState,SubState,ExecMainCode,ExecMainStatus)
  code=$(sed -n 's/^ExecMainCode=//p' <<<"$unit")
  number=$(sed -n 's/^ExecMainStatus=//p' <<<"$unit")
  case $unit in
    *LoadState=not-found* | *SubState=dead*) echo "sdft: absent" ;;
    *SubState=exited* | *SubState=failed*) echo "sdft: exit $((code == 1 ? number : 128 + number))" ;;
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
    if [[ $(status) == "sdft: running" ]]; then exec echo "sdft: running already"; fi
    stop
    mkdir -p ~/sdft-inputs
    gcloud storage rsync --recursive "gs://$bucket/inputs/$name" ~/sdft-inputs
    SDFT_MAINTENANCE=${SDFT_MAINTENANCE-5}
    # A file, because systemd would expand the $ and % of arguments.
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
    echo "worker.sh: unknown action ${1-}: say setup, run, status, logs, tail or stop." >&2
    exit 2
    ;;
esac
