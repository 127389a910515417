#!/usr/bin/env bash
# Run sdft on Google Kubernetes Engine as a JobSet in a Kueue queue, which is what Google recommends.
#
#   gke.sh queue  --type TYPE [--slices N]      once per type: create a Kueue queue with a quota of N slices
#   gke.sh render --name NAME --type TYPE --bucket BUCKET --image IMAGE [--slices N] [--spot]
#                 [--command continual] CONFIG [key=value...]     print the JobSet to stdout; change nothing
#   gke.sh apply  (options of render) [--input PATH]...    upload CONFIG and inputs, then submit the JobSet
#   gke.sh logs   --name NAME                   follow the logs of the first host of each slice
#   gke.sh delete --name NAME                   delete the JobSet, but not its results
#
# Each action can be repeated safely and accepts --dry-run. TYPE is, for example, v6e-16 or v6e-4x4; see
# accelerators.txt. With --slices N, N multi-host slices train as one run. The run's working directory
# contains CONFIG and each --input (a file, a directory or gs://...) under its base name:
# data.path=train.jsonl. Results are in gs://BUCKET/runs/NAME. To start a run again, or to resume it: delete,
# then apply. After a preemption, the run restarts automatically and resumes. Exit code 2 (user error) ends
# it. Other failures are retried up to three times.
#
# Requirements: a cluster in kubectl's current context with JobSet 0.10+ and Kueue 0.15+ (README.md describes
# how to create one), whose default service account has access to the bucket.
# Costs: nodes are billed by the chip-hour for as long as they exist. Autopilot and autoscaled node pools
# remove them a few minutes after the run; other node pools are billed until you delete them.
# List what is running: kubectl get jobsets,workloads,nodes.
# Tear down: gke.sh delete, then delete the node pools or the cluster.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2016  # the dollar signs are literal
yaml_string() { # print the argument as a YAML string; escape $(NAME), which Kubernetes would expand
  local value=${1//\\/\\\\}
  value=${value//\"/\\\"} value=${value//$'\n'/\\n} value=${value//$'\t'/\\t} value=${value//'$('/'$$('}
  echo "\"$value\""
}

fill() { # fill TEMPLATE [PLACEHOLDER VALUE]...: substitute in this order
  # Values from the user come last, so that a placeholder in them is not replaced.
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
  for word in "${sdft[@]}"; do args+="${args:+, }$(yaml_string "$word")"; done
  [[ ! ${option[spot]-} ]] || spot=$'\n                cloud.google.com/gke-spot: "true"'
  fill jobset.yaml.tmpl NAME "$name" QUEUE "sdft-$type" SLICES "$slices" HOSTS "$hosts" CHIPS "$chips" \
    LABEL "$label" TOPOLOGY "$topology" SPOT "$spot" SOURCE "$(yaml_string "gs://$bucket/inputs/$name")" \
    CACHE "$(yaml_string "gs://$bucket/compiled")" IMAGE "$(yaml_string "${option[image]}")" ARGS "[$args]"
}

submit() { # apply the manifest on stdin; in a dry run, print it
  if [[ $dry_run ]]; then run kubectl apply --filename=- && cat; else run kubectl apply --filename=-; fi
}

parse "queue render apply logs delete" "name type slices bucket image input command" "spot" "$@"
case $action in
  queue) need type && kueue | submit ;;
  render) need name type bucket image && read_config && render ;;
  apply) need name type bucket image && read_config && upload && render | submit ;;
  logs)
    need name
    run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
      --container=sdft --prefix --tail=200 --follow --max-log-requests=64
    ;;
  delete) need name && run kubectl delete jobset "$name" --ignore-not-found ;;
esac
