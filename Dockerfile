# Two images of one server: `serve` serves what is in the store, `full` also makes it. docs/container.md
#   docker build --target serve --tag serveprune:serve .
#   docker build --target full --tag serveprune:full .
# Behind a proxy or a mirror of PyPI: --secret id=pip,src=pip.conf and --secret id=ca,src=ca.crt (in pip.conf:
# cert = /run/secrets/ca). Neither gets into an image.

ARG BASE=docker.io/library/python:3.11-slim-bookworm

# The package as a wheel, and the lists of what the two images need besides.
FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml deploy/constraints.txt ./
# What both images can do besides: a shared store in a bucket, and traces. Any of the extras in pyproject.toml, or none.
ARG EXTRAS="s3 tracing"
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv /opt/hatch \
    && /opt/hatch/bin/pip install --no-cache-dir --constraint constraints.txt hatchling \
    && python3 -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *(line for extra in sys.argv[1].split() for line in project["optional-dependencies"][extra]), sep="\n")' "${EXTRAS}" > serve.txt \
    && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["compress"], sep="\n")' > compress.txt
COPY README.md LICENSE ./
COPY handlers handlers
COPY serveprune serveprune
RUN /opt/hatch/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /dist .

# pip stays behind: it is not in the environments that it fills.
FROM ${BASE} AS serve-environment
RUN python3 -m venv --without-pip /opt/serveprune
COPY --from=wheel /source/constraints.txt /source/serve.txt /requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir \
        --constraint /requirements/constraints.txt --requirement /requirements/serve.txt
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl

# torch comes first and alone: a dependency that pulls it in would choose another build. Of what it brings, C++ headers
# and tests are a seventh.
FROM ${BASE} AS full-environment
ARG TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
RUN python3 -m venv --without-pip /opt/serveprune
# hadolint ignore=DL3013,SC2086
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir ${TORCH} \
    && rm -rf /opt/serveprune/lib/python3*/site-packages/torch/include /opt/serveprune/lib/python3*/site-packages/torch/test \
        /opt/serveprune/lib/python3*/site-packages/torch/bin/*[Tt]est*
COPY --from=wheel /source/constraints.txt /source/serve.txt /source/compress.txt /requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir \
        --constraint /requirements/constraints.txt --requirement /requirements/serve.txt --requirement /requirements/compress.txt
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl

# What both images are, but for the packages. Nothing in them needs a shell.
FROM ${BASE} AS runtime
RUN groupadd --gid 10001 serveprune \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/serveprune \
        --shell /usr/sbin/nologin serveprune \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/serveprune \
    && install --directory --mode=0755 /etc/serveprune
# Where the config says nothing: all interfaces, and the volume. The addresses go where every container may write.
ENV PATH=/opt/serveprune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SERVEPRUNE_HOST=0.0.0.0 \
    SERVEPRUNE_STORE=/var/lib/serveprune \
    SERVEPRUNE_ENDPOINTS_FILE=/dev/shm/serveprune-endpoints.json
USER 10001:10001
WORKDIR /var/lib/serveprune
VOLUME /var/lib/serveprune
EXPOSE 8080 8081 8082
STOPSIGNAL SIGTERM
# Live, not ready: who builds for an hour is not broken. `serveprune health --ready` asks for more.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/opt/serveprune/bin/serveprune", "health"]
ENTRYPOINT ["/opt/serveprune/bin/serveprune"]
CMD ["serve", "/etc/serveprune/serveprune.yaml"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="serveprune" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS full
LABEL org.opencontainers.image.description="Compresses neural networks on the fly, on CPU, and serves the tiers."
COPY --from=full-environment /opt/serveprune /opt/serveprune

FROM runtime AS serve
LABEL org.opencontainers.image.description="Serves compression tiers of neural networks from a store; does not compress."
COPY --from=serve-environment /opt/serveprune /opt/serveprune
