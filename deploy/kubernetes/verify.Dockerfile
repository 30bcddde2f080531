# What checks a release before it is served: the SDK's wheel and the packages that it needs, in the pinned versions.
# Built from the project's folder, after `python -m build --wheel`:
#
#   docker build --file deploy/kubernetes/verify.Dockerfile --tag privdfs-verify:0.1.0 .
#
# Not yet built: this project has had no machine with a Docker daemon.
FROM python:3.11-slim
COPY constraints.txt dist/privdfs-*.whl /tmp/
RUN python3 -m pip install --no-cache-dir --only-binary :all: --constraint /tmp/constraints.txt /tmp/privdfs-*.whl \
    && rm /tmp/constraints.txt /tmp/privdfs-*.whl
USER 1000:1000
ENTRYPOINT ["privdfs"]
