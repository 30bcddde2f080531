# To be sourced: packages of this Debian or Ubuntu, without root. apt checks each against the distribution's signed lists.

# Runs apt-get with lists that are there; its complaint, if it fails, is the last line of a file `log` in this folder.
apt_get() {
    apt-get --quiet --quiet "$@" 2>log && return
    # The system's lists are missing or out of date, and only root may renew them: use lists of our own.
    mkdir -p lists/partial cache/archives/partial
    set -- -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache" "$@"
    apt-get --quiet --quiet -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache" update >log 2>&1 &&
        apt-get --quiet --quiet "$@" 2>log
}

# unpack_debian FOLDER PACKAGE…: downloads and extracts them; the folder's path begins with /.
unpack_debian() (
    into=$1
    shift
    apt_get download "$@" && for package in *.deb; do dpkg-deb --extract "$package" "$into" || exit 1; done
)
