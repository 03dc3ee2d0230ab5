#!/usr/bin/env bash
# Builds a lease image without any registry of images: Debian bookworm, sshd, Python 3, and torch for processors.
#
#   sudo PYTHON=.venv/bin/python docker/build-base.sh [NAME]     (NAME: compute-machine:latest)
#
# For machines that reach no registry, and for tests: proofs run in it on the processor. A machine with GPUs wants the
# Dockerfile beside this script, whose base has torch for CUDA. Takes about two minutes and 1.5 GB. PYTHON (python3)
# is one with pip, whose configuration says where packages come from. MIRROR is another of Debian's than debootstrap's
# own; TORCH_INDEX is an index that has torch's build for processors, where pip's configuration knows none.
set -euo pipefail

name=${1:-compute-machine:latest}
python=${PYTHON:-python3}
mirror=${MIRROR:-}
torch_index=${TORCH_INDEX:-}
release=bookworm
packages=openssh-server,python3,ca-certificates,curl,iproute2,less,nftables,procps

die() {
    echo "build-base.sh: $*" >&2
    exit 1
}

((EUID == 0)) || die "debootstrap needs root: run it with sudo"
command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install -y debootstrap"
docker version >/dev/null || die "no Docker engine answers: see docs/miner.md"
"$python" -m pip --version >/dev/null || die "$python has no pip: set PYTHON to one that has"

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

echo "Debian $release …" >&2
debootstrap --variant=minbase --include="$packages" "$release" "$root" ${mirror:+"$mirror"} >&2

echo "torch …" >&2
version=$(chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
index=()
[[ -z $torch_index ]] || index=(--extra-index-url "$torch_index")
"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-compile \
    --python-version "$version" --only-binary=:all: "${index[@]}" \
    --target "$root/usr/local/lib/python$version/dist-packages" "torch==2.13.0" "numpy>=2,<3"

# Validators of older releases call conda's Python by its path.
install -d "$root/opt/conda/bin"
ln -s /usr/bin/python3 "$root/opt/conda/bin/python"

# A host key that comes with an image is everybody's; each lease brings its own.
rm -f "$root"/etc/ssh/ssh_host_*
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
# Debootstrap copies these two from the host.
: >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
chroot "$root" python3 -c 'import torch'

echo "importing as $name …" >&2
tar --numeric-owner -C "$root" -c . | docker import --change 'CMD ["/bin/bash"]' - "$name"
