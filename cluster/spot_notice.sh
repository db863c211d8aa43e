#!/bin/bash
# Tell Ray when AWS is about to take this machine away, so that its run writes a checkpoint and goes on elsewhere.
# Usage: spot_notice.sh HEAD:PORT. aws.yaml starts it on every worker; on machines that are not spot it waits for ever.
set -u
head="$1"
metadata="${RAYMSA_METADATA:-http://169.254.169.254}/latest"  # EC2 tells every machine about itself there
warned_s=100  # AWS warns two minutes ahead; some of them are gone when we hear of it

notice() {
  local session
  session=$(curl -sf -m 2 -X PUT "$metadata/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') &&
    curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $session" "$metadata/meta-data/spot/instance-action"
}

until notice; do sleep "${RAYMSA_NOTICE_S:-5}"; done
echo "AWS takes this machine back; telling Ray at $head"
until ray drain-node --address "$head" --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot instance" \
  --deadline-remaining-seconds "$warned_s"; do sleep 2; done
