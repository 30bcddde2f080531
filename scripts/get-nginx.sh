#!/bin/sh
# Makes sure that there is an nginx, without root:
#
#   get-nginx.sh FOLDER     FOLDER/usr/sbin/nginx is a link to that on PATH; else that of this Debian or Ubuntu, unpacked
#
# Its version is not pinned: archives keep only the one with the latest security fixes.
set -eu
. "$(dirname "$0")/debian.sh"
folder=$1
wanted="1.22"

give_up() {
    echo "error: no nginx: $1. Install nginx $wanted or newer with its modules http_ssl, http_v2 and" \
        "http_stub_status, so that \`nginx\` is on PATH, and run this again" >&2
    exit 1
}

check() {
    told=$("$1" -e stderr -V 2>&1) || give_up "$1 does not run: $(echo "$told" | head -n 1)"
    version=$(echo "$told" | sed -n 's/^nginx version: nginx\/\([0-9.]*\).*/\1/p')
    oldest=$(printf '%s\n%s\n' "$wanted" "$version" | sort -V | head -n 1)
    [ "$oldest" = "$wanted" ] || give_up "$1 is of version '$version'"
    for module in http_ssl_module http_v2_module http_stub_status_module; do
        case $told in *"$module"*) ;; *) give_up "$1 has no $module" ;; esac
    done
    echo "nginx $version: $1"
}

# Some keep it where only root's PATH leads.
PATH=$PATH:/usr/sbin:/usr/local/sbin
mkdir -p "$folder"
rm -rf "$folder/usr"
if found=$(command -v nginx); then
    check "$found"
    mkdir -p "$folder/usr/sbin"
    ln -s "$found" "$folder/usr/sbin/nginx"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "there is none on PATH, and no apt-get"

folder=$(cd "$folder" && pwd)
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd "$download"
unpack_debian "$folder" nginx || give_up "apt-get says: $(tail -n 1 log)"
[ -x "$folder/usr/sbin/nginx" ] || give_up "this distribution's package nginx holds no program"
check "$folder/usr/sbin/nginx"
