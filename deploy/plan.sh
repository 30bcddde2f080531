#!/bin/sh
# Builds the TensorRT plans of a release on this GPU host, in the image that will serve them, and checks them:
#
#   deploy/plan.sh FOLDER [OPTION ...]      FOLDER is a release, or one server's folder of it
#
# OPTIONs are those of `privdfs-export plan`, such as --precision int8. TAG picks the tritonserver image (default 26.09).
# Not yet tried: this project has had no machine with a GPU and Docker.
set -eu
folder=$(cd "$1" && pwd)
shift
tag=${TAG:-26.09}
project=$(cd "$(dirname "$0")/.." && pwd)

docker build --file "$project/deploy/Dockerfile" --build-arg "TAG=$tag" --tag "privdfs-plan:$tag" "$project"
run() {
    # The folder above is mounted, since a server's folder is exchanged whole. No network: nothing is to be fetched or sent.
    docker run --rm --gpus all --network none --user "$(id -u):$(id -g)" --volume "$(dirname "$folder"):/work" \
        "privdfs-plan:$tag" "$@"
}
run plan "/work/$(basename "$folder")" "$@"
run verify "/work/$(basename "$folder")"
