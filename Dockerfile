# Two images of one server: `serve` serves what is in the store, `full` also makes it. docs/container.md
#   docker build --target serve --tag serveprune:serve .
#   docker build --target full --tag serveprune:full .
# Behind a proxy or a mirror of PyPI: --secret id=pip,src=pip.conf and --secret id=ca,src=ca.crt (in pip.conf:
# cert = /run/secrets/ca). Neither gets into an image.

ARG BASE=docker.io/library/python:3.11-slim-bookworm

# The package, twice: as an empty one, from which pip reads what it needs, and as it is.
FROM ${BASE} AS wheels
WORKDIR /source
COPY pyproject.toml deploy/constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv /opt/hatch \
    && /opt/hatch/bin/pip install --no-cache-dir --constraint constraints.txt hatchling \
    && mkdir handlers serveprune \
    && touch LICENSE README.md serveprune/__init__.py \
    && /opt/hatch/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /needs .
COPY README.md LICENSE ./
COPY handlers handlers
COPY serveprune serveprune
RUN /opt/hatch/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /dist .

# What the serving half needs. pip stays behind: it is not in the environments that it fills.
FROM ${BASE} AS serve-packages
# What both images can do besides: a shared store in a bucket, and traces. Any of the extras in pyproject.toml, or none.
ARG EXTRAS="s3,tracing"
RUN python3 -m venv --without-pip /opt/serveprune
COPY --from=wheels /source/constraints.txt /needs/*.whl /needs/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir --constraint /needs/constraints.txt \
        "$(echo /needs/*.whl)${EXTRAS:+[${EXTRAS}]}"

# The compressing half on top of it. torch comes first and alone: a dependency that pulls it in would choose another build.
# Of what it brings, C++ headers and tests are a seventh.
FROM serve-packages AS full-packages
ARG TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=DL3013,SC2086
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir ${TORCH} \
    && rm -rf /opt/serveprune/lib/python3*/site-packages/torch/include /opt/serveprune/lib/python3*/site-packages/torch/test \
        /opt/serveprune/lib/python3*/site-packages/torch/bin/*[Tt]est*
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/serveprune/bin/python install --no-cache-dir --constraint /needs/constraints.txt \
        "$(echo /needs/*.whl)[compress]"

# Last the package itself, in the place of the empty one.
FROM serve-packages AS serve-environment
COPY --from=wheels /dist /dist
RUN python3 -m pip --python /opt/serveprune/bin/python install --no-index --no-deps --force-reinstall /dist/*.whl

FROM full-packages AS full-environment
COPY --from=wheels /dist /dist
RUN python3 -m pip --python /opt/serveprune/bin/python install --no-index --no-deps --force-reinstall /dist/*.whl

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
