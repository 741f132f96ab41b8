#!/usr/bin/env bash
# Installs the bundle in whose folder it lies, without a network: ./install.sh FOLDER [PYTHON]
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: $0 FOLDER [PYTHON]   (PYTHON: 3.11 or newer, the minor version that the bundle was made with)" >&2
  exit 2
fi
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")"
version=$(cat python-version)
python=${2:-python$version}

found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found=none
if [ "$found" != "$version" ]; then
  echo "error: the packages are for Python $version, and $python is $found; name another one: $0 FOLDER PYTHON" >&2
  exit 2
fi
sha256sum --check --quiet SHA256SUMS || { echo 'error: files are damaged; copy the archive again' >&2; exit 1; }
cp -a app/. "$target"
cp -a models "$target"
"$python" -m venv "$target/.venv" || { echo 'On Debian and Ubuntu: apt install python3-venv' >&2; exit 2; }
# Isolated: no index and no setting of this machine counts.
install=("$target/.venv/bin/python" -m pip --isolated --disable-pip-version-check install --no-index --find-links wheels
  --only-binary :all:)
"${install[@]}" --quiet --require-hashes --no-deps -r app/requirements/lock/serve.txt -r app/requirements/lock/tracing.txt
"${install[@]}" --quiet "$(grep '^torch==' app/requirements.txt)"
touch "$target/.venv/serve.stamp"

echo "installed in $target; to start it:"
echo "  cd $target && .venv/bin/python -m service serve --offline --cache-dir models$(sed 's/^/ --model /' model-specs | tr -d '\n')"
if [ -f image.tar ]; then echo "the image: podman load --input $PWD/image.tar (or docker load)"; fi
