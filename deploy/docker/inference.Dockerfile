# A gateway and the vLLM that it starts, each in an environment of its own. `deploy/README.md` says how it is built.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# `cpu` or `cuda`: which build of vLLM.
ARG DEVICE=cpu
# The building machine's own settings of pip. They stay in this stage.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
WORKDIR /source
# The engine first: it is large and does not depend on our sources.
COPY deploy/install.py deploy/
COPY constraints.txt ./
COPY inference/*.txt inference/
RUN python3 deploy/install.py --only engine --folder /opt/engine --device "${DEVICE}"
COPY . .
RUN python3 deploy/install.py --only inference --folder /opt/tunesmith

FROM ${BASE}
# What vLLM loads on a processor. With a GPU it compiles: use "gcc libc6-dev". Empty: install nothing.
ARG PACKAGES=libnuma1
RUN if [ -n "${PACKAGES}" ]; then apt-get update -q \
    && apt-get install -y -q --no-install-recommends ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/*; fi
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tunesmith gateway and engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
RUN echo "tunesmith:x:65532:65532::/var/lib/tunesmith:/usr/sbin/nologin" >> /etc/passwd \
    && echo "tunesmith:x:65532:" >> /etc/group \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/tunesmith
COPY --from=build /opt/engine /opt/engine
COPY --from=build /opt/tunesmith /opt/tunesmith
ENV PATH=/opt/tunesmith/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/tunesmith \
    TUNESMITH_CACHE_DIR=/var/lib/tunesmith/cache \
    TUNESMITH_ENGINE_PYTHON=/opt/engine/bin/python \
    TUNESMITH_GATEWAY_HOST=0.0.0.0 \
    TUNESMITH_GATEWAY_PORT=8002
USER 65532:65532
WORKDIR /var/lib/tunesmith
EXPOSE 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-IS", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8002/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "tunesmith_inference"]
