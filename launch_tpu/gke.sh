#!/usr/bin/env bash
# A run on Google Kubernetes Engine as a JobSet that waits in a Kueue queue: what Google recommends.
#
#   gke.sh queue  --type TYPE [--slices N]      once a type: a Kueue queue with room for N slices
#   gke.sh render --name NAME --type TYPE --bucket BUCKET --image IMAGE [--slices N] [--spot]
#                 [--command continual] CONFIG [key=value...]     the JobSet on stdout; touches nothing
#   gke.sh apply  (render's) [--input PATH]...  uploads CONFIG and inputs, then submits the JobSet
#   gke.sh logs   --name NAME                   of the first host of each slice
#   gke.sh delete --name NAME                   the JobSet, not its results
#
# Every action may be repeated, and takes --dry-run. TYPE is v6e-16 or v6e-4x4, see accelerators.txt; several
# slices (--slices, of several hosts each) train as one. CONFIG and each --input (a file, directory or gs://...) are in the run's
# directory under their last name: data.path=train.jsonl. Results are in gs://BUCKET/runs/NAME. To run again,
# or to go on: delete, then apply. A preempted run starts again by itself, and resumes; other failures are
# retried three times; exit code 2 (a mistake of yours) ends it.
#
# It needs a cluster in kubectl's current context with JobSet 0.10+ and Kueue 0.15+ (README.md makes one) whose
# default service account may use the bucket. Costs: nodes, by the chip-hour, as long as they exist: Autopilot
# and autoscaled node pools drop them some minutes after the run; other pools cost until they are deleted.
# What runs: kubectl get jobsets,workloads,nodes. Tear down: gke.sh delete, then the pools or the cluster.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2016  # the dollars are meant
text() { # a YAML string; Kubernetes would expand $(NAME)
  local value=${1//\\/\\\\}
  value=${value//\"/\\\"} value=${value//$'\n'/\\n} value=${value//$'\t'/\\t} value=${value//'$('/'$$('}
  echo "\"$value\""
}

fill() { # fill TEMPLATE [PLACEHOLDER VALUE]...: in this order, so what the user wrote comes last
  local template
  template=$(<"$here/gke/$1")
  shift
  while (($#)); do
    template=${template//"@$1@"/"$2"}
    shift 2
  done
  echo "$template"
}

kueue() {
  fill kueue.yaml.tmpl QUEUE "sdft-$type" LABEL "$label" TOPOLOGY "$topology" QUOTA "$((slices * hosts * chips))"
}

render() {
  local args="" word spot=""
  for word in "${sdft[@]}"; do args+="${args:+, }$(text "$word")"; done
  [[ ! ${given[spot]-} ]] || spot=$'\n                cloud.google.com/gke-spot: "true"'
  fill jobset.yaml.tmpl NAME "$name" QUEUE "sdft-$type" SLICES "$slices" HOSTS "$hosts" CHIPS "$chips" \
    LABEL "$label" TOPOLOGY "$topology" SPOT "$spot" SOURCE "$(text "gs://$bucket/inputs/$name")" \
    CACHE "$(text "gs://$bucket/compiled")" IMAGE "$(text "${given[image]}")" ARGS "[$args]"
}

submit() { # the manifest on stdin, shown when nothing is submitted
  if [[ $dry_run ]]; then run kubectl apply --filename=- && cat; else run kubectl apply --filename=-; fi
}

parse "queue render apply logs delete" "name type slices bucket image input command" "spot" "$@"
case $action in
  queue) need type && kueue | submit ;;
  render) need name type bucket image && take_config && render ;;
  apply) need name type bucket image && take_config && stage && render | submit ;;
  logs)
    need name
    run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
      --container=sdft --prefix --tail=200 --follow --max-log-requests=64
    ;;
  delete) need name && run kubectl delete jobset "$name" --ignore-not-found ;;
esac
