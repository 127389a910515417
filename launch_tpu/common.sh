# shellcheck shell=bash disable=SC2034
# What the launchers share: arguments, messages, and `run`, which prints a command before it runs it.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: bash $BASH_VERSION is too old: use 4.4 or newer (on macOS: brew install bash)." >&2
  exit 2
fi

here=$(dirname "${BASH_SOURCE[0]}")
poll=${SDFT_LAUNCH_POLL:-30} # seconds between two looks at what is running

declare -A given=([slices]=1 [command]=train [package]='sdft_jax[tpu]')
declare -A meaning=(
  [name]="a name for the run and its machines, such as sdft-1"
  [type]="a slice, such as v6e-16 or v6e-4x4"
  [zone]="a zone that has this TPU, such as us-east5-b"
  [project]="a Google Cloud project"
  [bucket]="a Cloud Storage bucket for inputs and results"
  [image]="a container image, see Dockerfile"
  [cluster]="a GKE cluster"
)
words=() inputs=() dry_run=""

say() { echo "${0##*/}: $*" >&2; }

die() { # a mistake that the user can mend
  say "$*"
  exit 2
}

quoted() { # the words as a shell would need them typed
  local word out=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then out+=("$word"); else out+=("${word@Q}"); fi
  done
  echo "${out[*]}"
}

run() { # on stderr, so that a caller can capture what the command says
  echo "+ $(quoted "$@")" >&2
  [[ $dry_run ]] || "$@"
}

nearest() { # nearest WORD CANDIDATE...: the three candidates that are the fewest edits away
  local word=$1
  shift
  printf '%s\n' "$@" | awk -v word="$word" '{
    for (j = 0; j <= length($0); j++) cost[j] = j
    for (i = 1; i <= length(word); i++) {
      corner = cost[0]; cost[0] = i
      for (j = 1; j <= length($0); j++) {
        best = corner + (substr(word, i, 1) != substr($0, j, 1))
        corner = cost[j]
        if (corner + 1 < best) best = corner + 1
        if (cost[j - 1] + 1 < best) best = cost[j - 1] + 1
        cost[j] = best
      }
    }
    print cost[length($0)], NR, $0
  }' | sort -k1,1n -k2,2n | sed -n '1,3s/^[0-9]* [0-9]* //p' | paste -sd, - | sed 's/,/, /g'
}

parse() { # parse ACTIONS OPTIONS FLAGS "$@": fills action, given, inputs, dry_run and words
  local actions=$1 options=$2 flags="$3 dry-run help" key
  shift 3
  [[ $# -gt 0 ]] || die "no action: say one of ${actions// /, } (--help tells more)."
  case $1 in -h | --help | help) set -- "${actions%% *}" --help ;; esac
  action=$1
  # shellcheck disable=SC2086  # lists of words
  [[ " $actions " == *" $action "* ]] || die "unknown action $action: nearest are $(nearest "$action" $actions)."
  shift
  while (($#)); do
    key=${1#--} key=${key%%=*}
    if [[ $1 == -h || $1 == --help ]]; then
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
    elif [[ $1 != -* ]]; then
      words+=("$1")
    elif [[ $1 == "--$key" && " $flags " == *" $key "* ]]; then
      if [[ $key == dry-run ]]; then dry_run=yes; else given[$key]=yes; fi
    elif [[ $1 == --* && " $options " == *" $key "* ]]; then
      if [[ $1 == *=* ]]; then set -- "--$key" "${1#*=}" "${@:2}"; fi
      [[ ${2-} && $2 != --* ]] || die "--$key has no value: give ${meaning[$key]-one after it}."
      if [[ $key == input ]]; then inputs+=("$2"); else given[$key]=$2; fi
      shift
    else
      # shellcheck disable=SC2086
      die "unknown option $1: nearest are $(nearest "$key" $options $flags | sed 's/^/--/; s/, /, --/g')."
    fi
    shift
  done
}

need() { # need OPTION...: stop unless each was given; check those with a form of their own
  local key
  for key; do
    [[ ${given[$key]-} ]] || die "--$key is missing: give ${meaning[$key]}."
  done
  name=${given[name]-run} bucket=${given[bucket]-} slices=${given[slices]}
  bucket=${bucket#gs://} bucket=${bucket%/}
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name $name: use at most 40 lower-case letters, digits and hyphens, beginning with a letter."
  [[ ! $bucket || $bucket =~ ^[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]+)?$ ]] ||
    die "--bucket $bucket is not a bucket's name: give one such as my-bucket or gs://my-bucket/folder."
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices $slices: give a whole number of at least 1."
  [[ ! ${given[type]-} ]] || find_type "${given[type]}"
}

find_type() { # v6e-16 or v6e-4x4 (v5e is v5litepod): sets type, topology, hosts, chips (a host), machine, label, runtime
  local wanted=${1/#v5e-/v5litepod-} names=() generation
  while read -r type topology hosts chips machine label runtime; do
    generation=${type%-*}
    if [[ $wanted == "$type" || $wanted == "$generation-$topology" ]]; then return; fi
    names+=("$type" "$generation-$topology")
  done < <(grep -v '^#' "$here/accelerators.txt")
  die "unknown TPU $1: nearest are $(nearest "$wanted" "${names[@]}"); accelerators.txt lists all."
}

take_config() { # the first word is the configuration, the others are key=value: sets config and sdft
  local word
  [[ ${#words[@]} -gt 0 ]] || die "no CONFIG: name a YAML file, such as configs/quickstart.yaml."
  config=${words[0]}
  [[ -f $config ]] || die "config $config does not exist: give a YAML file, such as configs/quickstart.yaml."
  for word in "${words[@]:1}"; do
    [[ $word == ?*=* ]] || die "$word is not key=value: write an override such as train.batch_size=16."
  done
  for word in ${inputs[@]+"${inputs[@]}"}; do
    [[ $word == gs://* || -e $word ]] || die "--input $word does not exist: give a file, a directory or gs://..."
  done
  case ${given[command]} in
    train | continual) ;;
    *) die "--command ${given[command]}: nearest are $(nearest "${given[command]}" train continual)." ;;
  esac
  # An output of the user's own comes later and wins.
  sdft=("${given[command]}" "$(basename "$config")" "output=gs://$bucket/runs/$name" "${words[@]:1}")
}

stage() { # what a run reads goes to the bucket, from where every worker fetches it
  run gcloud storage cp "$config" ${inputs[@]+"${inputs[@]}"} "gs://$bucket/inputs/$name/" --recursive
}
