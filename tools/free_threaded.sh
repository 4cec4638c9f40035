#!/bin/sh
# free_threaded.sh DIRECTORY [PYTHON]: makes DIRECTORY/venv, a virtual environment of a CPython without the GIL, with
# numpy and the packages of the tests. It uses PYTHON (a python3.13t, say); without it, it builds one from Debian's source package of
# python3.13, which takes about five minutes, and keeps it in DIRECTORY.
set -e
there=$(mkdir -p "$1" && cd "$1" && pwd)
python=$2
if [ -z "$python" ] && [ ! -x "$there/python/bin/python3.13t" ]; then
    mkdir -p "$there/apt/lists/partial" "$there/apt/cache/archives/partial"
    # The machine's own mirror and keys, another suite, and the sources: nothing of the machine's configuration changes.
    mirror=$(sed -n 's/^URIs: *//p; s/^deb  *\([a-z][^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
    printf 'Types: deb-src\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
        "$mirror" > "$there/apt/trixie.sources"
    apt() {
        apt-get --quiet -o Dir::Etc::SourceList="$there/apt/trixie.sources" -o Dir::Etc::SourceParts=/dev/null \
            -o Dir::State::Lists="$there/apt/lists" -o Dir::Cache="$there/apt/cache" "$@"
    }
    cd "$there"
    apt update
    apt source --download-only python3.13
    rm -rf source && mkdir source
    tar -x -f python3.13_*.orig.tar.xz --strip-components=1 -C source
    cd source
    nice ./configure --quiet --prefix="$there/python" --disable-gil --disable-test-modules
    nice make --silent --jobs="$(nproc)"
    nice make --silent install
    cd "$there"
    rm -rf source
fi
[ -x "$there/venv/bin/python" ] || "${python:-$there/python/bin/python3.13t}" -m venv "$there/venv"
# Only what there are wheels for: to compile numpy takes longer than to compile CPython.
"$there/venv/bin/python" -m pip install --quiet --only-binary :all: "setuptools>=77" "numpy>=2.1" prometheus-client \
    pytest pytest-xdist hypothesis xxhash
