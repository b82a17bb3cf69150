# Signet in a container.
#
#   docker build -t signet .                          the service: no compiler, no torch, any CPU of the architecture
#   docker build -t signet-train --target train .     training: torch with CUDA, for machines with NVIDIA GPUs
#
#   docker run --read-only --cap-drop ALL -p 8000:8000 signet
#
# Behind a mirror: BASE_IMAGE names the base (its own apt sources are used), PIP_INDEX_URL the Python package index. What
# must stay out of the image's history goes in as secrets: `--secret id=pip,src=pip.conf` and, for an index with a
# certificate authority of its own, `--secret id=ca,src=ca.crt` with `cert = /run/secrets/ca` in that pip.conf.

ARG BASE_IMAGE=debian:bookworm-slim

# ---- Debian's Python, which every other stage starts from ------------------------------------------------------------
FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 python3 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/* \
    && rm -rf /usr/lib/python3.11/pydoc_data /usr/lib/python3.11/test \
    && mkdir /models
ENV PATH=/opt/signet/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# ---- the compiler, and the environment that the service gets ---------------------------------------------------------
# What the service never loads is left out: tests, Pillow's AVIF, colour profiles and fonts, Pygments' other languages.
FROM python AS tools
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ ninja-build python3-dev python3-venv
ARG PIP_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_INDEX_URL=${PIP_INDEX_URL} \
    PIP_ROOT_USER_ACTION=ignore
COPY deploy/locks/build.lock deploy/locks/serve.lock /locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/signet \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r /locks/build.lock \
    && /opt/build/bin/pip --python /opt/signet/bin/python install --no-compile \
        --no-cache-dir --no-deps --require-hashes --only-binary :all: -r /locks/serve.lock \
    && find /opt/signet -name tests -type d -prune -exec rm -rf {} + \
    && cd /opt/signet/lib/python3.11/site-packages \
    && strip --strip-unneeded uvloop/*.so \
    && rm PIL/_avif.*.so PIL/_imagingcms.*.so PIL/_imagingft.*.so PIL/_imagingtk.*.so \
    && (cd pillow.libs && rm libavif-* libbrotli* libfreetype-* libharfbuzz-* liblcms2-*) \
    && find pygments/lexers -name '*.py' ! -name __init__.py ! -name _mapping.py ! -name python.py ! -name special.py -delete

FROM tools AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends ccache
ENV CCACHE_DIR=/ccache \
    CMAKE_CXX_COMPILER_LAUNCHER=ccache
WORKDIR /source
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY models/ models/
COPY app/ app/
COPY training/ training/
RUN --mount=type=cache,target=/ccache \
    /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist .

# Byte code is made for the modules that serving imports, by importing them: for all of them it would be 20 MB more.
FROM tools AS environment
COPY --from=wheel /dist /dist
RUN /opt/build/bin/pip --python /opt/signet/bin/python install --no-compile --no-index --no-deps /dist/*.whl \
    && find /opt/signet \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete \
    && mkdir -p /opt/signet/lib/python3.11/site-packages/models/zoo \
    && ln -s lib/python3.11/site-packages/models/zoo /opt/signet/zoo \
    && env --unset=PYTHONDONTWRITEBYTECODE python -c \
        "import PIL.Image, app.cli, app.server; PIL.Image.init(); app.server.create_app()" \
    && env --unset=PYTHONDONTWRITEBYTECODE signet serve --help > /dev/null
COPY deploy/healthcheck.py /opt/signet/healthcheck.py

# ---- target `train` --------------------------------------------------------------------------------------------------
FROM environment AS train-environment
COPY deploy/locks/train.lock /locks/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/build/bin/pip --python /opt/signet/bin/python install \
        --no-cache-dir --no-deps --require-hashes --only-binary :all: -r /locks/train.lock

# torch.compile builds its kernels where it runs, so this image keeps a C compiler.
FROM python AS train
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/* \
    && install --directory --owner 10001 --group 10001 /work
COPY --from=train-environment /opt/signet /opt/signet
ENV HOME=/work \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["/opt/signet/bin/signet"]
CMD ["train", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Signet training" \
      org.opencontainers.image.description="Trains binary neural networks with latent decompositions and packs them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="debian:bookworm-slim"

# ---- the service, which is what a build without --target gives --------------------------------------------------------
FROM python AS serve
COPY --from=environment /opt/signet /opt/signet
# One model's matrix products are not numpy's: its BLAS needs no threads of its own, and no memory for them.
ENV HOME=/nonexistent \
    OPENBLAS_NUM_THREADS=1 \
    SIGNET_HOST=0.0.0.0 \
    SIGNET_MODELS=/models:/opt/signet/zoo \
    SIGNET_PORT=8000
WORKDIR /models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["/opt/signet/bin/python", "-I", "-S", "/opt/signet/healthcheck.py"]
ENTRYPOINT ["/opt/signet/bin/signet"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Signet" \
      org.opencontainers.image.description="Serves binary neural networks, packed to one bit a weight, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="debian:bookworm-slim"
