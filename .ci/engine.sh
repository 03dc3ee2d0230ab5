# For `source`: a Docker engine that answers, with the image of leases on it. What this starts ends with the shell.

engine_answers() {
	docker version >/dev/null 2>&1
}

if ! engine_answers; then
	mkdir -p build
	engine=$(pgrep -x -o dockerd) || {
		# Of an engine that was killed: a number that another process has by now keeps a new engine from starting.
		rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
		dockerd >build/dockerd.log 2>&1 &
		engine=$!
		trap 'kill "$engine" 2>/dev/null && wait "$engine" || true' EXIT
	}
	deadline=$((SECONDS + 60))
	until engine_answers; do
		if ((SECONDS > deadline)) || ! kill -0 "$engine" 2>/dev/null; then
			tail -n 20 build/dockerd.log >&2 || true
			echo ".ci/engine.sh: no Docker engine came up within 60 s" >&2
			exit 1
		fi
		sleep 0.5
	done
fi

# The name is the default of --miner.image. An image of an earlier release has no nftables.
docker run --rm --network none --entrypoint /usr/sbin/nft compute-machine --version >/dev/null 2>&1 ||
	PYTHON=.venv/bin/python docker/build-base.sh
