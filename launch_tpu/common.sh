# shellcheck shell=bash disable=SC2034
# Functions shared by the launchers: argument parsing, messages, and `run`, which prints and runs a command.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: bash $BASH_VERSION is too old: use 4.4 or newer (on macOS: brew install bash)." >&2
  exit 2
fi

here=$(dirname "${BASH_SOURCE[0]}")
poll=${SDFT_LAUNCH_POLL:-30} # seconds between two status checks

declare -A option=([slices]=1 [command]=train [package]='sdft_jax[tpu]')
declare -A expected=(
  [name]="a name for the run and its machines, such as sdft-1"
  [type]="a slice type, such as v6e-16 or v6e-4x4"
  [zone]="a zone that has this TPU, such as us-east5-b"
  [project]="a Google Cloud project"
  [bucket]="a Cloud Storage bucket for inputs and results"
  [image]="a container image (see Dockerfile)"
  [cluster]="a GKE cluster"
)
words=() inputs=() dry_run=""

log() { echo "${0##*/}: $*" >&2; }

die() { # report a user error and exit with code 2
  log "$*"
  exit 2
}

quoted() { # print the arguments, quoted for a shell
  local word out=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then out+=("$word"); else out+=("${word@Q}"); fi
  done
  echo "${out[*]}"
}

run() { # print the command to stderr, so that a caller can capture the command's stdout, and run it
  echo "+ $(quoted "$@")" >&2
  [[ $dry_run ]] || "$@"
}

closest() { # closest WORD CANDIDATE...: print the three candidates with the smallest edit distance to WORD
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

parse() { # parse ACTIONS OPTIONS FLAGS "$@": set action, option, inputs, dry_run and words
  local actions=$1 options=$2 flags="$3 dry-run help" key
  shift 3
  [[ $# -gt 0 ]] || die "no action given: use one of ${actions// /, } (see --help)."
  case $1 in -h | --help | help) set -- "${actions%% *}" --help ;; esac
  action=$1
  # shellcheck disable=SC2086  # $actions is a list of words
  [[ " $actions " == *" $action "* ]] ||
    die "unknown action $action: the closest actions are $(closest "$action" $actions)."
  shift
  while (($#)); do
    key=${1#--} key=${key%%=*}
    if [[ $1 == -h || $1 == --help ]]; then
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
    elif [[ $1 != -* ]]; then
      words+=("$1")
    elif [[ $1 == "--$key" && " $flags " == *" $key "* ]]; then
      if [[ $key == dry-run ]]; then dry_run=yes; else option[$key]=yes; fi
    elif [[ $1 == --* && " $options " == *" $key "* ]]; then
      if [[ $1 == *=* ]]; then set -- "--$key" "${1#*=}" "${@:2}"; fi
      [[ ${2-} && $2 != --* ]] || die "--$key has no value: give ${expected[$key]-a value after it}."
      if [[ $key == input ]]; then inputs+=("$2"); else option[$key]=$2; fi
      shift
    else
      # shellcheck disable=SC2086  # $options and $flags are lists of words
      die "unknown option $1: the closest options are $(closest "$key" $options $flags | sed 's/^/--/; s/, /, --/g')."
    fi
    shift
  done
}

need() { # need OPTION...: exit unless all these options are set; validate the name, bucket, slices and type
  local key
  for key; do
    [[ ${option[$key]-} ]] || die "--$key is required: give ${expected[$key]}."
  done
  name=${option[name]-run} bucket=${option[bucket]-} slices=${option[slices]}
  bucket=${bucket#gs://} bucket=${bucket%/}
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name $name is not valid: use at most 40 lowercase letters, digits and hyphens, starting with a letter and not ending with a hyphen."
  [[ ! $bucket || $bucket =~ ^[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]+)?$ ]] ||
    die "--bucket $bucket is not a valid bucket name: give a name such as my-bucket or gs://my-bucket/folder."
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices $slices is not valid: give a whole number, 1 or greater."
  [[ ! ${option[type]-} ]] || find_type "${option[type]}"
}

find_type() { # find_type TYPE: set type, topology, hosts, chips (per host), machine, label and runtime
  # TYPE is v6e-16 or v6e-4x4; v5e is an alias of v5litepod.
  local requested=${1/#v5e-/v5litepod-} names=() generation
  while read -r type topology hosts chips machine label runtime; do
    generation=${type%-*}
    if [[ $requested == "$type" || $requested == "$generation-$topology" ]]; then return; fi
    names+=("$type" "$generation-$topology")
  done < <(grep -v '^#' "$here/accelerators.txt")
  die "unknown TPU type $1: the closest types are $(closest "$requested" "${names[@]}"); accelerators.txt lists all types."
}

read_config() { # set config (the first word), sdft (its command line) and inputs (with all further YAML files)
  local word files=() settings=()
  [[ ${#words[@]} -gt 0 ]] || die "no CONFIG given: give a YAML file, such as configs/quickstart.yaml."
  config=${words[0]}
  [[ -f $config ]] || die "config $config does not exist: give a YAML file, such as configs/quickstart.yaml."
  for word in "${words[@]:1}"; do
    if [[ $word == *.@(yaml|yml) && $word != *=* ]]; then
      [[ -f $word ]] || die "config $word does not exist: give a YAML file, such as configs/tasks/science.yaml."
      files+=("$(basename "$word")") inputs+=("$word")
    else
      [[ $word == ?*=* ]] || die "$word is not key=value: write an override such as train.batch_size=16."
      settings+=("$word")
    fi
  done
  for word in ${inputs[@]+"${inputs[@]}"}; do
    [[ $word == gs://* || -e $word ]] || die "--input $word does not exist: give a file, a directory or gs://..."
  done
  case ${option[command]} in
    train | continual) ;;
    *) die "--command ${option[command]} is not valid: the closest commands are $(closest "${option[command]}" train continual)." ;;
  esac
  # A user's own output= comes after this one and overrides it; that of a file does not.
  sdft=("${option[command]}" "$(basename "$config")" ${files[@]+"${files[@]}"} "output=gs://$bucket/runs/$name"
    ${settings[@]+"${settings[@]}"})
}

upload() { # copy the config and inputs to the bucket, from which each worker downloads them
  run gcloud storage cp "$config" ${inputs[@]+"${inputs[@]}"} "gs://$bucket/inputs/$name/" --recursive
}
