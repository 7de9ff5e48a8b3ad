#!/bin/sh
# Installs what tests marked `cluster` start: real daemons from Debian's packages. Does nothing where all of it is there.
set -eu
packages="docker-compose docker.io mmdebstrap munge slurm-wlm"
dpkg --status $packages >/dev/null 2>&1 && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "The tests of clusters need root and these packages: $packages" >&2
    exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
