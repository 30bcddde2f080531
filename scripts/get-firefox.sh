#!/bin/sh
# Makes sure that there is a Firefox for the tests, without root:
#
#   get-firefox.sh FOLDER     FOLDER/firefox starts that on PATH; else that of this Debian, unpacked with its libraries
#
# Where neither is to be had, FOLDER/missing says why, and the tests in it are skipped. A snap is none: it cannot read
# profiles in /tmp. apt checks packages against the distribution's signed lists; archives keep only the newest version.
set -eu
wanted=140
scripts=$(cd "$(dirname "$0")" && pwd)
. "$scripts/debian.sh"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
rm -rf "$folder/usr" "$folder/firefox" "$folder/missing"

give_up() {
    echo "no Firefox: $1. Install Firefox $wanted or newer, so that \`firefox\` is on PATH, and remove $folder" >"$folder/missing"
    cat "$folder/missing"
    exit 0
}

# Whether a program is a Firefox that is new enough.
fits() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^Mozilla Firefox \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge "$wanted" ]
}

for name in firefox firefox-esr; do
    found=$(command -v "$name") || continue
    case $(readlink -f "$found") in */snap*) continue ;; esac
    if fits "$found"; then
        ln -s "$found" "$folder/firefox"
        echo "Firefox $version: $found"
        exit 0
    fi
done
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "there is none on PATH, and no apt-get"

download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd "$download"
apt_get --simulate install --no-install-recommends firefox-esr >plan || give_up "apt-get says: $(tail -n 1 log)"
# What the system has not: the browser and some libraries.
unpack_debian "$folder" $(sed -n 's/^Inst \([^ ]*\).*/\1/p' plan) || give_up "apt-get says: $(tail -n 1 log)"
lib=$folder/usr/lib
[ -x "$lib/firefox-esr/firefox-esr" ] || give_up "this distribution's package firefox-esr holds no program"
cat >"$folder/firefox" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$lib/firefox-esr:$lib/x86_64-linux-gnu"
exec "$lib/firefox-esr/firefox-esr" "\$@"
END
chmod +x "$folder/firefox"
fits "$folder/firefox" || give_up "that of the package firefox-esr does not run, or is of version '$version'"
echo "Firefox $version: $folder/firefox"
